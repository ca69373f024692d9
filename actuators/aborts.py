"""Migrations that are to end: written down, and asked of libvirt until it has taken it once."""

from __future__ import annotations

from typing import Final

import structlog
from msgspec.structs import replace

from virtpilot.actuators.ledger import Operation, OperationKept, OperationState
from virtpilot.actuators.lifecycle import Site
from virtpilot.actuators.watched import Watched
from virtpilot.clock import seconds
from virtpilot.errors import HypervisorError

log = structlog.get_logger(__name__)

# How long an aborted migration may take to end before it is given up.
ABORT_GRACE_NS: Final = seconds(60)


class Aborts:
    """Aborts migrations, with a job or without."""

    def __init__(self, site: Site, watched: Watched) -> None:
        self._hypervisor = site.hypervisor
        self._journal = site.journal
        self._watched = watched

    def write(self, operation: Operation, why: str, now_ns: int) -> None:
        """Write down that a migration is to end."""
        deadline_ns = now_ns + ABORT_GRACE_NS
        aborting = replace(operation, state=OperationState.ABORTING, deadline_ns=deadline_ns, why=why)
        self._journal.note(OperationKept(aborting))

    def ask(self, operation: Operation) -> None:
        """Ask for the end of a migration that is to be aborted, again and again until libvirt has taken it once."""
        if operation.command.id in self._watched.told_to_end:
            return
        try:
            self.demand(operation)
        except HypervisorError as error:
            log.warning("not aborted, tried again", guest=operation.guest, error=str(error))

    def demand(self, operation: Operation) -> None:
        """Ask for the end of a migration; raises HypervisorError."""
        job = self._watched.jobs.get(operation.command.id)
        job.abort() if job is not None else self._hypervisor.abort_job(operation.guest)
        self._watched.told_to_end.add(operation.command.id)
