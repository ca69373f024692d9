"""What windows say at each moment to come: their points as they will be, evaluated for all moments at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from virtpilot.rules.language.typed import Window
from virtpilot.rules.signals.film.reels import Reel
from virtpilot.rules.signals.history import UNIT_NS, Newest, Points
from virtpilot.rules.signals.over_time import evaluate
from virtpilot.rules.signals.windows import Track

_NEVER = np.iinfo(np.int64).max
_EVER = np.iinfo(np.int64).min


class _Candidates(NamedTuple):
    """The points of one series, oldest first: each counts from one moment on until another."""

    time: NDArray[np.int64]
    value: NDArray[np.float64]
    weight: NDArray[np.uint16] | None
    begins: NDArray[np.int64]
    ends: NDArray[np.int64]


class Past:
    """One track's points at the moments of a reel; `told` gives its series' numbers at each, moments by rows."""

    def __init__(self, track: Track, reel: Reel, told: Callable[[], Sequence[NDArray[np.float64]]]) -> None:
        self._track = track
        self._reel = reel
        self._told = told
        # What it is now; most is never asked what it will be.
        self._history = track.history.part(reel.where)
        self.young = self._history.young(slice(None), reel.times[-1:])
        """Whether at no moment both halves of a window can have a point."""

    @cached_property
    def told(self) -> Sequence[NDArray[np.float64]]:
        """The numbers of each series at each moment, moments by rows."""
        return self._told()

    def all_of(self, window: Window) -> NDArray[np.float64]:
        """Return all numbers of which a window's points are ever made, in no order."""
        series = self._track.place(window)
        known = self._known[series]
        found = np.concatenate([self.told[series].ravel(), known.value[known.valid]])
        finite: NDArray[np.float64] = found[np.isfinite(found)]
        return finite

    @cached_property
    def _known(self) -> list[Points]:
        """The points of each series before the first moment to come."""
        times = np.full(len(self._reel.rows), self._reel.times[0])
        every = slice(0, len(times))
        return [
            points
            for series in range(len(self._track.series))
            for _some, _times, points in self._history.points(every, times, series)
        ]

    @cached_property
    def _points(self) -> list[_Candidates]:
        """The points of each series, as the history itself would make them."""
        reel, history, known = self._reel, self._history, self._known
        steps = [int(history.steps(slice(0, 1))[0]), *(reel.times[1:] // history.step_ns).tolist()]
        coming = history.foresee(reel.times[1:], [one[1:] for one in self.told])
        return [self._candidates(*of_one, steps) for of_one in zip(known, coming, strict=True)]

    def _candidates(self, known: Points, coming: Newest, steps: Sequence[int]) -> _Candidates:
        reel, rows = self._reel, len(self._reel.rows)
        count = len(known.time)
        units = reel.times[1:] // UNIT_NS * UNIT_NS
        moments = np.arange(1, len(reel.times))
        # A point is another one as soon as a sample joins it.
        replaced = np.array(
            [after if steps[after] == steps[after - 1] else _NEVER for after in moments.tolist()], np.int64
        )
        ends_known = np.full(count, _NEVER)
        if count and (known.valid[-1] & (known.time[-1] >= steps[0] * self._history.step_ns)).any():
            ends_known[-1] = replaced[0]
        weight = None
        if known.weight is not None:
            weight = np.concatenate([known.weight, coming.weight])
        return _Candidates(
            np.concatenate([known.time, np.repeat(units[:, None], rows, axis=1)]),
            np.concatenate([np.where(known.valid, known.value, np.nan), coming.value]),
            weight,
            np.concatenate([np.zeros(count, np.int64), moments]),
            np.concatenate([ends_known, replaced[1:], [_NEVER]]),
        )

    def value(self, window: Window) -> NDArray[np.float64]:
        """Return a window's value at each moment of each row."""
        reel, series, rows = self._reel, self._track.place(window), len(self._reel.rows)
        found = np.full((len(reel.times), rows), np.nan)
        # Where too little is known nothing is worked out: in tests shorter than their windows everywhere.
        if self.young:
            return found
        points = self._points[series]
        moments = np.flatnonzero(_covered(points, reel.times, window.span_ns))
        if not len(moments):
            return found
        chosen, there = _chosen(points, reel.times, moments, window.span_ns)
        shape = (len(chosen), len(moments) * rows)
        time, value = points.time[chosen].reshape(shape), points.value[chosen].reshape(shape)
        times = np.repeat(reel.times[moments], rows)
        valid = np.repeat(there, rows, axis=1) & np.isfinite(value) & (time > times - window.span_ns)
        weight = None if points.weight is None else points.weight[chosen].reshape(shape)
        found[moments] = evaluate(window, Points(time, value, weight, valid), times).reshape(len(moments), rows)
        return found


def _covered(points: _Candidates, times: NDArray[np.int64], span_ns: int) -> NDArray[np.bool_]:
    """Tell at which moments both halves of a window may have a point of some row: where not, none is known."""
    found = np.zeros(len(times), np.bool_)
    for time, value in zip(points.time.T, points.value.T, strict=True):
        known = time[np.isfinite(value)]
        oldest, middle, newest = (np.searchsorted(known, times - back, "right") for back in (span_ns, span_ns // 2, 0))
        found |= (oldest < middle) & (middle < newest)
    return found


def _chosen(
    points: _Candidates, times: NDArray[np.int64], moments: NDArray[np.int64], span_ns: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return for each of some moments the candidates that may be within the window, oldest first, and which count.

    A point that another one replaces counts as the newest only.
    """
    stays = np.flatnonzero(points.ends == _NEVER)
    latest = np.maximum.accumulate(
        np.where(np.isfinite(points.value[stays]), points.time[stays], _EVER).max(axis=1, initial=_EVER)
    )
    begin = np.searchsorted(latest, times[moments] - span_ns, "right")
    end = np.searchsorted(points.begins[stays], moments, "right")
    most = int((end - begin).max(initial=0))
    place = end - most + np.arange(most)[:, None]
    newest = len(points.begins) - len(times) + moments
    replaced = (newest >= 0) & (points.ends[newest] != _NEVER) & (moments < points.ends[newest])
    return (
        np.concatenate([stays[np.maximum(place, 0)] if len(stays) else place, newest[None]]),
        np.concatenate([place >= begin, replaced[None]]),
    )
