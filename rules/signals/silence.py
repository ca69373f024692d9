"""Who has not been heard of for how long: silent, or gone."""

from __future__ import annotations

import numpy as np

from virtpilot.rules.signals.table import Table
from virtpilot.rules.signals.tolerance import Tolerance


def absent(table: Table, tolerance: Tolerance, now_ns: int) -> tuple[list[str], list[str]]:
    """Return the subjects that are silent and those that are gone, by id."""
    rows = table.taken()
    silence = now_ns - table.time[rows]
    borne_ns = min(tolerance.stale_ns, tolerance.forget_ns)
    if not len(rows) or -tolerance.ahead_ns <= silence.min() <= silence.max() <= borne_ns:
        return [], []  # as it is nearly always
    usual = tolerance.gap_intervals * table.interval[rows]
    gone = (silence > tolerance.forget_ns) | (silence < -tolerance.ahead_ns)
    quiet = (silence > np.maximum(tolerance.stale_ns, usual)) & ~gone
    return table.ids(rows[quiet]), table.ids(rows[gone])


def next_absence_ns(table: Table, tolerance: Tolerance, now_ns: int) -> int | None:
    """Return when the next subject falls silent, or is gone, if nothing more comes; None where none does."""
    rows = table.taken()
    usual = (tolerance.gap_intervals * table.interval[rows]).astype(np.int64)
    ends = table.time[rows] + np.maximum(tolerance.stale_ns, usual)
    found = [int(ends[ends >= now_ns].min())] if (ends >= now_ns).any() else []
    gone = gone_ns(table, tolerance.forget_ns, now_ns)
    return min([*found, gone] if gone is not None else found, default=None)


def gone_ns(table: Table, borne_ns: int, now_ns: int) -> int | None:
    """Return when the next one has been silent for so long, if nothing more comes; None where none has."""
    ends = table.time[table.taken()] + borne_ns
    return int(ends[ends >= now_ns].min()) if (ends >= now_ns).any() else None
