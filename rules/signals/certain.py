"""What a window is after a sample where that is certain without a look at its points.

A guest's greatest load of two hours is, sample after sample, what it was or the newest sample, until the point that was
the greatest leaves the window, or it is no longer certain that both halves have one. And where there is no point at
all, as of the jobs of most guests, a sample without a value changes nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from virtpilot.rules.language.typed import Numbers, Window
from virtpilot.rules.signals.history import Points
from virtpilot.rules.signals.table import Where

Values = Mapping[Window, Numbers]
"""The newest values of the windows over a series, by row."""


class Certain(Protocol):
    """What is certain of the windows over one series."""

    some: bool
    """Whether anything is, of any row."""

    def grow(self, capacity: int) -> None:
        """Make room for more rows."""

    def forget(self, rows: Where | int) -> None:
        """Be certain of nothing about rows any more."""

    def take(self, values: Values, where: Where, times: NDArray[np.int64], told: Numbers) -> NDArray[np.bool_]:
        """Take a sample of each row, as histories keep it, into what is certain; tell of which rows nothing is."""

    def looked(self, values: Values, where: Where, times: NDArray[np.int64], points: Points) -> None:
        """Take note of what the windows are just now, and of their points."""


def certain(windows: Collection[Window], capacity: int) -> Certain:
    """Return what can be certain of the windows over one series."""
    first, *others = windows
    return _Outermost(first, capacity) if first.function in {"min", "max"} and not others else _Nothing(capacity)


class _Outermost:
    """A least or greatest value, while what was it is still in the window."""

    def __init__(self, window: Window, capacity: int) -> None:
        self.some = False
        self._window = window
        self._further = np.maximum if window.function == "max" else np.minimum
        self._until: NDArray[np.int64] = np.zeros(capacity, np.int64)

    def grow(self, capacity: int) -> None:
        self._until = np.pad(self._until, (0, capacity - len(self._until)))

    def forget(self, rows: Where | int) -> None:
        self._until[rows] = 0

    def take(self, values: Values, where: Where, times: NDArray[np.int64], told: Numbers) -> NDArray[np.bool_]:
        known, own = (self._until[where] > times) & np.isfinite(told), values[self._window]
        if np.count_nonzero(known):
            before = own[where]
            own[where] = np.where(known, self._further(before, told) + 0.0, before)
        return ~known

    def looked(self, values: Values, where: Where, times: NDArray[np.int64], points: Points) -> None:
        found, span_ns = values[self._window][where], self._window.span_ns
        those = points.valid & (points.value == found)
        early = points.valid & (points.time <= times - span_ns // 2)
        # The newest of each are in the window for longest.
        stays, covers = (np.where(one, points.time, 0).max(axis=0, initial=0) for one in (those, early))
        self._until[where] = np.where(np.isfinite(found), np.minimum(stays, covers) + span_ns, 0)
        self.some = True


class _Nothing:
    """Windows without a point stay unknown."""

    def __init__(self, capacity: int) -> None:
        self.some = False
        self._empty = np.zeros(capacity, np.bool_)

    def grow(self, capacity: int) -> None:
        self._empty = np.pad(self._empty, (0, capacity - len(self._empty)))

    def forget(self, rows: Where | int) -> None:
        self._empty[rows] = False

    def take(self, values: Values, where: Where, times: NDArray[np.int64], told: Numbers) -> NDArray[np.bool_]:  # noqa: ARG002 - the protocol's
        empty = self._empty[where] & ~np.isfinite(told)
        self._empty[where] = empty
        return ~empty

    def looked(self, values: Values, where: Where, times: NDArray[np.int64], points: Points) -> None:  # noqa: ARG002 - the same
        self._empty[where] = ~points.valid.any(axis=0)
        self.some = bool(self._empty.any())
