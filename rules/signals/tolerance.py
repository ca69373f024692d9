"""How much silence is borne before nothing is known any more."""

from __future__ import annotations

import msgspec

from virtpilot.clock import seconds


class Tolerance(msgspec.Struct, frozen=True):
    """How much silence is borne."""

    gap_intervals: float = 3.0
    """A gap of so many usual intervals does not restart `for` and `clear_for`."""
    stale_ns: int = seconds(60)
    """A subject silent for longer has no data (at least `gap_intervals`)."""
    forget_ns: int = seconds(3600)
    """A subject silent for longer is gone: its signals end."""
    ahead_ns: int = seconds(300)
    """A sample so far in the future is dropped: its clock is wrong, and the true ones after it would look late."""
