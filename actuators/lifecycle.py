"""What all actions share: the place where they act, the words for what became of them, and the named crash points.

An action's life cycle: plan → pre-check → execute → verify → keep or revert. A pre-check that fails raises
CommandRefused with its guard; nothing has been changed then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Final

from virtpilot.actuators.journal import Journal
from virtpilot.actuators.ledger import CommandSeen, Entry, EpochReached, OperationState
from virtpilot.clock import seconds
from virtpilot.errors import CommandRefused, GuestNotFound, StateError
from virtpilot.hypervisor import GuestState, Hypervisor
from virtpilot.model import Command, Outcome, Result, record_id

# Xen shows an idle guest as blocked; it runs all the same.
RUNNING: Final = frozenset({GuestState.RUNNING, GuestState.BLOCKED})
OFF: Final = frozenset({GuestState.SHUTOFF, GuestState.CRASHED})
# A command stays known for this long after its end, whatever the clocks do meanwhile.
SEEN_MARGIN_NS: Final = seconds(3600)


class Point(StrEnum):
    """The named points of the life cycle at which a crash is simulated in tests."""

    BEFORE_INTENT = "before intent"
    AFTER_INTENT = "after intent"
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
    AFTER_GIVE_BACK = "after knobs are given back"
    BEFORE_START = "before migration starts"
    AFTER_START = "after migration started"
    BEFORE_END_WRITTEN = "before migration's end is written"
    AFTER_END_WRITTEN = "after migration's end is written"


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

    def check_guest(self, guest: str) -> None:
        """Refuse a guest that is not here, not running or under way; raises CommandRefused and HypervisorError."""
        try:
            state = self.hypervisor.state(guest)
        except GuestNotFound:
            raise CommandRefused("guest", f"guest {guest} is not on {self.host}") from None
        if state not in RUNNING:
            raise CommandRefused("state", f"guest {guest} is {state}, not running")
        self._check_idle(guest)

    def _check_idle(self, guest: str) -> None:
        for operation in self.journal.operations():
            if operation.guest == guest:
                doing = "may be on its way still" if operation.state is OperationState.ORPHANED else "is on its way"
                raise CommandRefused("busy", f"guest {guest} {doing} to another host ({operation.command.id})")

    def commit(self, *entries: Entry) -> None:
        """Write what must be on disk before a change; raises CommandRefused with guard "journal"."""
        try:
            self.journal.commit(*entries)
        except StateError as error:
            raise CommandRefused("journal", f"nothing is changed that cannot be written down first: {error}") from error


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
