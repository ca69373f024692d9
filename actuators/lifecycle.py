"""What all actions share: the place where they act, the words for what became of them, and the named crash points.

An action's life cycle: plan → pre-check → execute → verify → keep or revert. A pre-check that fails raises
CommandRefused with its guard; nothing has been changed then.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Final

from virtpilot.action import Migrate, action_name
from virtpilot.actuators.journal import Journal
from virtpilot.actuators.ledger import CommandSeen, Entry, EpochReached, Lease, Operation, OperationState
from virtpilot.actuators.note import Journey, write_note
from virtpilot.clock import seconds
from virtpilot.errors import CommandRefused, GuestNotFound, HypervisorError, KnobUnsupported, StateError
from virtpilot.events import EventKind
from virtpilot.hypervisor import RUNNING, GuestEvent, GuestState, Hypervisor, NoteKeeper
from virtpilot.model import Command, Outcome, Result, record_id

# A command stays known for this long after its end, whatever the clocks do meanwhile.
SEEN_MARGIN_NS: Final = seconds(3600)


class Point(StrEnum):
    """The named points of the life cycle at which a crash is simulated in tests."""

    BEFORE_INTENT = "before intent"
    AFTER_INTENT = "after intent"
    AFTER_NOTE = "after the guest has its note"
    AFTER_CHANGE = "after change"
    AFTER_VERIFY = "after verify"
    AFTER_KEEP = "after keep"
    BEFORE_REVERT = "before revert"
    AFTER_REVERT = "after revert"
    BEFORE_RELEASE = "before release"
    AFTER_RELEASE_MARK = "after release mark"
    AFTER_RESTORE = "after restore"
    AFTER_RELEASE = "after release"
    BEFORE_PLAN_WRITTEN = "before migration is written"
    AFTER_PLAN_WRITTEN = "after migration is written"
    AFTER_PACKED = "after the leases are packed"
    BEFORE_START = "before migration starts"
    AFTER_START = "after migration started"
    BEFORE_END_WRITTEN = "before migration's end is written"
    AFTER_END_WRITTEN = "after migration's end is written"
    BEFORE_LET_GO = "before a lease is let go"
    AFTER_LET_GO = "after a lease is let go"
    BEFORE_TAKE_UP = "before a lease is taken up"
    AFTER_TAKE_UP = "after a lease is taken up"
    BEFORE_YIELD = "before a lease yields to a foreign change"
    AFTER_YIELD = "after a lease yields to a foreign change"
    BEFORE_POWER = "before another state is asked for"
    AFTER_POWER = "after another state was asked for"
    BEFORE_POWER_END = "before the other state is written"
    BEFORE_HOOK = "before a hook is run"
    AFTER_HOOK = "after a hook was begun"
    BEFORE_HOOK_END = "before a hook's end is written"


def nowhere(_point: Point) -> None:
    """Pass a crash point by, as production does."""


class Site:
    """Where actions take place: one host, its hypervisor and its journal."""

    def __init__(
        self, hypervisor: Hypervisor, journal: Journal, *, host: str, reached: Callable[[Point], None] = nowhere
    ) -> None:
        self.hypervisor = hypervisor
        self.journal = journal
        self.host = host
        self.reached = reached
        # The guests to look at, each with whether libvirt has told that it went to another host.
        self.looks: dict[str, bool] = {}
        self._news: list[tuple[GuestEvent, str]] = []

    def news(self) -> list[tuple[GuestEvent, str]]:
        """Return what has happened to leases since the last call, each with the command that set it."""
        news, self._news = self._news, []
        return news

    def tell(self, kind: EventKind, lease: Lease, why: str, now_ns: int) -> None:
        """Tell what has happened to a lease."""
        numbers = {lease.knob: float(lease.value)}
        told = GuestEvent(at_ns=now_ns, kind=kind, guest=lease.guest, detail=f"{lease.knob}: {why}", numbers=numbers)
        self._news.append((told, lease.command))

    def write_note(self, guest: str) -> None:
        """Have a guest carry its leases, and its move, as the journal has them; raises HypervisorError."""
        if isinstance(self.hypervisor, NoteKeeper) and guest != self.host:  # a host's own knobs go nowhere
            leases = [lease for lease in self.journal.leases() if lease.guest == guest]
            with contextlib.suppress(KnobUnsupported):  # a driver without a place for notes moves no guests either
                self.hypervisor.write_note(guest, write_note(guest, leases, self.journey_of(guest)))

    def rewrite_note(self, guest: str) -> None:
        """Bring a guest's note up to date after its leases have changed, now or as soon as libvirt answers."""
        try:
            self.write_note(guest)
        except HypervisorError:
            self.looks.setdefault(guest, False)

    def check_guest(self, guest: str) -> None:
        """Refuse a guest that is not here, not running or under way; raises CommandRefused and HypervisorError."""
        state = self.state(guest)
        if state not in RUNNING:
            raise CommandRefused("state", f"guest {guest} is {state}, not running")
        self.check_idle(guest)

    def state(self, guest: str) -> GuestState:
        """Return the state of a guest that must be here; raises CommandRefused and HypervisorError."""
        try:
            return self.hypervisor.state(guest)
        except GuestNotFound:
            raise CommandRefused("guest", f"guest {guest} is not on {self.host}") from None

    def place(self, guest: str) -> GuestState | None:
        """Return the state of a guest here, None when it is not here."""
        try:
            return self.hypervisor.state(guest)
        except GuestNotFound:
            return None

    def whereabouts(self, place: GuestState | None) -> str:
        """Say where a guest is that was to leave."""
        if place is None:
            return f"the guest is no longer on {self.host}"
        doing = "still runs" if place in RUNNING else f"is {place}"
        return f"the guest {doing} on {self.host}"

    def check_idle(self, guest: str) -> None:
        """Refuse a guest on which a long operation is under way; raises CommandRefused."""
        for operation in self.journal.operations():
            if operation.guest == guest:
                raise _busy(operation)

    def move_of(self, guest: str) -> Operation | None:
        """Return the migration by which a guest leaves, None where it stays; nothing else holds up its knobs."""
        moves = (one for one in self.journal.operations() if isinstance(one.command.action, Migrate))
        return next((one for one in moves if one.guest == guest), None)

    def journey_of(self, guest: str) -> Journey | None:
        """Return what the note of a guest that leaves is to say of it, None where it stays."""
        move = self.move_of(guest)
        action = move.command.action if move is not None else None
        return Journey(move.command.id, action.target) if move is not None and isinstance(action, Migrate) else None

    def check_stays(self, guest: str) -> None:
        """Refuse a guest that is on its way to another host; raises CommandRefused."""
        if (move := self.move_of(guest)) is not None:
            raise _busy(move)

    def commit(self, *entries: Entry) -> None:
        """Write what must be on disk before a change; raises CommandRefused with guard "journal"."""
        try:
            self.journal.commit(*entries)
        except StateError as error:
            raise CommandRefused("journal", f"nothing is changed that cannot be written down first: {error}") from error


