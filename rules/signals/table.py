"""The newest values of all subjects of one kind, in columns: a row a subject, a column a wanted field."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from virtpilot.clock import SECOND
from virtpilot.model import Kind, Subject
from virtpilot.rules.language.devices import DECLARED, Of
from virtpilot.rules.language.typed import Numbers

_FIRST_ROWS: Final = 64
_ROWS_AT_ONCE: Final = 1000
_LAYOUTS: Final = 256
# The usual interval between samples is followed slowly, so that one gap does not look normal.
_INTERVAL_WEIGHT: Final = 0.2
_SHORTEST_S: Final = 5.0
_LONGEST_S: Final = 3600.0
_INT: Final = np.dtype("<i8")
_FLOAT: Final = np.dtype("<f8")


# Rows that lie side by side are a slice: NumPy is several times faster with one.
Where = slice | NDArray[np.int64]
# The message that all samples are of, or that of each.
Cause = str | NDArray[np.object_]


def whereabouts(rows: NDArray[np.int64]) -> Where:
    """Return rows as an index: a slice where each is the one before it and one more."""
    count = len(rows)
    if not count or int(rows[-1]) - int(rows[0]) != count - 1 or not (rows[1:] > rows[:-1]).all():
        return rows
    return slice(int(rows[0]), int(rows[0]) + count)


def following(usual: NDArray[np.float64], since_last: NDArray[np.int64] | int) -> NDArray[np.float64]:
    """Return the usual intervals (ns) after one more sample of each row; 0 for none yet."""
    follows = usual + _INTERVAL_WEIGHT * (since_last - usual)
    first = np.count_nonzero(usual) < len(usual)
    return np.where(usual == 0.0, since_last, follows) if first else follows


class Row(msgspec.Struct, frozen=True):
    """One subject as last measured; a guest's values also hold its host's as `host.<field>`."""

    subject: Subject
    time_ns: int
    since_ns: int
    values: Mapping[str, float]


class SavedTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table on disk: subjects and causes, and each column as its numbers' bytes (little-endian, 8 a number)."""

    subjects: list[Subject]
    causes: list[str]
    time: bytes
    since: bytes
    interval: bytes
    values: dict[str, bytes]

    def problem(self, kind: Of) -> str:
        """Return what is wrong with it, "" where nothing is."""
        size = 8 * len(self.subjects)
        if any(len(column) != size for column in (self.time, self.since, self.interval, *self.values.values())):
            return f"a column of kind {kind} has not one number for each subject"
        if len(self.causes) != len(self.subjects):
            return f"not every subject of kind {kind} has a cause"
        if len({subject.id for subject in self.subjects}) != len(self.subjects):
            return f"a subject of kind {kind} comes twice"
        owner = kind if isinstance(kind, Kind) else DECLARED[kind].owner
        if any(subject.kind is not owner for subject in self.subjects):
            return f"the subjects of kind {kind} hold one of another kind"
        times = np.concatenate([np.frombuffer(self.time, _INT), np.frombuffer(self.since, _INT)])
        intervals = np.frombuffer(self.interval, _FLOAT)
        if (times < 0).any() or not (np.isfinite(intervals) & (intervals >= 0)).all():
            return f"a time of kind {kind} is none"
        return ""


