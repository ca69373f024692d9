"""All windows that the rules in force read, kept up to date sample by sample."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from virtpilot.rules.language.devices import Of
from virtpilot.rules.language.typed import Columns, Numbers, Window
from virtpilot.rules.signals.history import History
from virtpilot.rules.signals.over_time import evaluate
from virtpilot.rules.signals.saved import SavedHistory, kind_of
from virtpilot.rules.signals.table import Table

Series = tuple[Of, str, str, int]
"""What a history is of: whose, the number's text, how samples are merged, how long (ns)."""
# A slice of a history has about so many slots.
_SLOTS_AT_ONCE: Final = 40_000


class _Kept:
    """One history and the windows that are read from it, each with its newest values."""

    def __init__(self, window: Window, capacity: int) -> None:
        self.series = window.series
        self.history = History(window.span_ns, window.merge, capacity)
        self.values: dict[Window, NDArray[np.float64]] = {}
        self.stale: NDArray[np.bool_] = np.zeros(capacity, np.bool_)
        """The rows that have had a sample since their values were looked at."""


class Windows:
    """Histories shared by the windows of one series, span and way of merging; values as of a subject's last sample."""

    def __init__(self, windows: Iterable[Window], tables: dict[Of, Table]) -> None:
        self._kept: dict[Series, _Kept] = {}
        self._tables = tables
        self._of: dict[tuple[Of, str], tuple[_Kept, Window]] = {}
        for window in windows:
            capacity = tables[window.on].capacity
            kept = self._kept.setdefault(_key(window), _Kept(window, capacity))
            if window.key not in self._of:
                self._of[window.key] = (kept, window)
                kept.values[window] = np.full(capacity, np.nan)

    def __len__(self) -> int:
        return len(self._of)

    @property
    def nbytes(self) -> int:
        """How much memory all histories take."""
        return sum(kept.history.nbytes for kept in self._kept.values())

    def value(self, window: Window, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return a window's value of rows, NaN where it is not known and for rows below 0.

        Looked at only now: most windows are read by rules that another condition rules out for a whole message.
        """
        kept, first = self._of[window.key]
        mine = rows[rows >= 0]
        stale = np.unique(mine[kept.stale[mine]])
        if len(stale):
            with np.errstate(all="ignore"):
                self._look(kept, stale, self._tables[first.on].time[stale])
        return gather(kept.values[first], rows)

    def take(self, kind: Of, columns: Columns, rows: NDArray[np.int64], times: NDArray[np.int64]) -> None:
        """Take a sample of each row of a kind."""
        for kept in self._about(kind):
            with np.errstate(all="ignore"):
                values = np.asarray(kept.series(columns, np.nan), np.float64)
                kept.history.push(rows, times, np.broadcast_to(values, len(rows)))
            kept.stale[rows] = True

    def _about(self, kind: Of) -> Iterator[_Kept]:
        return (kept for key, kept in self._kept.items() if key[0] is kind)

    @staticmethod
    def _look(kept: _Kept, rows: NDArray[np.int64], times: NDArray[np.int64]) -> None:
        points = kept.history.points(rows, times)
        kept.stale[rows] = False
        for window, values in kept.values.items():
            values[rows] = evaluate(window, points, times)

    def grow(self, kind: Of, capacity: int) -> None:
        """Make room for more rows of a kind."""
        for kept in self._about(kind):
            kept.history.grow(capacity)
            kept.stale = np.pad(kept.stale, (0, capacity - len(kept.stale)))
            for window, values in kept.values.items():
                kept.values[window] = np.pad(values, (0, capacity - len(values)), constant_values=np.nan)

    def clear(self, kind: Of, row: int) -> None:
        """Forget a row of a kind."""
        for kept in self._about(kind):
            kept.history.clear(row)
            kept.stale[row] = False
            for values in kept.values.values():
                values[row] = np.nan

    def series(self) -> list[Series]:
        """Return what histories there are."""
        return list(self._kept)

    def dump(self, series: Series) -> Iterator[SavedHistory]:
        """Yield a history as it is saved, some subjects at a time."""
        kept, table = self._kept[series], self._tables[series[0]]
        rows, at_once = table.taken(), max(_SLOTS_AT_ONCE // kept.history.slots, 1)
        for first in range(0, len(rows), at_once):
            some = rows[first : first + at_once]
            # Who is there now: others may have gone since the dump began.
            yield _slice(series, kept.history, table, some[table.used[some]])

    def load(self, saved: Iterable[SavedHistory]) -> None:
        """Take up histories that `dump` gave; those that no rule reads any more are left out."""
        for one in saved:
            kind = kind_of(one.kind)
            kept = None if kind is None else self._kept.get((kind, one.series, one.merge, one.span_ns))
            if kind is None or kept is None:
                continue
            table = self._tables[kind]
            (times, values, weights), start = one.points(), 0
            for subject_id, count in one.subjects:
                row = table.row_of.get(subject_id)
                if row is not None:
                    end = start + count
                    kept.history.load(row, times[start:end], values[start:end], weights[start:end])
                    kept.stale[row] = True
                start += count


def _slice(series: Series, history: History, table: Table, rows: NDArray[np.int64]) -> SavedHistory:
    points = history.points(rows, table.time[rows])
    counts = np.count_nonzero(points.valid, axis=1).tolist()
    known = [table.subjects[row] for row in rows.tolist()]
    return SavedHistory(
        *series,
        [(subject.id, count) for subject, count in zip(known, counts, strict=True) if subject and count],
        points.time[points.valid].tobytes(),
        points.value[points.valid].tobytes(),
        b"" if (points.weight[points.valid] == 1).all() else points.weight[points.valid].tobytes(),
    )


def _key(window: Window) -> Series:
    return (window.on, window.series_text, window.merge, window.span_ns)


def gather(values: Numbers, rows: NDArray[np.int64]) -> Numbers:
    """Return the values of rows, NaN for those below 0."""
    found: Numbers = np.where(rows >= 0, values[np.maximum(rows, 0)], np.nan)
    return found
