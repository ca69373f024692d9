"""Live migration of one guest: pre-check, start, follow, verify (virDomainMigrateToURI3, peer to peer)."""

from __future__ import annotations

from virtpilot.actuators.journal import Started
from virtpilot.clock import SECOND
from virtpilot.errors import CommandRefused, GuestNotFound, HypervisorError
from virtpilot.hypervisor import GuestState, Hypervisor, Job, JobState
from virtpilot.model import Migrate


class MigrationLife:
    """One migration under way."""

    def __init__(self, hypervisor: Hypervisor, started: Started, timeout_ns: int) -> None:
        if not isinstance(started.command.action, Migrate):
            raise TypeError("not a migration")
        self.started = started
        self.action = started.command.action
        self._hypervisor = hypervisor
        self._timeout_ns = timeout_ns
        self._job: Job | None = None
        self._aborted = False

    @staticmethod
    def check(hypervisor: Hypervisor, action: Migrate, host: str) -> None:
        """Raise CommandRefused where the guest cannot move."""
        if action.target == host:
            raise CommandRefused("target", "the guest is on this host already")
        state = hypervisor.state(action.guest)
        if state not in {GuestState.RUNNING, GuestState.BLOCKED}:
            raise CommandRefused("state", f"the guest is {state}, not running")

    def start(self) -> None:
        """Begin; raises HypervisorError."""
        self._job = self._hypervisor.migrate(self.action.guest, self.action.uri)

    def poll(self, now_ns: int) -> float | None:
        """Return the seconds that the finished migration took, None while it goes on; raises HypervisorError."""
        if self._job is None:
            raise HypervisorError("the migration was not started")
        status = self._job.poll()
        took_ns = now_ns - self.started.at_ns
        if status.state is JobState.RUNNING:
            if took_ns > self._timeout_ns and not self._aborted:
                self._aborted = True
                self._job.abort()
            return None
        if status.state is JobState.FAILED:
            reason = f"aborted after {took_ns / SECOND:.0f} s: " if self._aborted else ""
            raise HypervisorError(f"{reason}{status.error}")
        if not has_left(self._hypervisor, self.action.guest):
            raise HypervisorError("libvirt says it is done, but the guest still runs here")
        return took_ns / SECOND


def has_left(hypervisor: Hypervisor, guest: str) -> bool:
    """Tell whether a guest does not run on this host."""
    try:
        return hypervisor.state(guest) in {GuestState.SHUTOFF, GuestState.NOSTATE}
    except GuestNotFound:
        return True
