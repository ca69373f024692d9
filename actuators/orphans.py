"""Migrations of which sight was lost: an earlier process began them, and libvirtd may carry them on.

The guest's place on both hosts tells how each one ended. One that neither host knows of any more has come to nothing:
no job here, and no guest there, not even one that is just arriving.
"""

from __future__ import annotations

from typing import Final

import structlog
from msgspec.structs import replace

from virtpilot.actuators.aborts import Aborts
from virtpilot.actuators.endings import Endings
from virtpilot.actuators.ledger import Operation, OperationKept, OperationState
from virtpilot.actuators.lifecycle import Site
from virtpilot.actuators.watched import Watched
from virtpilot.clock import seconds
from virtpilot.errors import HypervisorError, HypervisorTimeout
from virtpilot.hypervisor import OFF, RUNNING, GuestState, Matchmaker
from virtpilot.model import Outcome, Result

log = structlog.get_logger(__name__)

# So long a migration is watched of which the hosts do not say that it is over.
ORPHAN_WATCH_NS: Final = seconds(120)
# So long both hosts must have known nothing of it: what an earlier process asked for may take a moment to begin.
QUIET_NS: Final = seconds(5)
# One that did not answer has held up everything for its deadline: so long neither is asked again.
_SILENT_NS: Final = seconds(15)


class Orphans:
    """Judges migrations without a job."""

    def __init__(self, site: Site, endings: Endings, aborts: Aborts, watched: Watched) -> None:
        self._site = site
        self._endings = endings
        self._hypervisor = site.hypervisor
        self._journal = site.journal
        self._aborts = aborts
        self._watched = watched

    def take(self, operation: Operation, now_ns: int) -> None:
        """Watch a migration without a job from now on."""
        orphan = replace(operation, state=OperationState.ORPHANED, deadline_ns=now_ns + ORPHAN_WATCH_NS)
        self._journal.note(OperationKept(orphan))

    def poll(self, operation: Operation, now_ns: int) -> list[Outcome]:
        """Take up a migration that an earlier process left; raises HypervisorError to be tried again."""
        match operation.state:
            case OperationState.PLANNED:
                return [
                    self._endings.end(operation, Result.FAILED, "the agent stopped before the migration began", now_ns)
                ]
            case OperationState.STARTED:
                self.take(operation, now_ns)
                return self._watch(operation, now_ns, over=False)
            case _:
                return self._watch(operation, now_ns, over=now_ns >= operation.deadline_ns)

    def _watch(self, operation: Operation, now_ns: int, *, over: bool) -> list[Outcome]:
        """Judge a migration without a job by the guest's place, and by what the hosts know of a job."""
        place = self._site.place(operation.guest)
        restarted = "the agent restarted or lost sight of the migration"
        if operation.state is OperationState.ABORTING:
            restarted = f"aborted: {operation.why}; {restarted}"
        if place is None or place is GuestState.SHUTOFF:
            return [self._endings.gone(operation, place, restarted, now_ns)]
        if operation.state is OperationState.SWITCHED:
            if place in RUNNING:  # it had not come to that
                self.take(operation, now_ns)
                return []
            restarted = f"{restarted} in post-copy"
        elif not over and self._is_nowhere(operation, now_ns):
            over, restarted = True, f"{restarted}; neither host knows of it any more"
        if over and not self._gives_up(operation, now_ns):
            reason = f"{restarted}; {self._site.whereabouts(place)}"
            return [self._endings.end(operation, Result.FAILED, reason, now_ns)]
        if operation.state is OperationState.ABORTING:
            self._aborts.ask(operation)
        return []

    def _is_nowhere(self, operation: Operation, now_ns: int) -> bool:
        """Tell whether both hosts have known nothing of a migration for a while; an answer that lacks says nothing."""
        command = operation.command.id
        if self._is_known(operation, now_ns):
            self._watched.quiet_ns.pop(command, None)
            return False
        return now_ns - self._watched.quiet_ns.setdefault(command, now_ns) >= QUIET_NS

    def _is_known(self, operation: Operation, now_ns: int) -> bool:
        command, hypervisor = operation.command.id, self._hypervisor
        if (
            not isinstance(hypervisor, Matchmaker)
            or 0 < self._watched.silent_ns.get(command, now_ns) - now_ns <= _SILENT_NS
        ):
            return True
        try:
            if hypervisor.moving(operation.guest):
                return True
            there = self._endings.there(operation)
        except HypervisorError as error:
            log.debug("it is not told whether a guest is moving", guest=operation.guest, error=str(error))
            there = None
        if there is None:
            self._watched.silent_ns[command] = now_ns + _SILENT_NS
        return there is not GuestState.NOSTATE and there not in OFF

    def _gives_up(self, operation: Operation, now_ns: int) -> bool:
        """Abort a migration of which sight was lost, should libvirt still be at it; False where it is not."""
        if operation.state in {OperationState.ABORTING, OperationState.SWITCHED}:
            return False
        try:
            self._aborts.demand(operation)
        except HypervisorTimeout:
            raise
        except HypervisorError as error:
            log.debug("nothing to abort any more", guest=operation.guest, error=str(error))
            return False
        self._aborts.write(operation, "it went on for too long", now_ns)
        return True
