"""The newest values of all subjects of one kind, in columns: a row a subject, a column a wanted field."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from virtpilot.model import Kind, Subject

_FIRST_ROWS: Final = 64
# The usual interval between samples is followed slowly, so that one gap does not look normal.
_INTERVAL_WEIGHT: Final = 0.2


class Row(msgspec.Struct, frozen=True):
    """One subject as last measured; a guest's values also hold its host's as `host.<field>`."""

    subject: Subject
    time_ns: int
    since_ns: int
    values: Mapping[str, float]


Time = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class SavedRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One subject on disk."""

    subject: Subject
    time: Time
    since: Time
    interval: Annotated[float, msgspec.Meta(ge=0)]
    cause: str
    values: dict[str, float]


class Table:
    """Grows by doubling; rows of subjects that have gone are used again."""

    def __init__(self, kind: Kind, fields: Iterable[str]) -> None:
        self.kind = kind
        self.fields = tuple(sorted(fields))
        self.column = {name: index for index, name in enumerate(self.fields)}
        self.row_of: dict[str, int] = {}
        self.subjects: list[Subject | None] = []
        self.causes: list[str] = []
        self._free: list[int] = []
        self.values: NDArray[np.float64] = np.full((len(self.fields), _FIRST_ROWS), np.nan)
        self.time: NDArray[np.int64] = np.zeros(_FIRST_ROWS, np.int64)
        self.since: NDArray[np.int64] = np.zeros(_FIRST_ROWS, np.int64)
        self.interval: NDArray[np.float64] = np.zeros(_FIRST_ROWS, np.float64)
        self.host_row: NDArray[np.int64] = np.full(_FIRST_ROWS, -1, np.int64)
        self.capacity = _FIRST_ROWS
        """How many rows there is room for."""

    def add(self, subject_id: str) -> int:
        """Return the row of a subject, a fresh one where it is new."""
        row = self.row_of.get(subject_id)
        if row is not None:
            return row
        if self._free:
            row = self._free.pop()
        else:
            row = len(self.subjects)
            self.subjects.append(None)
            self.causes.append("")
            if row >= self.capacity:
                self._grow()
        self.row_of[subject_id] = row
        self.values[:, row] = np.nan
        self.time[row] = self.since[row] = 0
        self.interval[row] = 0.0
        self.host_row[row] = -1
        return row

    def remove(self, subject_id: str) -> None:
        """Forget a subject."""
        row = self.row_of.pop(subject_id)
        self.subjects[row] = None
        self._free.append(row)

    def _grow(self) -> None:
        more = self.capacity
        self.values = np.pad(self.values, ((0, 0), (0, more)), constant_values=np.nan)
        self.time = np.pad(self.time, (0, more))
        self.since = np.pad(self.since, (0, more))
        self.interval = np.pad(self.interval, (0, more))
        self.host_row = np.pad(self.host_row, (0, more), constant_values=-1)
        self.capacity += more

    def put(self, row: int, subject: Subject, time_ns: int, fields: Mapping[str, float], cause: str) -> None:
        """Replace a subject's values; a field that this sample lacks is missing from now on."""
        known = self.subjects[row]
        if known is None or known.host != subject.host:
            self.since[row] = time_ns
            self.interval[row] = 0.0
        elif self.interval[row] == 0.0:
            self.interval[row] = time_ns - int(self.time[row])
        else:
            self.interval[row] += _INTERVAL_WEIGHT * (time_ns - int(self.time[row]) - self.interval[row])
        if known is None or known != subject:
            self.subjects[row] = subject
        self.time[row] = time_ns
        self.causes[row] = cause
        get = fields.get
        self.values[:, row] = [get(name, np.nan) for name in self.fields]

    def rows(self) -> Iterator[tuple[str, int]]:
        """Yield every subject's id and row."""
        return iter(self.row_of.items())

    def present(self, row: int) -> dict[str, float]:
        """Return the values that are there."""
        found = self.values[:, row].tolist()
        return {name: value for name, value in zip(self.fields, found, strict=True) if value == value}  # noqa: PLR0124 - NaN

    def dump(self) -> list[SavedRow]:
        """Return all rows as they are saved."""
        return [
            SavedRow(subject, int(self.time[row]), int(self.since[row]), float(self.interval[row]), self.causes[row],
                     self.present(row))
            for _id, row in self.rows()
            if (subject := self.subjects[row]) is not None
        ]  # fmt: skip

    def load(self, rows: Iterable[SavedRow]) -> None:
        """Take up rows that `dump` gave."""
        for saved in rows:
            row = self.add(saved.subject.id)
            self.put(row, saved.subject, saved.time, saved.values, saved.cause)
            self.since[row] = saved.since
            self.interval[row] = saved.interval
