"""What windows say at each moment to come: their points as they will be, evaluated for all moments at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from virtpilot.rules.language.typed import Window
from virtpilot.rules.signals.film.reels import Reel
from virtpilot.rules.signals.history import UNIT_NS, History, Newest, Points
from virtpilot.rules.signals.over_time import evaluate
from virtpilot.rules.signals.windows import Track

_NEVER = np.iinfo(np.int64).max


class _Candidates(NamedTuple):
    """The points of one series, oldest first: each counts from one moment on until another."""

    time: NDArray[np.int64]
    value: NDArray[np.float64]
    weight: NDArray[np.uint16] | None
    begins: NDArray[np.int64]
    ends: NDArray[np.int64]


class Past:
    """One track's points at the moments of a reel; `told` are its series' numbers at each, moments by rows."""

    def __init__(self, track: Track, reel: Reel, told: Sequence[NDArray[np.float64]]) -> None:
        self._track = track
        self._reel = reel
        self.told = told
        self._points = self._foreseen()

    def _foreseen(self) -> list[_Candidates]:
        """Return the points of each series, as the history itself would make them."""
        reel, history = self._reel, self._track.history
        ahead = history.part(reel.where)
        coming = ahead.foresee(reel.times[1:], [one[1:] for one in self.told])
        steps = [int(history.steps(reel.where)[0]), *(reel.times[1:] // history.step_ns).tolist()]
        return [self._candidates(history, series, newest, steps) for series, newest in enumerate(coming)]

    def _candidates(self, history: History, series: int, coming: Newest, steps: Sequence[int]) -> _Candidates:
        reel, rows = self._reel, len(self._reel.rows)
        ((_some, _times, known),) = history.points(reel.where, np.full(rows, reel.times[0]), series)
        count = len(known.time)
        units = reel.times[1:] // UNIT_NS * UNIT_NS
        moments = np.arange(1, len(reel.times))
        # A point is another one as soon as a sample joins it.
        replaced = np.array(
            [after if steps[after] == steps[after - 1] else _NEVER for after in moments.tolist()], np.int64
        )
        ends_known = np.full(count, _NEVER)
        if count and (known.valid[-1] & (known.time[-1] >= steps[0] * history.step_ns)).any():
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
        reel, points = self._reel, self._points[self._track.place(window)]
        rows, count = len(reel.rows), len(reel.times)
        moments, times = np.repeat(np.arange(count), rows), np.repeat(reel.times, rows)
        time, value = np.tile(points.time, (1, count)), np.tile(points.value, (1, count))
        valid = np.isfinite(value) & (time > times - window.span_ns)
        valid &= (points.begins[:, None] <= moments) & (moments < points.ends[:, None])
        weight = None if points.weight is None else np.tile(points.weight, (1, count))
        found: NDArray[np.float64] = evaluate(window, Points(time, value, weight, valid), times)
        return found.reshape(count, rows)
