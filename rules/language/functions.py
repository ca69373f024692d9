"""The functions of the language: over a subject's recent history, and over the members of a host or the cluster."""

from __future__ import annotations

import re
from typing import Final

import msgspec

from virtpilot.clock import SECOND
from virtpilot.fields import Unit
from virtpilot.rules.language.nearest import hint

MIN_SPAN_NS: Final = SECOND
MAX_SPAN_NS: Final = 86_400 * SECOND
OVERRIDE: Final = "virtpilot_"
_QUANTILE: Final = re.compile(r"p[1-9][0-9]?")
_PER_SECOND: Final = {
    None: Unit.PER_SECOND,
    Unit.COUNT: Unit.PER_SECOND,
    Unit.RATIO: Unit.PER_SECOND,
    Unit.BYTES: Unit.BYTES_PER_SECOND,
    Unit.SECONDS: Unit.RATIO,
}


class Function(msgspec.Struct, frozen=True):
    """What a window function does with the samples of one step, what it is for, and how many spans it takes."""

    merge: str
    of: frozenset[str]
    spans: int = 1


_GAUGE: Final = frozenset({"gauge"})
WINDOWS: Final[dict[str, Function]] = {
    "avg": Function("mean", frozenset({"gauge", "truth"})),
    "min": Function("min", _GAUGE),
    "max": Function("max", _GAUGE),
    "stddev": Function("mean", _GAUGE),
    "count": Function("mean", frozenset({"gauge", "counter", "truth"})),
    "rate": Function("last", frozenset({"counter"})),
    "delta": Function("last", frozenset({"gauge", "counter"})),
    "slope": Function("mean", _GAUGE),
    "forecast": Function("mean", _GAUGE, spans=2),
    "flaps": Function("last", frozenset({"gauge", "counter", "truth"})),
}
_PERCENTILE: Final = Function("mean", _GAUGE)
MEMBERS: Final = ("avg", "min", "max", "sum", "count", "stddev")
ANY: Final = "any"


def window(name: str) -> Function | None:
    """Return a function over time, None where there is none of that name."""
    return _PERCENTILE if _QUANTILE.fullmatch(name) else WINDOWS.get(name)


def over_members(name: str) -> bool:
    """Tell whether there is a function of that name over members."""
    return name in MEMBERS or _QUANTILE.fullmatch(name) is not None


def quantile(name: str) -> int | None:
    """Return the percent of a function such as p95, None for the others."""
    return int(name[1:]) if _QUANTILE.fullmatch(name) else None


def unknown(name: str) -> str:
    """Return what to say of a function that is not known, "" of one that is."""
    if window(name) is not None or over_members(name):
        return ""
    if name == ANY:
        return "`any` is written `any(disks where <condition>)`; of conditions there is `or`"
    known = [*WINDOWS, *MEMBERS, ANY, "recent", "override", "p50", "p90", "p95", "p99"]
    near = hint(name[:40].lower(), known) or f": there are {', '.join(WINDOWS)}, sum, any and p1 to p99"
    return f"`{name[:40]}(…)` is not a function{near}"


def wrong_input(name: str, what: str) -> str:
    """Return why a window function does not go with a gauge, a counter or a truth."""
    if what == "counter":
        return f"a counter only grows: `{name}` of it says little, use `rate` or `delta`"
    if what == "truth":
        return f"`{name}` is for numbers; of a condition there are avg (the share of time), count and flaps"
    return f"`{name}` is for counters (…_total); of a value that goes up and down use `slope` or `delta`"


def unit_of(name: str, unit: Unit | None) -> Unit | None:
    """Return the unit of a function of a number; raises ValueError where it has none."""
    if name in {"count", "flaps"}:
        return Unit.COUNT
    if name not in {"rate", "slope"}:
        return unit
    if unit not in _PER_SECOND:
        raise ValueError(f"{unit} per second has no meaning")
    return _PER_SECOND[unit]
