"""Whether a migration gets anywhere: how much is left at the beginning of each round over the guest's memory.

In a round what is left falls to nothing, and begins again with what the guest has changed meanwhile; so only rounds are
compared. One that begins with a tenth less than the best before it is progress.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from virtpilot.clock import SECOND

PROGRESS_RATIO: Final = 0.9
_ROUNDS: Final = 2


class Convergence:
    """Watches one migration's statistics."""

    def __init__(self, stall_s: float) -> None:
        self._stall_ns = stall_s * SECOND
        self._round = 0.0
        self._most = 0.0
        self._best = float("inf")
        self._vain = 0
        self._since_ns = 0

    def clock_set(self, by_ns: int) -> None:
        """Go on as if the clock had not been set by so much."""
        self._since_ns += by_ns

    def stuck(self, progress: Mapping[str, float], now_ns: int) -> str:
        """Return why a migration counts as stuck, "" while it does not: two rounds in vain, and `stall_s` long."""
        number, left = progress.get("iterations_count", 0.0), progress.get("data_remaining_bytes")
        if left is None or number < 1:
            return ""
        if number != self._round:
            self._judge(now_ns)
            self._round, self._most = number, 0.0
        self._most = max(self._most, left)
        vain_ns = now_ns - self._since_ns
        if not self._stall_ns or self._vain < _ROUNDS or vain_ns < self._stall_ns:
            return ""
        rates = {name: progress.get(f"{name}_bytes_per_second", 0.0) / 1e6 for name in ("dirty", "bandwidth")}
        told = f"it changes {rates['dirty']:.0f} MB/s, {rates['bandwidth']:.0f} MB/s are sent"
        return f"it does not converge: no progress for {vain_ns / SECOND:.0f} s, {told}"

    def _judge(self, now_ns: int) -> None:
        """Compare the round that is over with the best so far."""
        if self._round and self._most >= PROGRESS_RATIO * self._best:
            self._vain += 1
        else:
            self._vain, self._since_ns = 0, now_ns
            self._best = self._most or self._best
