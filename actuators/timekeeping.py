"""Time for what runs on this host: a clock that somebody sets makes nothing longer or shorter.

What is written down has the wall clock's times, for a restart of the machine must not lose them; while the agent runs
it also sees the clock that nobody sets. The two part: the clock was set, and all that is under way moves along.
"""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from virtpilot.actuators.ledger import Lease, Operation
from virtpilot.clock import Clock, seconds

# Smaller corrections are followed.
_STEP_NS: Final = seconds(2)


class ClockWatch:
    """Notices that the wall clock was set."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._wall_ns, self._monotonic_ns = clock.now_ns(), clock.monotonic_ns()

    def look(self) -> tuple[int, int]:
        """Return the wall clock's time, and by how much it was set since the last look: 0 for small corrections."""
        wall_ns, monotonic_ns = self._clock.now_ns(), self._clock.monotonic_ns()
        by_ns = (wall_ns - self._wall_ns) - (monotonic_ns - self._monotonic_ns)
        self._wall_ns, self._monotonic_ns = wall_ns, monotonic_ns
        return wall_ns, by_ns if abs(by_ns) >= _STEP_NS else 0


def moved_lease(lease: Lease, by_ns: int) -> Lease:
    """Return a lease that ends so much later."""
    prior = moved_lease(lease.prior, by_ns) if lease.prior is not None else None
    return replace(lease, end_ns=lease.end_ns + by_ns, prior=prior)


def moved_operation(operation: Operation, by_ns: int) -> Operation:
    """Return an operation that was begun, and has to end, so much later."""
    return replace(operation, started_ns=operation.started_ns + by_ns, deadline_ns=operation.deadline_ns + by_ns)
