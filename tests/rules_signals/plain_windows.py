"""What a window says of one subject's samples, as plainly as it can be written: lists of (time, value)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

import numpy as np

from virtpilot.clock import SECOND
from virtpilot.rules.language.typed import Window

STEPS = 120
UNIT_NS = 100_000
LONG_NS = 1200 * SECOND
Point = tuple[int, float, int]  # time, value, how many samples


def points_of(samples: Sequence[tuple[int, float]], window: Window) -> list[Point]:
    """Merge the samples of each step of the window's span; a point has the time of its step's last sample."""
    step, merge = max(window.span_ns // STEPS, 1), window.merge
    short = window.span_ns > LONG_NS and window.what != "counter"
    found: list[Point] = []
    for _number, group in itertools.groupby(samples, lambda sample: sample[0] // step):
        of_step = list(group)
        merged, number = math.nan, 0
        for _time, value in of_step:
            if math.isfinite(value):
                number += 1
                merged = value if number == 1 else _merged(merge, merged, value, number)
                merged = float(np.float32(merged)) if short else merged
        if number:
            found.append((of_step[-1][0] // UNIT_NS * UNIT_NS, merged, number))
    return found


def _merged(merge: str, old: float, value: float, number: int) -> float:
    return {
        "mean": old + (value - old) / number,
        "min": min(old, value),
        "max": max(old, value),
        "last": value,
    }[merge]


def window_value(window: Window, samples: Sequence[tuple[int, float]], now_ns: int) -> float | None:
    """Return a window's value at a time, None where it is not known."""
    inside = [p for p in points_of(samples, window) if p[0] > now_ns - window.span_ns]
    late = [p for p in inside if p[0] > now_ns - window.span_ns // 2]
    if not late or len(late) == len(inside):
        return None
    found = _function(window, inside, now_ns)
    return found if found is not None and math.isfinite(found) else None


def _function(window: Window, points: list[Point], now_ns: int) -> float | None:
    values = [value for _time, value, _number in points]
    number = float(sum(number for _time, _value, number in points))
    name = window.function
    if name.startswith("p"):
        return sorted(values)[max(math.ceil(len(values) * int(name[1:]) / 100) - 1, 0)]
    if name in {"slope", "forecast"}:
        return _line(window, points, now_ns)
    if name in {"delta", "rate"}:
        grown = values[-1] - values[0]
        if window.what == "counter":
            grown = _total(b if b < a else b - a for a, b in itertools.pairwise(values))
        return grown if name == "delta" else grown / ((points[-1][0] - points[0][0]) / SECOND)
    mean = _total(value * many for _time, value, many in points) / number
    away = _total((value - mean) * (value - mean) * many for _time, value, many in points)
    held = float(round(_total(value * many for _time, value, many in points)))
    return {
        "avg": mean,
        "stddev": math.sqrt(away / number),
        "min": min(values),
        "max": max(values),
        "count": held if window.what == "truth" else number,
        "flaps": float(sum(a != b for a, b in itertools.pairwise(values))),
    }[name]


def _line(window: Window, points: list[Point], now_ns: int) -> float | None:
    newest = points[-1][0]
    when = [(time - newest) / SECOND for time, _value, _number in points]
    middle = _total(when) / len(points)
    mean = _total(value for _time, value, _number in points) / len(points)
    spread = _total((x - middle) * (x - middle) for x in when)
    if spread == 0:
        return None
    rise = _total((x - middle) * (value - mean) for x, (_time, value, _number) in zip(when, points, strict=True))
    slope = rise / spread
    if window.function == "slope":
        return slope
    return mean + slope * ((now_ns + window.ahead_ns - newest) / SECOND - middle)


def _total(values: Iterable[float]) -> float:
    """Add up from the first to the last; `sum` of newer Pythons compensates, and says other bits."""
    total = 0.0
    for value in values:
        total += value
    return total