def _busy(operation: Operation) -> CommandRefused:
    return CommandRefused("busy", f"guest {operation.guest} {_doing(operation)} ({operation.command.id})")


def _doing(operation: Operation) -> str:
    if not isinstance(operation.command.action, Migrate):
        return f"is under way already: {action_name(operation.command.action)}"
    sure = "may be on its way still" if operation.state is OperationState.ORPHANED else "is on its way"
    return f"{sure} to another host"


def seen(command: Command) -> tuple[CommandSeen, EpochReached]:
    """Return the entries that make a command and its epoch known."""
    return CommandSeen(command.id, command.not_after_ns + SEEN_MARGIN_NS), EpochReached(command.epoch)


def outcome(
    command: str,
    result: Result,
    at_ns: int,
    *,
    host: str,
    guest: str,
    action: str,
    rule: str,
    guard: str = "",
    reason: str = "",
    before: Mapping[str, float] | None = None,
    after: Mapping[str, float] | None = None,
) -> Outcome:
    """Return what became of a command; its id depends on the command and the result alone."""
    return Outcome(
        id=record_id("oc", command, result),
        cause=command,
        command=command,
        host=host,
        guest=guest,
        result=result,
        at_ns=at_ns,
        action=action,
        rule=rule,
        guard=guard,
        reason=reason,
        before=dict(before or {}),
        after=dict(after or {}),
    )
