"""What the journal holds: the entries that are written, and the state that they add up to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import Final

import msgspec

from virtpilot.model import Command, Outcome

VERSION: Final = 1


class LeaseState(StrEnum):
    """How far a lease is: written before the change, verified after it, or on its way back to the baseline."""

    INTENDED = "intended"
    HELD = "held"
    RELEASING = "releasing"


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """A knob's changed value, its owner and its end.

    `prior` is the lease that an intended one takes the place of; `release` is the release command, "" when the lease
    ends by itself; `why` says what ended it.
    """

    guest: str
    knob: str
    baseline: int
    value: int
    rule: str
    command: str
    end_ns: int
    state: LeaseState
    prior: Lease | None = None
    release: str = ""
    why: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """What is leased: one knob of one guest."""
        return (self.guest, self.knob)


class OperationState(StrEnum):
    """How far a long operation is: written down, handed to the hypervisor, in post-copy, or found after a restart."""

    PLANNED = "planned"
    STARTED = "started"
    SWITCHED = "switched"
    ABORTING = "aborting"
    ORPHANED = "orphaned"


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """A long operation under way; `deadline_ns` is when its state must have ended, `why` what led to that state."""

    command: Command
    started_ns: int
    deadline_ns: int
    state: OperationState
    why: str = ""

    @property
    def guest(self) -> str:
        """The guest that is on its way."""
        return self.command.action.guest


class Opened(msgspec.Struct, frozen=True, tag="journal", tag_field="entry"):
    """A journal's first entry."""

    version: int


class CommandSeen(msgspec.Struct, frozen=True, tag="seen", tag_field="entry"):
    """A command was taken up; it is known as such at least until `keep_until_ns`."""

    command: str
    keep_until_ns: int


class EpochReached(msgspec.Struct, frozen=True, tag="epoch", tag_field="entry"):
    """The newest epoch of any command so far."""

    epoch: int


class LeaseKept(msgspec.Struct, frozen=True, tag="lease", tag_field="entry"):
    """A lease as it is from now on."""

    lease: Lease


class LeaseDropped(msgspec.Struct, frozen=True, tag="lease_end", tag_field="entry"):
    """The lease on a knob is over."""

    guest: str
    knob: str


class OperationKept(msgspec.Struct, frozen=True, tag="operation", tag_field="entry"):
    """A long operation as it is from now on."""

    operation: Operation


class OperationDropped(msgspec.Struct, frozen=True, tag="operation_end", tag_field="entry"):
    """The long operation of a command is over."""

    command: str


class OutcomeKept(msgspec.Struct, frozen=True, tag="outcome", tag_field="entry"):
    """What became of a command; an outcome that is known already stays as it was."""

    outcome: Outcome
    published: bool = False


class OutcomePublished(msgspec.Struct, frozen=True, tag="published", tag_field="entry"):
    """The broker has an outcome."""

    id: str


Entry = (
    Opened
    | CommandSeen
    | EpochReached
    | LeaseKept
    | LeaseDropped
    | OperationKept
    | OperationDropped
    | OutcomeKept
    | OutcomePublished
)


class Ledger:
    """The sum of a journal's entries."""

    def __init__(self) -> None:
        self.epoch = 0
        self.seen: dict[str, CommandSeen] = {}
        self.leases: dict[tuple[str, str], Lease] = {}
        self.operations: dict[str, Operation] = {}
        self.outcomes: dict[str, OutcomeKept] = {}

    def copy(self) -> Ledger:
        """Return a ledger of its own with the same content."""
        other = Ledger()
        other.apply(self.entries())
        return other

    def apply(self, entries: Iterable[Entry]) -> None:
        """Add entries, in their order."""
        for entry in entries:
            self._apply(entry)

    def _apply(self, entry: Entry) -> None:
        match entry:
            case CommandSeen(command):
                self.seen[command] = entry
            case EpochReached(epoch):
                self.epoch = max(self.epoch, epoch)
            case LeaseKept(lease):
                self.leases[lease.key] = lease
            case LeaseDropped(guest, knob):
                self.leases.pop((guest, knob), None)
            case OperationKept(operation):
                self.operations[operation.command.id] = operation
            case OperationDropped(command):
                self.operations.pop(command, None)
            case OutcomeKept(outcome):
                self.outcomes.setdefault(outcome.id, entry)
            case OutcomePublished(id_):
                self._publish(id_)

    def _publish(self, outcome_id: str) -> None:
        kept = self.outcomes.get(outcome_id)
        if kept is not None:
            self.outcomes[outcome_id] = OutcomeKept(kept.outcome, published=True)

    def unpublish(self, outcome_id: str) -> None:
        """Let a known outcome be published once more."""
        kept = self.outcomes.get(outcome_id)
        if kept is not None:
            self.outcomes[outcome_id] = OutcomeKept(kept.outcome, published=False)

    def entries(self) -> Iterator[Entry]:
        """Give the entries that make this ledger."""
        yield Opened(VERSION)
        yield EpochReached(self.epoch)
        yield from self.seen.values()
        yield from map(LeaseKept, self.leases.values())
        yield from map(OperationKept, self.operations.values())
        yield from self.outcomes.values()

    def prune(self, now_ns: int) -> None:
        """Forget commands that are past their time, and their outcomes once those are published."""
        busy = set(self.operations) | {lease.command for lease in self.leases.values()}
        busy |= {lease.release for lease in self.leases.values()}
        for command, seen in list(self.seen.items()):
            if seen.keep_until_ns < now_ns and command not in busy:
                del self.seen[command]
        for outcome_id, kept in list(self.outcomes.items()):
            if kept.published and kept.outcome.command not in self.seen:
                del self.outcomes[outcome_id]
