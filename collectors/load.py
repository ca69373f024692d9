"""Load averages from /proc/loadavg (proc(5))."""

from __future__ import annotations

from collections.abc import Callable


def collect(read: Callable[[str], str]) -> dict[str, int | float]:
    """Return the load over 1, 5 and 15 minutes; raises ValueError where the text is not a loadavg."""
    names = ("load1_count", "load5_count", "load15_count")
    return dict(zip(names, map(float, read("loadavg").split()[:3]), strict=True))
