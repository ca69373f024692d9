"""What the guards remember across a restart: tables that tell what has changed in them, so that saving is cheap."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import msgspec

from virtpilot.actuators.guards.bucket import Bucket, Budget
from virtpilot.errors import StateError
from virtpilot.tracked import Tracked


class InFlight(msgspec.Struct, frozen=True, kw_only=True):
    """A command on its way whose outcome has not come."""

    rule: str
    guest: str
    host: str
    target: str
    cooldown_ns: int
    started_ns: int
    spent: list[tuple[Budget, str]] = []
    what: str = ""
    turn: str = ""
    measured: bool = False


class Cooldown(msgspec.Struct, frozen=True):
    """Until when a guest is left alone, and the rule that acted on it last."""

    rule: str
    guest: str
    until_ns: int


class Circuit(msgspec.Struct, frozen=True):
    """A breaker's circuit after failures: how many in a row, how often it has opened since it last closed."""

    failures: int = 0
    last_ns: int = 0
    opened: Annotated[int, msgspec.Meta(ge=0)] = 0
    until_ns: int = 0
    trial: str = ""
    """The command that is the one try of a half-open one, at the longest until `trial_until_ns` or its outcome."""
    trial_until_ns: int = 0


class Foreign(msgspec.Struct, frozen=True):
    """What somebody else did to a guest, or said of it, and until when that counts."""

    what: str
    until_ns: int


class Unfit(msgspec.Struct, frozen=True):
    """What a host lacked for a guest, until when it is not asked again, and how long that is in all."""

    what: str
    until_ns: int
    for_ns: Annotated[int, msgspec.Meta(ge=0)] = 0


class Step(msgspec.Struct, frozen=True):
    """A host that a guest left, or the way a knob went, and when."""

    goal: str
    at_ns: int


class Trail(msgspec.Struct, frozen=True):
    """The last steps of a guest's place or knob, and how often they were returns."""

    steps: Annotated[list[Step], msgspec.Meta(min_length=1)] = []
    swings: Annotated[int, msgspec.Meta(ge=0)] = 0
    swung_ns: int = 0
    damped: bool = False
    """Whether one was held back."""


class Saved(msgspec.Struct, frozen=True):
    """The memory on disk, each table by its keys."""

    in_flight: dict[str, InFlight]
    rules: dict[str, Cooldown]
    guests: dict[str, Cooldown]
    buckets: dict[str, Bucket]
    circuits: dict[str, Circuit]
    foreign: dict[str, Foreign]
    trails: dict[str, Trail]
    unfit: dict[str, Unfit] = {}


class Memory:
    """The tables; each belongs to one guard."""

    def __init__(self) -> None:
        self.in_flight: Tracked[str, InFlight] = Tracked()
        """By the command's id."""
        self.rules: Tracked[str, Cooldown] = Tracked()
        """By `key` of the rule and the guest."""
        self.guests: Tracked[str, Cooldown] = Tracked()
        self.buckets: Tracked[str, Bucket] = Tracked()
        """By `key` of the budget and whose it is."""
        self.circuits: Tracked[str, Circuit] = Tracked()
        """By `key` of `rule` or `host` and its name."""
        self.foreign: Tracked[str, Foreign] = Tracked()
        """By the guest."""
        self.trails: Tracked[str, Trail] = Tracked()
        """By `key` of the guest and what of it."""
        self.unfit: Tracked[str, Unfit] = Tracked()
        """By `key` of the guest and the host."""
        self._tables: Mapping[str, Tracked[str, Any]] = {name: getattr(self, name) for name in Saved.__struct_fields__}

    def saved(self) -> dict[str, dict[str, Any]]:
        """Return all of it; `changes` counts from here."""
        for table in self._tables.values():
            table.changes()
        return {name: dict(table) for name, table in self._tables.items()}

    def changes(self) -> Iterator[tuple[tuple[str, str], object]]:
        """Return what has changed since the last call, by its place in what `saved` gives."""
        for name, table in self._tables.items():
            for entry, value in table.changes().items():
                yield (name, entry), value

    def restore(self, document: object) -> None:
        """Take up where an earlier run ended; raises StateError for what was not saved here, and keeps what is."""
        try:
            kept = msgspec.convert(document, Saved)
        except msgspec.ValidationError as error:
            raise StateError(f"saved guards are not readable: {error}") from error
        for name, table in self._tables.items():
            table.clear()
            table.update(getattr(kept, name))


def key(*parts: str) -> str:
    """Return the key of what is known by several names, none of which has a blank."""
    return " ".join(parts)
