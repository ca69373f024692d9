"""A live migration as libvirt carries it out: started, watched, aborted.

Source: virDomainMigrateToURI3, virDomainMigrate3, virDomainMigrateStartPostCopy, virDomainMigrateSetMaxDowntime,
virDomainAbortJob, VIR_DOMAIN_EVENT_ID_JOB_COMPLETED.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from typing import Any, Final

import structlog

from virtpilot.action import Way
from virtpilot.errors import GuestNotFound, HypervisorError
from virtpilot.hypervisor import GuestState, JobState, JobStatus
from virtpilot.libvirt_jobs import JobBook, read_job
from virtpilot.libvirt_link import Lane, LibvirtLink
from virtpilot.libvirt_way import order, own_disks, read_mounts

log = structlog.get_logger(__name__)

# No part may begin with a dash: ssh would take it for an option.
MIGRATION_URI: Final = re.compile(
    r"qemu\+(?:tls|tcp|ssh)://(?:[A-Za-z0-9._][A-Za-z0-9._-]*@)?"
    r"(?:[A-Za-z0-9._][A-Za-z0-9._-]*|\[[0-9A-Fa-f:]+\])(?::\d{1,5})?/system"
)
_PATIENCE_S: Final = 1.0
_THERE_S: Final = 3.0
_STATES: Final = tuple(GuestState)


class LibvirtMigration:
    """One guest's way to the libvirt at `uri`: the call runs in a thread of its own and ends with the migration."""

    def __init__(self, link: LibvirtLink, jobs: JobBook, guest: str, uri: str, way: Way, *, persistent: bool) -> None:
        self._link = link
        self._jobs = jobs
        self._guest = guest
        self._way = way
        self._persistent = persistent
        self._progress: Mapping[str, float] = {}
        # What libvirt tells at the end is the last word: an answer from before may come after it.
        self._final: Mapping[str, float] | None = None
        self._told = threading.Event()
        self._status: JobStatus | None = None
        threading.Thread(target=self._run, args=(uri,), name=f"migrate-{guest[:8]}", daemon=True).start()

    def poll(self) -> JobStatus:
        """Return where it stands; its progress is asked for at once, and is the last known where none comes."""
        if self._status is None:
            self._ask()
        return self._status or JobStatus(JobState.RUNNING, "", self._told_last())

    def _told_last(self) -> Mapping[str, float]:
        return self._progress if self._final is None else self._final

    def abort(self) -> None:
        """Ask libvirt to abort the job; whether it did is told by poll. Raises HypervisorError."""
        if self._status is None:
            self._link.call(Lane.COMMAND, lambda connection: self._domain(connection).abortJob())

    def post_copy(self) -> None:
        """Let the guest run on the target now; raises HypervisorError."""
        self._link.call(Lane.COMMAND, lambda connection: self._domain(connection).migrateStartPostCopy(0))

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
        except (self._link.binding.libvirtError, HypervisorError) as failure:
            error = str(failure)
        there = look_there(self._link, self._guest, uri)
        self._status = JobStatus(JobState.FAILED if error else JobState.DONE, error, self._told_last(), there)

    def _move(self, connection: Any, uri: str) -> None:
        binding, way = self._link.binding, self._way
        domain = self._domain(connection)
        disks = own_disks(domain.XMLDesc(), read_mounts) if way.copy_disks else []
        flags, params = order(binding, way, persistent=self._persistent, disks=disks)
        if way.downtime_s:
            domain.migrateSetMaxDowntime(max(round(way.downtime_s * 1000), 1), 0)
        listening = self._listen(connection, domain)
        if way.peer_to_peer:
            domain.migrateToURI3(uri, params, flags)
        else:
            target = binding.open(uri)
            try:
                domain.migrate3(target, params, flags)
            finally:
                target.close()
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
        self._final = read_job(told)
        self._told.set()


def look_there(link: LibvirtLink, guest: str, uri: str) -> GuestState | None:
    """Ask the libvirt at `uri` what it knows of a guest: NOSTATE where nothing, None where it cannot be asked."""
    there = LibvirtLink(uri, binding=link.binding, clock=link.clock, deadline_s=_THERE_S)
    try:
        code = there.call(Lane.COMMAND, lambda connection: connection.lookupByUUIDString(guest).state()[0])
        return _STATES[code] if 0 <= code < len(_STATES) else None
    except GuestNotFound:
        return GuestState.NOSTATE
    except HypervisorError as error:
        log.debug("the target cannot be asked about the guest", guest=guest, error=str(error))
        return None
    finally:
        there.close()
