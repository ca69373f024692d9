"""What a window can say at most, or at least, without a look at its points: kept up with each sample, for little.

A rule such as `flaps(state_code, 30m) > 5` can only fire where there were changes since it was last worked out. Where
a bound leaves a comparison open the window is worked out, and the bound begins again from there. A forecast's bound is
not kept up: it is a rough forecast, made where it is asked for. A bound that is not known is infinite; where too little
is known for a value, there may still be a bound.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from virtpilot.clock import SECOND
from virtpilot.rules.language.functions import quantile
from virtpilot.rules.language.typed import Numbers, Window
from virtpilot.rules.signals.history import History, Points
from virtpilot.rules.signals.over_time import changes
from virtpilot.rules.signals.table import Where, whereabouts

# Histories keep 24 bits of some numbers, and sums are rounded: by less than this share.
_SLACK: Final = 1e-6
# Rows are looked at moment by moment where there are few moments, or so many rows of each.
_MOMENTS: Final = 8
_OF_EACH: Final = 8


class Bound(Protocol):
    """A bound of one window on all rows."""

    restless: bool
    """Whether it is another one with each sample, be it the same number again."""

    def grow(self, capacity: int) -> None:
        """Make room for more rows."""

    def forget(self, rows: Where | int) -> None:
        """Know nothing of rows any more."""

    def begin(self, row: int) -> None:
        """Take it that a row has no past."""

    def take(self, where: Where, values: Numbers) -> None:
        """Take a sample of each row."""

    def looked(self, where: Where, points: Points, values: Numbers) -> None:
        """Take note of what the window is just now, and of its points."""

    def now(self, where: Where, times: NDArray[np.int64]) -> Numbers:
        """Return the bound of rows whose last samples came at some times."""

    def ahead(self, where: Where, times: NDArray[np.int64], values: Numbers) -> Numbers:
        """Return what the bound would be, or more, once a sample of each row has been taken."""


def bound(window: Window, capacity: int, points: Callable[[], History], place: int, *, upper: bool) -> Bound | None:
    """Return a bound of a window from above or from below, None where there is none that costs little.

    `points` returns the history that keeps its points, in the series at `place`.
    """
    if window.function == "forecast":
        return _Line(window, capacity, points, place, upper=upper)
    if window.function == "flaps" or (window.function in {"rate", "delta"} and window.what == "counter"):
        return _Changes(window, capacity) if upper else None
    if window.function not in {"avg", "min", "max"} and quantile(window.function) is None:
        return None
    turned = window.function == ("min" if upper else "max")
    return _Witness(window.span_ns, upper, capacity) if turned else _Range(upper, capacity)


class _Range:
    """No mean, percentile, least or greatest value is beyond the outermost of the samples."""

    restless = False

    def __init__(self, upper: bool, capacity: int) -> None:
        self._sign = 1.0 if upper else -1.0
        # Of a row that never had a sample there is none beyond anything.
        self._beyond = np.full(capacity, -np.inf)

    def grow(self, capacity: int) -> None:
        self._beyond = _wider(self._beyond, capacity, -np.inf)

    def forget(self, rows: Where | int) -> None:
        self._beyond[rows] = np.inf

    def begin(self, row: int) -> None:
        self._beyond[row] = -np.inf

    def take(self, where: Where, values: Numbers) -> None:
        self._beyond[where] = np.fmax(self._beyond[where], self._sign * values)

    def looked(self, where: Where, points: Points, values: Numbers) -> None:  # noqa: ARG002 - the protocol's
        self._beyond[where] = np.where(points.valid, self._sign * points.value, -np.inf).max(axis=0, initial=-np.inf)

    def now(self, where: Where, times: NDArray[np.int64]) -> Numbers:  # noqa: ARG002 - the protocol's
        return self._sign * _more(self._beyond[where])

    def ahead(self, where: Where, times: NDArray[np.int64], values: Numbers) -> Numbers:  # noqa: ARG002 - the same
        return self._sign * _more(np.fmax(self._beyond[where], self._sign * values))


class _Witness:
    """The least of samples is not above any of them: the last one, and what was the least while it is in the window."""

    restless = False

    def __init__(self, span_ns: int, upper: bool, capacity: int) -> None:
        self._span_ns = span_ns
        self._sign = 1.0 if upper else -1.0
        self._last = np.full(capacity, np.inf)
        self._least = np.full(capacity, np.inf)
        self._time = np.zeros(capacity, np.int64)

    def grow(self, capacity: int) -> None:
        self._last, self._least = (_wider(one, capacity, np.inf) for one in (self._last, self._least))
        self._time = _wider(self._time, capacity, 0)

    def forget(self, rows: Where | int) -> None:
        self._last[rows] = self._least[rows] = np.inf

    def begin(self, row: int) -> None:
        self.forget(row)

    def take(self, where: Where, values: Numbers) -> None:
        self._last[where] = np.where(np.isfinite(values), self._sign * values, np.inf)

    def looked(self, where: Where, points: Points, values: Numbers) -> None:
        least = self._sign * values
        # The newest point of that value is in the window for longest.
        those = points.valid & (points.value == values)
        self._time[where] = np.where(those, points.time, 0).max(axis=0, initial=0)
        self._least[where] = np.where(np.isfinite(least) & those.any(axis=0), least, np.inf)

    def now(self, where: Where, times: NDArray[np.int64]) -> Numbers:
        return self._sign * _more(np.minimum(self._last[where], self._there(where, times)))

    def ahead(self, where: Where, times: NDArray[np.int64], values: Numbers) -> Numbers:
        last = np.where(np.isfinite(values), self._sign * values, np.inf)
        return self._sign * _more(np.minimum(last, self._there(where, times)))

    def _there(self, where: Where, times: NDArray[np.int64]) -> Numbers:
        """Return what was the least and still is in the window."""
        return np.where(self._time[where] > times - self._span_ns, self._least[where], np.inf)


class _Changes:
    """There are no more changes, and a counter has grown by no more, than when last looked at and since."""

    restless = False

    def __init__(self, window: Window, capacity: int) -> None:
        self._window = window
        self._counter = window.function != "flaps"
        self._rate = window.function == "rate"
        self._last = np.full(capacity, np.nan)
        # Of a row that never had a sample there are none.
        self._most = np.zeros(capacity)

    def grow(self, capacity: int) -> None:
        self._last, self._most = _wider(self._last, capacity, np.nan), _wider(self._most, capacity, 0.0)

    def forget(self, rows: Where | int) -> None:
        self._last[rows], self._most[rows] = np.nan, np.inf

    def begin(self, row: int) -> None:
        self._last[row], self._most[row] = np.nan, 0.0

    def take(self, where: Where, values: Numbers) -> None:
        last = self._last[where]
        changed = values != last
        if np.count_nonzero(changed):
            known = np.isfinite(values)
            self._most[where] += np.where(known & changed, self._grown(last, values), 0.0)
            self._last[where] = np.where(known, values, last)

    def _grown(self, last: Numbers, values: Numbers) -> Numbers:
        # Without a last value there was none, or as much as can be since nobody knows what there was.
        first = np.isnan(last)
        if not self._counter:
            return np.where(first, 0.0, 1.0)
        # A counter that fell began again at 0; what is below 0 is no counter's.
        grown = np.where(values >= last, values - last, values)
        return np.where(first, 0.0, np.where((values >= 0) & (last >= 0), grown, np.inf))

    def looked(self, where: Where, points: Points, values: Numbers) -> None:
        known = np.isfinite(values)
        # Once enough is known, it will be of what there is.
        most = values.copy() if known.all() else np.where(known, values, changes(self._window, points))
        if self._rate:
            most = np.where(most == 0, 0.0, np.inf)
        most[~points.valid.any(axis=0)] = 0.0
        if self._counter:
            most[(points.valid & (points.value < 0)).any(axis=0)] = np.inf
        self._most[where] = most

    def now(self, where: Where, times: NDArray[np.int64]) -> Numbers:  # noqa: ARG002 - the protocol's
        return self._bound(self._most[where])

    def ahead(self, where: Where, times: NDArray[np.int64], values: Numbers) -> Numbers:  # noqa: ARG002 - the same
        last = self._last[where]
        changed = np.isfinite(values) & (values != last)
        return self._bound(self._most[where] + np.where(changed, self._grown(last, values), 0.0))

    def _bound(self, most: Numbers) -> Numbers:
        if self._rate:
            return np.where(most > 0, np.inf, most)
        # Changes are counted: nothing is rounded.
        return _more(most) if self._counter else most


class _Line:
    """A forecast is a sum of weighted values, and rows measured at the same times have the same weights.

    Within a rounding it is what the window would be; it is made once for each sample, and not where a value is missing.
    """

    restless = True

    def __init__(
        self, window: Window, capacity: int, points: Callable[[], History], place: int, *, upper: bool
    ) -> None:
        self._ahead_ns, self._span_ns = window.ahead_ns, window.span_ns
        self._points, self._place = points, place
        self._sign = 1.0 if upper else -1.0
        self._beyond = np.full(capacity, np.inf)
        self._made = np.zeros(capacity, np.bool_)
        # Of all points, and of both halves of the window.
        self._whole = np.zeros(capacity, np.bool_)

    def grow(self, capacity: int) -> None:
        self._beyond = _wider(self._beyond, capacity, np.inf)
        self._whole = _wider(self._whole, capacity, False)
        self._made = _wider(self._made, capacity, False)

    def forget(self, rows: Where | int) -> None:
        self._made[rows] = False

    def begin(self, row: int) -> None:
        self.forget(row)

    def take(self, where: Where, values: Numbers) -> None:  # noqa: ARG002 - the protocol's
        self._made[where] = False

    def looked(self, where: Where, points: Points, values: Numbers) -> None:
        pass

    def now(self, where: Where, times: NDArray[np.int64]) -> Numbers:
        new = ~self._made[where]
        count = np.count_nonzero(new)
        if count == len(new):
            self._make(where, times)
        elif count:
            self._make(np.arange(len(self._made))[where][new], times[new])
        return self._sign * self._beyond[where]

    def sure(self, where: Where, times: NDArray[np.int64]) -> Numbers:
        """Return the bound of rows whose windows have a value for certain; infinite on all others."""
        bound = self.now(where, times)
        return np.where(self._whole[where], bound, self._sign * np.inf)

    def ahead(self, where: Where, times: NDArray[np.int64], values: Numbers) -> Numbers:  # noqa: ARG002 - the same
        return np.full(len(values), self._sign * np.inf)

    def _make(self, where: Where, times: NDArray[np.int64]) -> None:
        if not len(times):
            return
        self._beyond[where], self._made[where], self._whole[where] = np.inf, True, False
        history = self._points()
        for some, at_ns in _moments(where, times):
            beyond, whole = self._beyond[some], self._whole[some]
            for places, when, values in history.alike(some, at_ns, self._place):
                if len(when) > 1:
                    beyond[places] = self._lines((when - at_ns) / SECOND, values)
                    late = np.count_nonzero(when > at_ns - self._span_ns // 2)
                    whole[places] = 0 < late < len(when)
            self._beyond[some], self._whole[some] = beyond, whole

    def _lines(self, when: Numbers, values: Numbers) -> Numbers:
        """Return the forecasts of rows, a column each, turned, with what rounding may add."""
        middle = when.mean()
        away = when - middle
        weights = 1 / len(when) + (self._ahead_ns / SECOND - middle) * away / (away @ away)
        beyond: Numbers = self._sign * (weights @ values) + (np.abs(weights) @ np.abs(values)) * _SLACK
        beyond[np.isnan(beyond)] = np.inf
        return beyond


def sure(bound: Bound | None, where: Where, times: NDArray[np.int64]) -> Numbers | None:
    """Return a bound of rows whose windows have a value for certain, infinite of others; None where none is known."""
    return bound.sure(where, times) if isinstance(bound, _Line) else None


def _moments(where: Where, times: NDArray[np.int64]) -> Iterator[tuple[Where, int]]:
    """Yield the rows of each moment; none where there are too many moments for so few rows."""
    first = int(times[0])
    if np.count_nonzero(times == first) == len(times):
        yield where, first
        return
    rows = np.arange(where.start, where.stop) if isinstance(where, slice) else where
    moments = sorted(set(times.tolist()))
    for at_ns in moments if len(moments) <= max(_MOMENTS, len(rows) // _OF_EACH) else ():
        yield whereabouts(rows[times == at_ns]), at_ns


def _more(numbers: Numbers) -> Numbers:
    """Return what numbers may have been before they were rounded."""
    more: Numbers = numbers + np.abs(numbers) * _SLACK
    return more


def _wider(array: NDArray, capacity: int, fill: float) -> NDArray:  # type: ignore[type-arg]
    return np.pad(array, (0, capacity - len(array)), constant_values=fill)
