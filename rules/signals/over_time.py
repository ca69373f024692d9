"""What a window says of its points: one number a row, NaN where too little is known.

Sums are taken strictly from the oldest point to the newest, so that neither the number of rows nor the size of a ring
changes a single bit of a result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from virtpilot.clock import SECOND
from virtpilot.rules.language.functions import quantile
from virtpilot.rules.language.typed import Window
from virtpilot.rules.signals.history import Points

Numbers = NDArray[np.float64]


def evaluate(window: Window, points: Points, times: NDArray[np.int64]) -> Numbers:
    """Return a window's value at each row's time; unknown unless both halves of the window have a sample."""
    count, rows = points.time.shape
    if count == 0:
        return np.full(rows, np.nan)
    late = points.time > times - window.span_ns // 2
    covered = (points.valid & late).any(axis=0) & (points.valid & ~late).any(axis=0)
    if not covered.any():
        return np.full(rows, np.nan)
    percent = quantile(window.function)
    if percent is not None:
        found = _percentile(points, percent)
    elif window.function == "forecast":
        found = _line(points, times + window.ahead_ns)
    elif window.function in {"rate", "delta"}:
        found = _change(points, window)
    elif window.function == "count":
        found = _count(points, of_truth=window.what == "truth")
    else:
        found = _SIMPLE[window.function](points)
    # A zero has no sign: what is added before the first point must not show.
    return np.where(covered & np.isfinite(found), found + 0.0, np.nan)


def _sum(values: NDArray[np.float64]) -> Numbers:
    """Add up each row's values in order: NumPy's own sum adds in pairs where rows are few."""
    total: Numbers = np.cumsum(values, axis=0)[-1]
    return total


def _values(points: Points) -> Numbers:
    return np.where(points.valid, points.value, 0.0)


def _weights(points: Points) -> Numbers:
    if points.weight is None:
        return points.valid.astype(np.float64)
    return np.where(points.valid, points.weight, 0).astype(np.float64)


def _avg(points: Points) -> Numbers:
    weights = _weights(points)
    return _sum(_values(points) * weights) / _sum(weights)


def _stddev(points: Points) -> Numbers:
    weights = _weights(points)
    away = np.where(points.valid, points.value - _avg(points), 0.0)
    return np.sqrt(_sum(away * away * weights) / _sum(weights))


def _count(points: Points, *, of_truth: bool) -> Numbers:
    """Return the number of samples, of a condition's those that held."""
    weights = _weights(points)
    return np.rint(_sum(weights * _values(points))) if of_truth else _sum(weights)


def _min(points: Points) -> Numbers:
    least: Numbers = np.where(points.valid, points.value, np.inf).min(axis=0)
    return least


def _max(points: Points) -> Numbers:
    most: Numbers = np.where(points.valid, points.value, -np.inf).max(axis=0)
    return most


def _percentile(points: Points, percent: int) -> Numbers:
    """Return the nearest rank: a value that was measured."""
    count = np.count_nonzero(points.valid, axis=0)
    rank = np.maximum(-(-count * percent // 100) - 1, 0)
    ordered = np.sort(np.where(points.valid, points.value, np.inf), axis=0)
    found: Numbers = np.take_along_axis(ordered, rank[None], axis=0)[0]
    return found


def _steps(points: Points) -> tuple[Numbers, Numbers, NDArray[np.bool_]]:
    """Return the change to each point from the one before it, the points, and where there are two such points."""
    if points.valid.all():
        return np.diff(points.value, axis=0), points.value[1:], points.valid[1:]
    places = np.arange(len(points.valid))[:, None]
    known = np.maximum.accumulate(np.where(points.valid, places, -1), axis=0)[:-1]
    before = np.take_along_axis(points.value, np.maximum(known, 0), axis=0)
    there = points.valid[1:] & (known >= 0)
    return np.where(there, points.value[1:] - before, 0.0), points.value[1:], there


def _flaps(points: Points) -> Numbers:
    changes, _values_after, there = _steps(points)
    return np.asarray(np.count_nonzero((changes != 0) & there, axis=0), np.float64)


def _grown(points: Points) -> Numbers:
    """Return by how much a counter has grown."""
    changes, after, there = _steps(points)
    if not len(there):
        return np.zeros(points.valid.shape[1])
    changes = np.where(changes < 0, after, changes)
    return _sum(np.where(there, changes, 0.0))


def changes(window: Window, points: Points) -> Numbers:
    """Return how much there is to a window of flaps or of a counter's growth, whether or not enough is known for it."""
    return _flaps(points) if window.function == "flaps" else _grown(points)


def _change(points: Points, window: Window) -> Numbers:
    """Return by how much a value changed, or grows per second; a counter that fell began again at 0."""
    oldest, newest = _oldest(points), _newest(points)
    total = _grown(points) if window.what == "counter" else _at(points.value, newest) - _at(points.value, oldest)
    if window.function == "delta":
        return np.asarray(total, np.float64)
    took = (_at(points.time, newest) - _at(points.time, oldest)) / SECOND
    return np.asarray(np.divide(total, took, out=np.full(len(total), np.nan), where=took > 0), np.float64)


def _at(values: Any, places: NDArray[np.int64]) -> Any:
    """Return what stands at a place of each row."""
    return np.take_along_axis(values, places[None], axis=0)[0]


def _oldest(points: Points) -> NDArray[np.int64]:
    first: NDArray[np.int64] = points.valid.argmax(axis=0)
    return first


def _newest(points: Points) -> NDArray[np.int64]:
    last: NDArray[np.int64] = len(points.valid) - 1 - points.valid[::-1].argmax(axis=0)
    return last


def _fit(points: Points) -> tuple[NDArray[np.int64], Numbers, Numbers, Numbers]:
    """Return the newest point's time, and of the line through the points: mean time (s, from then), mean, slope."""
    count = np.count_nonzero(points.valid, axis=0).astype(np.float64)
    newest: NDArray[np.int64] = _at(points.time, _newest(points))
    when = np.where(points.valid, (points.time - newest) / SECOND, 0.0)
    value = _values(points)
    middle, mean = _sum(when) / count, _sum(value) / count
    across = np.where(points.valid, when - middle, 0.0)
    spread = _sum(across * across)
    rise = _sum(across * np.where(points.valid, value - mean, 0.0))
    return newest, middle, mean, np.divide(rise, spread, out=np.full(len(rise), np.nan), where=spread > 0)


def _slope(points: Points) -> Numbers:
    return _fit(points)[3]


def _line(points: Points, at: NDArray[np.int64]) -> Numbers:
    newest, middle, mean, slope = _fit(points)
    return mean + slope * ((at - newest) / SECOND - middle)


_SIMPLE: Final[Mapping[str, Callable[[Points], Numbers]]] = {
    "avg": _avg,
    "stddev": _stddev,
    "min": _min,
    "max": _max,
    "flaps": _flaps,
    "slope": _slope,
}
