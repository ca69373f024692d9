"""The recent past of some numbers on all subjects of a kind: a bounded ring of points each, in columns.

Samples that fall into one step of a window (1/120 of its span) become one point: their mean, least, greatest or last
value at the time of its last sample. A window of 20 minutes keeps every sample of an interval of 10 s; a longer
one is thinned. Times are kept to a tenth of a millisecond, their lower 32 bits (of 5 days); numbers of windows over 20
minutes to 24 bits (7 digits; what is greater than those hold is absent), but for counters, whose differences need all.

A step has its place in the ring by its number, the same on all subjects, so that what one message brings lies side by
side, and so does each point of all subjects. Places that were never taken cost no memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from virtpilot.clock import SECOND
from virtpilot.rules.signals.ring import MOST, ages_of, holds, layers_of, low_of, merged, wider
from virtpilot.rules.signals.table import Where, whereabouts

STEPS: Final = 120
UNIT_NS: Final = 100_000
LONG_NS: Final = 1200 * SECOND
# A window touches one step more than it is long; one place more is for the point that has just left it.
PLACES: Final = STEPS + 2
# Whenever so many units are over, what is older than the window is forgotten, before its time could be a new one's.
_TURN_BITS: Final = 31
# Into so many groups of rows that were measured at the same times a host's guests are divided at most.
_ALIKE: Final = 4
_MOST_WEIGHT: Final = np.iinfo(np.uint16).max
_Value = NDArray[Any]
_Weight = NDArray[np.uint16]


class Series(NamedTuple):
    """How a number is kept: how samples of one step become one, and whether it is a counter."""

    merge: str
    counter: bool = False


class Points(NamedTuple):
    """The points of some rows, a column a row, oldest first; `valid` marks those that are there."""

    time: NDArray[np.int64]
    value: NDArray[np.float64]
    weight: _Weight | None
    """How many samples each is of, where that is kept: the mean of samples needs it."""
    valid: NDArray[np.bool_]


class Newest(NamedTuple):
    """A series' newest point of some rows after each of some samples: samples by rows, NaN where it is none."""

    value: NDArray[np.float64]
    weight: _Weight


