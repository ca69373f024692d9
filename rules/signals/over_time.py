"""What a window says of its points: one number a row, NaN where too little is known.

Sums are taken strictly from the oldest point to the newest, so that neither the number of rows nor the size of a ring
changes a single bit of a result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from virtpilot.clock import SECOND
from virtpilot.rules.language.functions import quantile
from virtpilot.rules.language.typed import Window
from virtpilot.rules.signals.history import Points

Numbers = NDArray[np.float64]


def evaluate(window: Window, points: Points, times: NDArray[np.int64]) -> Numbers:
    """Return a window's value at each row's time; unknown unless both halves of the window have a sample."""
    rows, count = points.time.shape
    if count == 0:
        return np.full(rows, np.nan)
    late = points.time > (times - window.span_ns // 2)[:, None]
    covered = (points.valid & late).any(axis=1) & (points.valid & ~late).any(axis=1)
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
    total: Numbers = np.cumsum(values, axis=1)[:, -1]
    return total


def _weights(points: Points) -> Numbers:
    return np.where(points.valid, points.weight, 0).astype(np.float64)


def _avg(points: Points) -> Numbers:
    weights = _weights(points)
    return _sum(np.where(points.valid, points.value, 0.0) * weights) / _sum(weights)


def _stddev(points: Points) -> Numbers:
    weights = _weights(points)
    away = np.where(points.valid, points.value - _avg(points)[:, None], 0.0)
    return np.sqrt(_sum(away * away * weights) / _sum(weights))


def _count(points: Points, *, of_truth: bool) -> Numbers:
    """Return the number of samples, of a condition's those that held."""
    weights = _weights(points)
    return np.rint(_sum(weights * points.value)) if of_truth else _sum(weights)


def _min(points: Points) -> Numbers:
    least: Numbers = np.where(points.valid, points.value, np.inf).min(axis=1)
    return least


def _max(points: Points) -> Numbers:
    most: Numbers = np.where(points.valid, points.value, -np.inf).max(axis=1)
    return most


def _percentile(points: Points, percent: int) -> Numbers:
    """Return the nearest rank: a value that was measured."""
    count = np.count_nonzero(points.valid, axis=1)
    rank = np.maximum(-(-count * percent // 100) - 1, 0)
    ordered = np.sort(np.where(points.valid, points.value, np.inf), axis=1)
    found: Numbers = np.take_along_axis(ordered, rank[:, None], axis=1)[:, 0]
    return found


def _steps(points: Points) -> tuple[Numbers, NDArray[np.bool_]]:
    """Return the change from each point to the next, and which of them are within the window."""
    changes: Numbers = np.diff(points.value, axis=1)
    return changes, points.valid[:, 1:] & points.valid[:, :-1]


def _flaps(points: Points) -> Numbers:
    changes, valid = _steps(points)
    return np.asarray(np.count_nonzero((changes != 0) & valid, axis=1), np.float64)


def _change(points: Points, window: Window) -> Numbers:
    """Return by how much a value changed, or grows per second; a counter that fell began again at 0."""
    changes, valid = _steps(points)
    if not valid.shape[1]:
        return np.full(len(valid), np.nan)
    if window.what == "counter":
        changes = np.where(changes < 0, points.value[:, 1:], changes)
        total = _sum(np.where(valid, changes, 0.0))
    else:
        total = points.value[:, -1] - np.take_along_axis(points.value, _oldest(points), axis=1)[:, 0]
    if window.function == "delta":
        return np.asarray(total, np.float64)
    took = (points.time[:, -1] - np.take_along_axis(points.time, _oldest(points), axis=1)[:, 0]) / SECOND
    return np.asarray(np.divide(total, took, out=np.full(len(total), np.nan), where=took > 0), np.float64)


def _oldest(points: Points) -> NDArray[np.int64]:
    first: NDArray[np.int64] = points.valid.argmax(axis=1)
    return first[:, None]


def _fit(points: Points) -> tuple[Numbers, Numbers, Numbers]:
    """Return the mean time (s, from the newest point), the mean and the slope per second of the line through points."""
    count = np.count_nonzero(points.valid, axis=1).astype(np.float64)
    when = np.where(points.valid, (points.time - points.time[:, -1:]) / SECOND, 0.0)
    value = np.where(points.valid, points.value, 0.0)
    middle, mean = _sum(when) / count, _sum(value) / count
    across = np.where(points.valid, when - middle[:, None], 0.0)
    spread = _sum(across * across)
    rise = _sum(across * np.where(points.valid, value - mean[:, None], 0.0))
    return middle, mean, np.divide(rise, spread, out=np.full(len(rise), np.nan), where=spread > 0)


def _slope(points: Points) -> Numbers:
    return _fit(points)[2]


def _line(points: Points, at: NDArray[np.int64]) -> Numbers:
    middle, mean, slope = _fit(points)
    return mean + slope * ((at - points.time[:, -1]) / SECOND - middle)


_SIMPLE: Final[Mapping[str, Callable[[Points], Numbers]]] = {
    "avg": _avg,
    "stddev": _stddev,
    "min": _min,
    "max": _max,
    "flaps": _flaps,
    "slope": _slope,
}
