"""Load averages from /proc/loadavg (proc(5))."""

from __future__ import annotations

import math

from virtpilot.collectors.source import Found, Look


def parse(text: str) -> dict[str, float]:
    """Return the load over 1, 5 and 15 minutes; raises ValueError where the text is not a loadavg."""
    names = ("load1_count", "load5_count", "load15_count")
    found = dict(zip(names, map(float, text.split()[:3]), strict=True))
    if not all(0 <= load < math.inf for load in found.values()):
        raise ValueError(f"no load averages: {found}")
    return found


def collect(look: Look) -> Found:
    """Return the load averages."""
    return Found({**parse(look.tree.read("proc/loadavg"))})