class History:
    """Rings of one span: the times of all subjects' points, and the values of each series."""

    def __init__(self, span_ns: int, series: Sequence[Series], capacity: int) -> None:
        self.span_ns = span_ns
        self.step_ns = max(span_ns // STEPS, 1)
        self._merges = tuple([one.merge for one in series])
        # By place, then by row. 0: nothing was ever there. Else the lower half of the time in units.
        self._time: NDArray[np.uint32] = np.zeros((PLACES, capacity), np.uint32)
        self._value: list[_Value] = [
            np.zeros((PLACES, capacity), np.float32 if span_ns > LONG_NS and not one.counter else np.float64)
            for one in series
        ]
        self._weight: list[_Weight | None] = [
            np.zeros((PLACES, capacity), np.uint16) if merge == "mean" else None for merge in self._merges
        ]
        self.newest: NDArray[np.int64] = np.zeros(capacity, np.int64)
        """The time of each row's last sample, in units; 0 for none."""
        self._step: NDArray[np.int64] = np.full(capacity, -1, np.int64)
        # The time of each row's first sample, in units; 0 for none, and where it is not known.
        self._first: NDArray[np.int64] = np.zeros(capacity, np.int64)

    @property
    def nbytes(self) -> int:
        """How much memory it takes once all places are taken."""
        weights = sum(one.nbytes for one in self._weight if one is not None)
        return self._time.nbytes + sum(one.nbytes for one in self._value) + weights

    @property
    def slots(self) -> int:
        """How many points a row has room for just now."""
        return int(self._time.shape[1])

    def grow(self, capacity: int) -> None:
        """Make room for more rows."""
        more = capacity - len(self.newest)
        if more > 0:
            self.newest = np.pad(self.newest, (0, more))
            self._step = np.pad(self._step, (0, more), constant_values=-1)
            self._first = np.pad(self._first, (0, more))
            self._time = wider(self._time, capacity)
            self._value = [wider(one, capacity) for one in self._value]
            self._weight = [None if one is None else wider(one, capacity) for one in self._weight]

    def move(self, by_ns: int) -> None:
        """Move the times of all points, by whole steps: each keeps its place among the others."""
        steps = by_ns // self.step_ns
        units = steps * self.step_ns // UNIT_NS
        self._forget_old(np.flatnonzero(self.newest), self.newest[self.newest > 0])
        self.newest[self.newest > 0] += units
        self._first[self._first > 0] += units
        self._step[self._step >= 0] += steps
        times = np.maximum((self._time.astype(np.int64) + units) & MOST, 1).astype(np.uint32)
        self._time = np.roll(np.where(self._time == 0, np.uint32(0), times), steps, axis=0)
        self._value = [np.roll(one, steps, axis=0) for one in self._value]
        self._weight = [None if one is None else np.roll(one, steps, axis=0) for one in self._weight]

    def part(self, rows: Where) -> History:
        """Return a copy of some rows."""
        kept = [Series(merge, own.dtype == np.float64) for merge, own in zip(self._merges, self._value, strict=True)]
        found = History(self.span_ns, kept, 0)
        found._time, found.newest = self._time[:, rows].copy(), self.newest[rows].copy()
        found._step, found._first = self._step[rows].copy(), self._first[rows].copy()
        found._value = [one[:, rows].copy() for one in self._value]
        found._weight = [None if one is None else one[:, rows].copy() for one in self._weight]
        return found

    def steps(self, rows: Where) -> NDArray[np.int64]:
        """Return the step of each row's last sample, -1 for none."""
        return self._step[rows]

    def kept(self, series: int, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return numbers as they are kept of a series."""
        return values.astype(self._value[series].dtype, copy=False).astype(np.float64, copy=False)

    def clear(self, row: int) -> None:
        """Forget a row."""
        self._time[:, row] = 0
        self.newest[row], self._step[row], self._first[row] = 0, -1, 0

    def push(self, where: Where, times: NDArray[np.int64], values: Sequence[NDArray[np.float64]]) -> None:
        """Take a sample of each row, newer than the one before it, with a value for each series: NaN where none is."""
        steps = times // self.step_ns
        first = int(steps[0])
        units = times // UNIT_NS
        newest = self.newest[where]
        turns = (newest ^ units) >> _TURN_BITS
        if np.count_nonzero(turns):
            if newest.any():
                self._forget_old(np.arange(self.slots)[where], units)
            self._first[where] = np.where(newest == 0, units, self._first[where])
        alike = isinstance(where, slice) and np.count_nonzero(steps == first) == len(steps)
        places: int | NDArray[np.int64] = first % PLACES if alike else steps % PLACES
        rows = np.arange(where.start, where.stop) if isinstance(where, slice) and not alike else where
        low = self._time[places, rows]
        same = (self._step[where] == steps) & (low != 0)
        if not any(np.isfinite(one).any() for one in values):
            # What has never had a value, such as a job's of guests without one, takes no memory.
            if low.any():
                self._time[places, rows] = np.where(same, low_of(units), 0)
        elif alike and (joins := np.count_nonzero(same)) in {0, len(steps)}:
            self._put((places, rows), units, values, joins=bool(joins))
        else:
            rows = np.arange(where.start, where.stop) if isinstance(where, slice) else where
            for chosen, joined in ((~same, False), (same, True)):
                if chosen.any():
                    at = (steps[chosen] % PLACES, rows[chosen])
                    self._put(at, units[chosen], [one[chosen] for one in values], joins=joined)
        self.newest[where], self._step[where] = units, steps

    def push_all(self, where: Where, times: NDArray[np.int64], values: Sequence[NDArray[np.float64]]) -> None:
        """Push several samples of rows of one step; `values` has for each series samples by rows."""
        deque(self._push_each(where, times, values), maxlen=0)

    def foresee(self, times: NDArray[np.int64], values: Sequence[NDArray[np.float64]]) -> list[Newest]:
        """Do as `push_all` does with all rows; returns of each series the newest point after each sample."""
        shape = (len(times), self.slots)
        found = [Newest(np.full(shape, np.nan), np.zeros(shape, np.uint16)) for _ in self._value]
        for some in self._push_each(slice(0, self.slots), times, values):
            place = times[some] // self.step_ns % PLACES
            for point, own, weight in zip(found, self._value, self._weight, strict=True):
                point.value[some] = np.where(self._time[place] != 0, own[place].astype(np.float64), np.nan)
                if weight is not None:
                    point.weight[some] = weight[place]
        return found

    def _push_each(
        self, where: Where, times: NDArray[np.int64], values: Sequence[NDArray[np.float64]]
    ) -> Iterator[NDArray[np.int64]]:
        """Push several samples of rows; yields those that have just been put, while they are still there."""
        rows = np.arange(self.slots)[where]
        steps, units = times // self.step_ns, times // UNIT_NS
        self._first[rows] = np.where(self.newest[rows] == 0, units[0], self._first[rows])
        if not self._time[:, rows].any() and not any(np.isfinite(one).any() for one in values):
            self.newest[rows], self._step[rows] = units[-1], steps[-1]
            return
        self._forget_old(rows, np.full(len(rows), units[0]))
        layers = layers_of(steps, int(self._step[rows[0]]))
        # In a whole turn of the ring no two steps have one place.
        turns = (steps - steps[0]) // PLACES
        for turn in range(int(turns[-1]) + 1):
            here = turns == turn
            for layer in range(int(layers[here].max(initial=-1)) + 1):
                some = np.flatnonzero(here & (layers == layer))
                if not len(some):
                    continue
                self._put_layer(rows, steps[some], units[some], [one[some] for one in values], joins=layer > 0)
                yield some
        self.newest[rows], self._step[rows] = units[-1], steps[-1]

    def _put_layer(
        self,
        rows: NDArray[np.int64],
        steps: NDArray[np.int64],
        units: NDArray[np.int64],
        values: Sequence[NDArray[np.float64]],
        *,
        joins: bool,
    ) -> None:
        """Put samples of different steps at once; with `joins` each follows another one of its step."""
        place = np.repeat(steps % PLACES, len(rows))
        row, unit = np.tile(rows, len(steps)), np.repeat(units, len(rows))
        told = [one.ravel() for one in values]
        known = np.repeat(np.any([np.isfinite(one).any(axis=1) for one in values], axis=0), len(rows))
        same = (self._time[place, row] != 0) & joins
        for chosen, joined in ((known & ~same, False), (known & same, True)):
            if chosen.any():
                self._put((place[chosen], row[chosen]), unit[chosen], [one[chosen] for one in told], joins=joined)
        self._time[place[~known], row[~known]] = np.where(same, low_of(unit), 0)[~known]

    def _forget_old(self, rows: NDArray[np.int64], units: NDArray[np.int64]) -> None:
        """Empty the places of rows that are older than the window that ends, for each row, at its time in units."""
        low = self._time[:, rows]
        newest = self.newest[rows]
        old = (low != 0) & ((newest - ages_of(newest, low)) * UNIT_NS <= units * UNIT_NS - self.span_ns)
        place, position = np.nonzero(old)
        self._time[place, rows[position]] = 0

    def _put(
        self,
        at: tuple[int | NDArray[np.int64], Where],
        units: NDArray[np.int64],
        values: Sequence[NDArray[np.float64]],
        *,
        joins: bool,
    ) -> None:
        self._time[at] = low_of(units)
        for merge, own, weight, told in zip(self._merges, self._value, self._weight, values, strict=True):
            known = holds(own, told)
            value = np.where(known, told, np.nan)
            if not joins:
                own[at] = value
                if weight is not None:
                    weight[at] = known
                continue
            old = own[at].astype(np.float64)
            if weight is not None:
                count = weight[at] + known.astype(np.int64)
                mean = np.where(np.isfinite(old), old + (value - old) / count, value)
                own[at], weight[at] = np.where(known, mean, old), np.minimum(count, _MOST_WEIGHT)
            else:
                own[at] = merged(merge, old, value)

    def young(self, where: Where, times: NDArray[np.int64]) -> bool:
        """Tell whether no row can have points in both halves of the window that ends at its time."""
        first = self._first[where]
        return bool(((first > 0) & (times - first * UNIT_NS < self.span_ns // 2)).all())

    def points(
        self, where: Where, times: NDArray[np.int64], series: int
    ) -> Iterator[tuple[Where, NDArray[np.int64], Points]]:
        """Yield a series' points within the window that ends, for each row, at its time: of some rows at once.

        Before them come those rows and their times.
        """
        steps = self._step[where]
        first = int(steps[0])
        if np.count_nonzero(steps == first) == len(steps):
            yield where, times, self._of_one_step(first, where, times, series)
            return
        rows = np.arange(where.start, where.stop) if isinstance(where, slice) else where
        for step in sorted(set(steps.tolist())):
            chosen = np.flatnonzero(steps == step)
            some = whereabouts(rows[chosen])
            yield some, times[chosen], self._of_one_step(step, some, times[chosen], series)

    def _of_one_step(self, step: int, where: Where, times: NDArray[np.int64], series: int) -> Points:
        """Return the points of rows whose last sample is of one step: they lie in one order."""
        order = (step + 1 + np.arange(PLACES)) % PLACES
        low = self._time[:, where]
        # Most places of a short window are empty.
        order = order[np.asarray(low.any(axis=1))[order]]
        low, newest = low[order], self.newest[where]
        time = (newest - ages_of(newest, low)) * UNIT_NS
        there = (low != 0) & (time > times - self.span_ns)
        value, weight = self._value[series][:, where][order].astype(np.float64), self._weight[series]
        return Points(time, value, None if weight is None else weight[:, where][order], there & np.isfinite(value))

    def alike(
        self, where: Where, at_ns: int, series: int
    ) -> Iterator[tuple[Where, NDArray[np.int64], NDArray[np.float64]]]:
        """Yield a series' points within the window that ends at a time: of rows that were measured at the same times.

        Each time the places of such rows, their times in no order, and the values: not finite where there is none.
        Rows that are alike with few others are left out in the end.
        """
        low, newest, value = (
            self._time[:, where].copy(),
            self.newest[where],
            self._value[series][:, where].astype(np.float64),
        )
        left = np.arange(len(newest))
        for _ in range(_ALIKE):
            first, last = low[:, 0], newest[:1]
            alike, equal = newest == last, low == first[:, None]
            whole = np.count_nonzero(alike) == len(alike) and np.count_nonzero(equal) == equal.size
            times = (last - ages_of(last, first)) * UNIT_NS
            there = np.flatnonzero((first != 0) & (times > at_ns - self.span_ns))
            if whole:
                yield left, times[there], value[there]
                break
            alike &= equal.all(axis=0)
            yield left[alike], times[there], value[there][:, alike]
            low, newest, value, left = low[:, ~alike], newest[~alike], value[:, ~alike], left[~alike]

    def taken(
        self, rows: NDArray[np.int64], after: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return the places of what is within the span and newer than a time (in units) for each of some rows.

        Of each the position among the rows, the place, the time in units.
        """
        first, last = int(after.min()) * UNIT_NS // self.step_ns, int(self._step[rows].max())
        # Where little is new, few places are looked at.
        places = np.sort(np.arange(max(first, last - PLACES + 1), last + 1) % PLACES)
        where = whereabouts(rows)
        low = self._time[:, where][places] if isinstance(where, slice) else self._time[places[:, None], where]
        newest = self.newest[where]
        age = ages_of(newest, low)
        chosen = (low != 0) & (age * UNIT_NS < self.span_ns) & (age < newest - after)
        position, at = np.divmod(np.flatnonzero(chosen.T), len(places))
        return position, places[at], newest[position] - age[at, position]

    def values(self, at: tuple[NDArray[np.int64], NDArray[np.int64]]) -> list[NDArray[np.float64]]:
        """Return each series' values at places of rows."""
        return [one[at].astype(np.float64) for one in self._value]

    def weights(self, at: tuple[NDArray[np.int64], NDArray[np.int64]]) -> list[_Weight | None]:
        """Return each series' weights at places of rows, None where it keeps none."""
        return [None if one is None else one[at] for one in self._weight]

    def take_over(self, former: History, places: Sequence[int | None]) -> None:
        """Go on with the points of a history of the same span and rows that nobody uses any more.

        `places` tells of each series which one it was there; of one that is new nothing is known of the past.
        """
        self._time, self.newest, self._step, self._first = former._time, former.newest, former._step, former._first
        for series, place in enumerate(places):
            own = self._value[series]
            if place is not None and former._value[place].dtype == own.dtype:
                self._value[series], self._weight[series] = former._value[place], former._weight[place]
            else:
                own[self._time != 0] = np.nan

    def load(
        self,
        rows: NDArray[np.int64],
        units: NDArray[np.int64],
        values: Sequence[NDArray[np.float64]],
        weights: Sequence[_Weight | None],
    ) -> None:
        """Take up points; what a row has already stays where it is newer."""
        steps = units * UNIT_NS // self.step_ns
        fresh = units > self.newest[rows]
        rows, units, steps = rows[fresh], units[fresh], steps[fresh]
        at = (steps % PLACES, rows)
        self._time[at] = low_of(units)
        for own, weight, value, count in zip(self._value, self._weight, values, weights, strict=True):
            own[at] = np.where(holds(own, value[fresh]), value[fresh], np.nan)
            if weight is not None and count is not None:
                weight[at] = count[fresh]
        self._first[rows] = 0
        np.maximum.at(self.newest, rows, units)
        np.maximum.at(self._step, rows, steps)
