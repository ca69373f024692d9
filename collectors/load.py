"""Load averages from /proc/loadavg (proc(5))."""

from __future__ import annotations

import math
from collections.abc import Callable


def collect(read: Callable[[str], str]) -> dict[str, int | float]:
    """Return the load over 1, 5 and 15 minutes; raises ValueError where the text is not a loadavg."""
    names = ("load1_count", "load5_count", "load15_count")
    found = dict(zip(names, map(float, read("loadavg").split()[:3]), strict=True))
    if not all(0 <= load < math.inf for load in found.values()):
        raise ValueError(f"no load averages: {found}")
    return {**found}
