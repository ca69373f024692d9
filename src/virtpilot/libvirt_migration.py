"""A live migration as libvirt carries it out: started, watched, aborted.

Source: virDomainMigrateToURI3, virDomainAbortJob, VIR_DOMAIN_EVENT_ID_JOB_COMPLETED.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from typing import Any, Final

import structlog

from virtpilot.errors import HypervisorError
from virtpilot.hypervisor import JobState, JobStatus
from virtpilot.libvirt_jobs import JobBook, read_job
from virtpilot.libvirt_link import Lane, LibvirtLink

log = structlog.get_logger(__name__)

# No part may begin with a dash: ssh would take it for an option.
MIGRATION_URI: Final = re.compile(
    r"qemu\+(?:tls|tcp|ssh)://(?:[A-Za-z0-9._][A-Za-z0-9._-]*@)?"
    r"(?:[A-Za-z0-9._][A-Za-z0-9._-]*|\[[0-9A-Fa-f:]+\])(?::\d{1,5})?/system"
)
_PATIENCE_S: Final = 1.0


class LibvirtMigration:
    """One guest's way to the libvirt at `uri`: the call runs in a thread of its own and ends with the migration."""

    def __init__(self, link: LibvirtLink, jobs: JobBook, guest: str, uri: str, *, persistent: bool) -> None:
        self._link = link
        self._jobs = jobs
        self._guest = guest
        self._persistent = persistent
        self._progress: Mapping[str, float] = {}
        self._told = threading.Event()
        self._status: JobStatus | None = None
        threading.Thread(target=self._run, args=(uri,), name=f"migrate-{guest[:8]}", daemon=True).start()

    def poll(self) -> JobStatus:
        """Return where it stands; its progress is asked for at once, and is the last known where none comes."""
        if self._status is None:
            self._ask()
        return self._status or JobStatus(JobState.RUNNING, "", self._progress)

    def abort(self) -> None:
        """Ask libvirt to abort the job; whether it did is told by poll."""
        if self._status is not None:
            return
        try:
            self._link.call(Lane.COMMAND, lambda connection: self._domain(connection).abortJob())
        except HypervisorError as error:
            log.warning("migration not aborted", guest=self._guest, error=str(error))

    def _domain(self, connection: Any) -> Any:
        return connection.lookupByUUIDString(self._guest)

    def _ask(self) -> None:
        try:
            reading = self._jobs.ask(self._guest)
        except HypervisorError as error:
            log.debug("no progress told", guest=self._guest, error=str(error))
            return
        if reading is not None and reading.running:
            self._progress = reading.numbers

    def _run(self, uri: str) -> None:
        error = ""
        try:
            connection = self._link.open_alone()
            try:
                self._move(connection, uri)
            finally:
                connection.close()
        except self._link.binding.libvirtError as failure:
            error = str(failure)
        self._status = JobStatus(JobState.FAILED if error else JobState.DONE, error, self._progress)

    def _move(self, connection: Any, uri: str) -> None:
        known = self._link.binding
        flags = (
            known.VIR_MIGRATE_LIVE
            | known.VIR_MIGRATE_PEER2PEER
            | known.VIR_MIGRATE_AUTO_CONVERGE
            | known.VIR_MIGRATE_ABORT_ON_ERROR
        )
        if self._persistent:
            flags |= known.VIR_MIGRATE_PERSIST_DEST | known.VIR_MIGRATE_UNDEFINE_SOURCE
        domain = self._domain(connection)
        listening = self._listen(connection, domain)
        domain.migrateToURI3(uri, {}, flags)
        # Only the source's daemon knows the downtime, and a guest that has left can no longer be asked about.
        if listening and not self._told.wait(_PATIENCE_S):
            log.debug("the end of the migration was not told", guest=self._guest)

    def _listen(self, connection: Any, domain: Any) -> bool:
        event = self._link.binding.VIR_DOMAIN_EVENT_ID_JOB_COMPLETED
        try:
            connection.domainEventRegisterAny(domain, event, self._completed, None)
        except self._link.binding.libvirtError as error:
            log.debug("migration statistics will not be told", guest=self._guest, error=str(error))
            return False
        return True

    def _completed(self, _connection: Any, _domain: Any, told: Mapping[str, Any], _opaque: object) -> None:
        self._progress = read_job(told)
        self._told.set()
