"""What a window says of one subject's samples, as plainly as it can be written: lists of (time, value)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

from virtpilot.clock import SECOND
from virtpilot.rules.language.typed import Window

STEPS = 360
Point = tuple[int, float, int]  # time, value, how many samples


def points_of(samples: Sequence[tuple[int, float]], span_ns: int, merge: str) -> list[Point]:
    """Merge the samples of each step of the window's span."""
    step = max(span_ns // STEPS, 1)
    found: list[Point] = []
    for time, value in samples:
        if not math.isfinite(value):
            continue
        if found and found[-1][0] // step == time // step:
            _, old, number = found[-1]
            merged = {
                "mean": old + (value - old) / (number + 1),
                "min": min(old, value),
                "max": max(old, value),
                "last": value,
            }[merge]
            found[-1] = (time, merged, number + 1)
        else:
            found.append((time, value, 1))
    return found


def window_value(window: Window, samples: Sequence[tuple[int, float]], now_ns: int) -> float | None:
    """Return a window's value at a time, None where it is not known."""
    inside = [p for p in points_of(samples, window.span_ns, window.merge) if p[0] > now_ns - window.span_ns]
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
