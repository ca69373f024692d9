"""The recent past of a number on all subjects of a kind: points in columns, a bounded ring each.

Samples that fall into one step of a window (1/360 of its span) become one point: their mean, least, greatest or last
value at the last one's time. A window of an hour keeps every sample of an interval of 10 s; a longer one is thinned.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

STEPS: Final = 360
_FIRST_SLOTS: Final = 8
# A window touches one step more than it is long; one slot more is for the point that has just left it.
_MOST_SLOTS: Final = STEPS + 2


class Points(NamedTuple):
    """The points of some rows, oldest first; `valid` marks those within the window."""

    time: NDArray[np.int64]
    value: NDArray[np.float64]
    weight: NDArray[np.int64]
    valid: NDArray[np.bool_]


class History:
    """A ring of points for each row; rows and slots grow by doubling, slots up to a limit."""

    def __init__(self, span_ns: int, merge: str, capacity: int) -> None:
        self.span_ns = span_ns
        self._step_ns = max(span_ns // STEPS, 1)
        self._merge = merge
        self._time: NDArray[np.int64] = np.zeros((capacity, _FIRST_SLOTS), np.int64)
        self._value: NDArray[np.float64] = np.zeros((capacity, _FIRST_SLOTS), np.float64)
        self._weight: NDArray[np.int32] = np.zeros((capacity, _FIRST_SLOTS), np.int32)
        self._head: NDArray[np.int64] = np.zeros(capacity, np.int64)
        self._size: NDArray[np.int64] = np.zeros(capacity, np.int64)

    @property
    def nbytes(self) -> int:
        """How much memory it takes."""
        return self._time.nbytes + self._value.nbytes + self._weight.nbytes

    @property
    def slots(self) -> int:
        """How many points a row has room for just now."""
        return int(self._time.shape[1])

    def grow(self, capacity: int) -> None:
        """Make room for more rows."""
        more = capacity - len(self._size)
        if more > 0:
            self._head, self._size = np.pad(self._head, (0, more)), np.pad(self._size, (0, more))
            self._time = np.pad(self._time, ((0, more), (0, 0)))
            self._value = np.pad(self._value, ((0, more), (0, 0)))
            self._weight = np.pad(self._weight, ((0, more), (0, 0)))

    def clear(self, row: int) -> None:
        """Forget a row."""
        self._size[row] = 0

    def push(self, rows: NDArray[np.int64], times: NDArray[np.int64], values: NDArray[np.float64]) -> None:
        """Take a sample of each row; what is not finite is no sample."""
        known = np.isfinite(values)
        if not known.all():
            rows, times, values = rows[known], times[known], values[known]
        head = self._head[rows]
        same = (self._size[rows] > 0) & (self._time[rows, head] // self._step_ns == times // self._step_ns)
        if same.any():
            self._join(rows[same], head[same], times[same], values[same])
            rows, times, values = rows[~same], times[~same], values[~same]
        if len(rows):
            self._append(rows, times, values)

    def _join(
        self,
        rows: NDArray[np.int64],
        head: NDArray[np.int64],
        times: NDArray[np.int64],
        values: NDArray[np.float64],
    ) -> None:
        at, old = (rows, head), self._value[rows, head]
        self._time[at] = times
        self._weight[at] += 1
        match self._merge:
            case "mean":
                self._value[at] = old + (values - old) / self._weight[at]
            case "min":
                self._value[at] = np.minimum(old, values)
            case "max":
                self._value[at] = np.maximum(old, values)
            case _:
                self._value[at] = values

    def _append(self, rows: NDArray[np.int64], times: NDArray[np.int64], values: NDArray[np.float64]) -> None:
        slots = self._time.shape[1]
        if slots < _MOST_SLOTS and (self._size[rows] == slots).any():
            self._more_slots()
            slots = self._time.shape[1]
        head = (self._head[rows] + 1) % slots
        self._head[rows] = head
        self._size[rows] = np.minimum(self._size[rows] + 1, slots)
        self._time[rows, head], self._value[rows, head], self._weight[rows, head] = times, values, 1
        self._shed(rows, times)

    def _shed(self, rows: NDArray[np.int64], times: NDArray[np.int64]) -> None:
        """Drop the oldest points that have left the window, so that the ring grows no further than it needs."""
        slots = self._time.shape[1]
        full = self._size[rows] == slots
        if not full.any():
            return
        rows, times = rows[full], times[full]
        inside = self._time[rows] > (times - self.span_ns)[:, None]
        self._size[rows] = np.count_nonzero(inside, axis=1)

    def _more_slots(self) -> None:
        """Put every ring straight, its newest point last, and double the room."""
        slots = self._time.shape[1]
        more = min(slots, _MOST_SLOTS - slots)
        order = (self._head[:, None] + 1 + np.arange(slots)) % slots
        rows = np.arange(len(order))[:, None]
        self._time = np.pad(self._time[rows, order], ((0, 0), (0, more)))
        self._value = np.pad(self._value[rows, order], ((0, 0), (0, more)))
        self._weight = np.pad(self._weight[rows, order], ((0, 0), (0, more)))
        self._head[:] = slots - 1

    def points(self, rows: NDArray[np.int64], times: NDArray[np.int64]) -> Points:
        """Return the points of rows within the window that ends, for each row, at its time."""
        sizes = self._size[rows]
        most = int(sizes.max(initial=0))
        back = np.arange(most - 1, -1, -1)
        at = (rows[:, None], (self._head[rows][:, None] - back) % self._time.shape[1])
        time = self._time[at]
        valid = (back < sizes[:, None]) & (time > (times - self.span_ns)[:, None])
        return Points(time, self._value[at], self._weight[at].astype(np.int64), valid)

    def load(self, row: int, times: NDArray[np.int64], values: NDArray[np.float64], weights: NDArray[np.int64]) -> None:
        """Replace a row's points, oldest first."""
        count = len(times)
        while self._time.shape[1] < min(count, _MOST_SLOTS):
            self._more_slots()
        kept = min(count, self._time.shape[1])
        self._time[row, :kept], self._value[row, :kept] = times[count - kept :], values[count - kept :]
        self._weight[row, :kept] = weights[count - kept :]
        self._head[row], self._size[row] = kept - 1, kept
