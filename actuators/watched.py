"""What this process knows of the migrations under way, each by its command; nothing of it outlives the process."""

from __future__ import annotations

from virtpilot.actuators.convergence import Convergence
from virtpilot.hypervisor import Move


class Watched:
    """Jobs and their progress, what was asked of libvirt, and what the hosts said of those without a job."""

    def __init__(self) -> None:
        self.jobs: dict[str, Move] = {}
        self.progress: dict[str, Convergence] = {}
        self.told_to_end: set[str] = set()
        self.unanswered: set[str] = set()
        # Since when both hosts know nothing of one, and until when its target is not asked again.
        self.quiet_ns: dict[str, int] = {}
        self.silent_ns: dict[str, int] = {}

    def clock_set(self, by_ns: int) -> None:
        """Let what is watched go on as if the clock had not been set by so much."""
        for progress in self.progress.values():
            progress.clock_set(by_ns)
        for times in (self.quiet_ns, self.silent_ns):
            times |= {command: at_ns + by_ns for command, at_ns in times.items()}

    def forget(self, command: str) -> None:
        """Forget a migration that has ended."""
        for known in (self.jobs, self.progress, self.quiet_ns, self.silent_ns):
            known.pop(command, None)
        self.told_to_end.discard(command)
        self.unanswered.discard(command)
