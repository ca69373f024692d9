"""The evaluator's state on disk, checked before any of it is taken up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from virtpilot.errors import StateError
from virtpilot.model import Kind, Signal, SignalState
from virtpilot.rules.language.devices import Device, Of
from virtpilot.rules.signals.table import SavedTable

VERSION: Final = 3
_LATEST: Final = 2**63 // 100_000
Time = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class SavedRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A rule's machine: (subject, state, since, last seen to hold) of all that are not inactive."""

    name: str
    digest: str
    states: list[tuple[str, SignalState, Time, Time]]
    fired: list[tuple[str, Time]] = []


class SavedSeries(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a window's points say of one number: a value a point, NaN where there is none."""

    text: str
    merge: str
    values: bytes
    weights: bytes = b""
    """How many samples each point is of, where that is kept."""

    def numbers(self) -> NDArray[np.float64]:
        """Return the values."""
        return np.frombuffer(self.values, "<f8")

    def counts(self) -> NDArray[np.uint16]:
        """Return the weights."""
        return np.frombuffer(self.weights, "<u2")


class SavedHistory(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The points of one kind and span: how many of each subject, and all of them one after the other in columns."""

    kind: str
    span_ns: Time
    subjects: list[str]
    counts: list[Annotated[int, msgspec.Meta(ge=0, le=1000)]]
    times: bytes
    """In tenths of a millisecond."""
    series: list[SavedSeries]

    def whole(self) -> bool:
        """Tell whether the columns are as long as the subjects say, and hold what a history can hold."""
        count = sum(self.counts)
        if len(self.counts) != len(self.subjects) or len(self.times) != 8 * count:
            return False
        if any(len(one.values) != 8 * count or len(one.weights) not in {0, 2 * count} for one in self.series):
            return False
        times = np.frombuffer(self.times, "<i8")
        return bool((times >= 0).all() and (times < _LATEST).all())


class Saved(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole state."""

    version: int
    tables: dict[str, list[SavedTable]]
    knobs: list[tuple[str, str, float, Time]]
    rules: list[SavedRule]
    windows: list[SavedHistory] = []
    cluster: str = ""


def kind_of(text: str) -> Of | None:
    """Return the kind of subject or device that a text names, None where this version knows none."""
    try:
        return Kind(text) if text in set(Kind) else Device(text)
    except ValueError:
        return None


class Turn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A transition after the whole state was saved: what the machine keeps of it, the time of the newest sample."""

    signal: Signal
    digest: str
    time: Time
    since: Time
    seen: Time


def checked(snapshot: Mapping[str, Any]) -> Saved:
    """Return a snapshot's state; raises StateError where it is another version's or damaged."""
    version = snapshot.get("version") if isinstance(snapshot, Mapping) else None
    if version != VERSION:
        raise StateError(f"signals: version {str(version)[:40]} is not known, this one is {VERSION}")
    try:
        saved = msgspec.convert(snapshot, Saved)
    except msgspec.ValidationError as error:
        raise StateError(f"signals: {error}") from error
    for name, parts in saved.tables.items():
        kind = kind_of(name)
        for part in parts:
            if kind is not None and (problem := part.problem(kind)):
                raise StateError(f"signals: {problem}")
    for _ in checked_histories(saved.windows):
        pass
    return saved


def checked_histories(histories: Iterable[SavedHistory]) -> Iterator[SavedHistory]:
    """Yield windows' points, one after the other: together they are large; raises StateError where some are damaged."""
    for history in histories:
        if not history.whole():
            raise StateError("signals: the points of a window are not whole")
        yield history


def checked_turns(turns: Mapping[str, Any]) -> list[Turn]:
    """Return the transitions since, by when they came; raises StateError."""
    try:
        return sorted(msgspec.convert(list(turns.values()), list[Turn]), key=lambda turn: turn.signal.at_ns)
    except msgspec.ValidationError as error:
        raise StateError(f"signals: {error}") from error