class Table:
    """Grows by doubling; rows of subjects that have gone are used again."""

    def __init__(self, kind: Of, fields: Iterable[str]) -> None:
        self.kind = kind
        self.fields = tuple(sorted(fields))
        self.column = {name: index for index, name in enumerate(self.fields)}
        self._places: dict[tuple[str, ...], NDArray[np.int64]] = {}
        self._spreads: dict[tuple[str, ...], tuple[NDArray[np.int64], Where, NDArray[np.int64]]] = {}
        self.row_of: dict[str, int] = {}
        self.subjects: list[Subject | None] = []
        self.causes: NDArray[np.object_] = np.full(_FIRST_ROWS, "", np.object_)
        self._free: list[int] = []
        self.values: NDArray[np.float64] = np.full((len(self.fields), _FIRST_ROWS), np.nan)
        self.used: NDArray[np.bool_] = np.zeros(_FIRST_ROWS, np.bool_)
        self.time: NDArray[np.int64] = np.zeros(_FIRST_ROWS, np.int64)
        self.since: NDArray[np.int64] = np.zeros(_FIRST_ROWS, np.int64)
        self.interval: NDArray[np.float64] = np.zeros(_FIRST_ROWS, np.float64)
        self.host_row: NDArray[np.int64] = np.full(_FIRST_ROWS, -1, np.int64)
        self._texts: list[tuple[list[Subject], bytes]] = []
        # Who is there, in order of their coming, as of some changes.
        self._order: tuple[int, list[str], NDArray[np.int64]] = (-1, [], np.zeros(0, np.int64))
        self.capacity = _FIRST_ROWS
        """How many rows there is room for."""
        self.changes = 0
        """Grows with whoever comes or goes."""
        self.moves = 0
        """Grows whenever a row's subject becomes another one, be it by its tags alone."""

    def places(self, names: tuple[str, ...]) -> NDArray[np.int64]:
        """Return the columns of fields."""
        found = self._places.get(names)
        if found is None:
            found = self._places[names] = np.array([self.column[name] for name in names], np.int64)
        return found

    def _spread_of(self, names: tuple[str, ...]) -> tuple[NDArray[np.int64], Where, NDArray[np.int64]]:
        """Return the columns of those given fields that are wanted, their places among the given, and all others."""
        found = self._spreads.get(names)
        if found is None:
            given = np.array([at for at, name in enumerate(names) if name in self.column], np.int64)
            columns = np.array([self.column[names[at]] for at in given.tolist()], np.int64)
            missing = np.setdiff1d(np.arange(len(self.fields)), columns)
            if len(self._spreads) >= _LAYOUTS:
                self._spreads.clear()
            found = self._spreads[names] = (columns, whereabouts(given), missing)
        return found

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
            if row >= self.capacity:
                self._grow()
        self.row_of[subject_id] = row
        self.used[row] = True
        self.changes += 1
        self.values[:, row] = np.nan
        self.time[row] = self.since[row] = 0
        self.interval[row] = 0.0
        self.host_row[row] = -1
        return row

    def remove(self, subject_id: str) -> None:
        """Forget a subject."""
        row = self.row_of.pop(subject_id)
        self.changes += 1
        self.moves += 1
        self.subjects[row] = None
        self.used[row] = False
        self._free.append(row)

    def move(self, by_ns: int) -> None:
        """Move the times of all subjects."""
        rows = self.taken()
        for column in (self.time, self.since):
            column[rows] = np.maximum(column[rows] + by_ns, 0)

    def _grow(self) -> None:
        more = self.capacity
        self.values = np.pad(self.values, ((0, 0), (0, more)), constant_values=np.nan)
        self.causes = np.pad(self.causes, (0, more), constant_values="")
        self.used = np.pad(self.used, (0, more))
        self.time = np.pad(self.time, (0, more))
        self.since = np.pad(self.since, (0, more))
        self.interval = np.pad(self.interval, (0, more))
        self.host_row = np.pad(self.host_row, (0, more), constant_values=-1)
        self.capacity += more

    def put(self, row: int, subject: Subject, time_ns: int, fields: Mapping[str, float], cause: str) -> None:
        """Replace a subject's values; a field that this sample lacks is missing from now on."""
        self.take(np.array([row]), np.array([time_ns], np.int64), [subject], [fields], cause)

    def take(
        self,
        rows: NDArray[np.int64],
        times: NDArray[np.int64],
        subjects: Sequence[Subject],
        fields: Sequence[Mapping[str, float]],
        cause: Cause,
    ) -> None:
        """Replace the values of some subjects, each once; a field that a sample lacks is missing from now on."""
        moved = []
        for row, subject in zip(rows.tolist(), subjects, strict=True):
            known = self.subjects[row]
            if known is not subject:
                self.moves += 1
                self.subjects[row] = subject
            moved.append(known is not subject and (known is None or known.host != subject.host))
        begins = np.array(moved, np.bool_)
        self._mark(rows, times, self.interval[rows], cause)
        self.interval[rows] = np.where(begins, 0.0, self.interval[rows])
        self.since[rows] = np.where(begins, times, self.since[rows])
        if self.fields and len(rows):
            self.values[:, rows] = np.array(self._picked(fields), np.float64).T

    def arranged(self, names: tuple[str, ...], values: Numbers) -> Numbers:
        """Return given fields of some subjects as `values` has them: a field that is not given is missing."""
        columns, given, _missing = self._spread_of(names)
        found = np.full((len(self.fields), values.shape[1]), np.nan)
        found[columns] = values[given]
        return found

    def gathered(self, fields: Sequence[Mapping[str, float]]) -> Numbers:
        """Return the fields of samples as `values` has them."""
        return np.array(self._picked(fields), np.float64).T

    def take_columns(
        self, rows: Where, times: NDArray[np.int64], names: tuple[str, ...], values: Numbers, cause: Cause
    ) -> None:
        """Replace the values of subjects that are still the same, each once; a field that is not given is missing."""
        self._mark(rows, times, self.interval[rows], cause)
        columns, given, missing = self._spread_of(names)
        if isinstance(rows, slice):
            own = self.values[:, rows]
            own[columns], own[missing] = values[given], np.nan
        else:
            self.values[columns[:, None], rows], self.values[missing[:, None], rows] = values[given], np.nan

    def _mark(self, rows: Where, times: NDArray[np.int64], usual: NDArray[np.float64], cause: Cause) -> None:
        """Note when samples came, and of which message."""
        self.causes[rows] = cause
        self.interval[rows] = following(usual, times - self.time[rows])
        self.time[rows] = times

    def _picked(self, fields: Sequence[Mapping[str, float]]) -> Any:
        """Return the wanted fields of each sample in order; the samples of one message mostly have the same ones."""
        first = fields[0]
        there = tuple(name for name in self.fields if name in first)
        if len(there) == len(first) > 1 and all(len(one) == len(first) for one in fields):
            pick, blank = itemgetter(*there), [np.nan] * (len(self.fields) - len(there))
            try:
                return self._spread(there, [(*pick(one), *blank) for one in fields])
            except KeyError:
                pass  # as many fields, but others
        names = self.fields
        return [[found.get(name, np.nan) for name in names] for found in fields]

    def _spread(self, there: tuple[str, ...], picked: list[Any]) -> Any:
        """Put the columns of those fields that are there where they belong, those of the others behind them."""
        order = [*there, *(name for name in self.fields if name not in there)]
        place = [order.index(name) for name in self.fields]
        return np.array(picked, np.float64)[:, place]

    def declared_ns(self, rows: Where) -> NDArray[np.float64] | None:
        """Return how often (ns) each row is sampled from now on, by its own word; 0 where it does not say so.

        None where no row says so.
        Not below five seconds: one that is sampled each second may be silent for a moment.
        """
        column = self.column.get("sample_interval_seconds")
        if column is None:
            return None
        declared_s = self.values[column, rows]
        told = declared_s > 0
        return np.where(told, np.clip(declared_s, _SHORTEST_S, _LONGEST_S) * SECOND, 0.0) if told.any() else None

    def taken(self) -> NDArray[np.int64]:
        """Return the rows that belong to a subject."""
        return np.flatnonzero(self.used[: len(self.subjects)])

    def ids(self, rows: NDArray[np.int64]) -> list[str]:
        """Return whose rows these are, sorted."""
        subjects = self.subjects
        return sorted(subject.id for row in rows.tolist() if (subject := subjects[row]) is not None)

    def rows(self) -> Iterator[tuple[str, int]]:
        """Yield every subject's id and row."""
        return iter(self.row_of.items())

    def present(self, row: int) -> dict[str, float]:
        """Return the values that are there."""
        found = self.values[:, row].tolist()
        return {name: value for name, value in zip(self.fields, found, strict=True) if value == value}  # noqa: PLR0124 - NaN

    def dump(self) -> Iterator[SavedTable]:
        """Yield all rows as they are saved, in order of their coming, some at a time."""
        if self._order[0] != self.changes:
            every = np.fromiter(self.row_of.values(), np.int64, len(self.row_of))
            self._order = (self.changes, list(self.row_of), every)
        changes, ids, every = self._order
        for first in range(0, len(ids), _ROWS_AT_ONCE):
            rows = every[first : first + _ROWS_AT_ONCE]
            if changes != self.changes:
                # Those that have gone since the dump began are left out; a row may be another's by now.
                now = [self.row_of.get(one) for one in ids[first : first + _ROWS_AT_ONCE]]
                rows = rows[[one == row for one, row in zip(now, rows.tolist(), strict=True)]]
            yield self._saved(rows)

    def _saved(self, rows: NDArray[np.int64]) -> SavedTable:
        subjects, where = self.subjects, whereabouts(rows)
        time, since, values = self.time[where], self.since[where], self.values[:, where].astype(_FLOAT, copy=False)
        return SavedTable(
            subjects=[subject for row in rows.tolist() if (subject := subjects[row]) is not None],
            causes=self.causes[where].tolist(),
            time=time.astype(_INT, copy=False).tobytes(),
            since=since.astype(_INT, copy=False).tobytes(),
            interval=self.interval[where].astype(_FLOAT, copy=False).tobytes(),
            values={name: values[at].tobytes() for name, at in self.column.items()},
        )

    def texts(self) -> Iterator[bytes]:
        """Yield what `dump` does as JSON text; subjects hardly ever change, and their text is kept."""
        last = 0
        for last, part in enumerate(self.dump(), 1):
            if last > len(self._texts):
                self._texts.append(([], b"[]"))
            subjects, text = self._texts[last - 1]
            if subjects != part.subjects:
                subjects, text = self._texts[last - 1] = part.subjects, msgspec.json.encode(part.subjects)
            yield msgspec.json.encode({**msgspec.structs.asdict(part), "subjects": msgspec.Raw(text)})
        del self._texts[last:]

    def take_over(self, former: Table) -> None:
        """Go on with the rows of a table that nobody uses any more; fields that are new here have no value yet."""
        self.row_of, self.subjects, self._free = former.row_of, former.subjects, former._free
        self.causes, self.used, self.host_row = former.causes, former.used, former.host_row
        self.time, self.since, self.interval = former.time, former.since, former.interval
        self.capacity = former.capacity
        self.changes, self.moves = former.changes + 1, former.moves + 1
        self._order = (-1, [], np.zeros(0, np.int64))
        self.values = np.full((len(self.fields), self.capacity), np.nan)
        for name in self.column.keys() & former.column.keys():
            self.values[self.column[name]] = former.values[former.column[name]]

    def load(self, saved: SavedTable) -> None:
        """Take up rows that `dump` gave; fields that are not wanted any more are left out."""
        rows = np.array([self.add(subject.id) for subject in saved.subjects], np.int64)
        self.moves += 1
        for row, subject, cause in zip(rows.tolist(), saved.subjects, saved.causes, strict=True):
            self.subjects[row], self.causes[row] = subject, cause
        self.time[rows] = np.frombuffer(saved.time, _INT)
        self.since[rows] = np.frombuffer(saved.since, _INT)
        self.interval[rows] = np.frombuffer(saved.interval, _FLOAT)
        for name in saved.values.keys() & self.column.keys():
            self.values[self.column[name], rows] = np.frombuffer(saved.values[name], _FLOAT)
