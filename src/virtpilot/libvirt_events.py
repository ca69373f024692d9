"""Events of one libvirt as they happen, and the progress of every job on its guests once a second.

Source: virConnectDomainEventRegisterAny with whatever events the driver and this libvirt have, virDomainGetJobStats.
A callback only puts into a bounded queue; one connection is kept for the events and replaced when it is lost.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final

import structlog

from virtpilot.clock import SECOND, Clock, seconds
from virtpilot.errors import GuestNotFound, HypervisorError
from virtpilot.events import EventKind
from virtpilot.hypervisor import GuestEvent
from virtpilot.libvirt_jobs import JobBook, JobReading, read_job, read_operation
from virtpilot.libvirt_link import Lane, LibvirtLink
from virtpilot.libvirt_tellings import TELLINGS, Told

log = structlog.get_logger(__name__)

_BEAT_S: Final = 1.0
_LONGEST_WAIT_S: Final = 15.0
_MAX_WAITING: Final = 10_000
_SWEEP_NS: Final = seconds(5)
_PATIENCE_S: Final = 1.0
# A job's end may be told a little after it has gone from the guest.
_END_BEATS: Final = 3


class _Job:
    """A job that is watched: its last reading, and how many beats ago it was there no more."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.last = JobReading(False)
        self.gone = 0


class LibvirtEvents:
    """Listens from the first `drain` on, in a thread of its own; a libvirtd that is away is waited for."""

    def __init__(self, link: LibvirtLink, jobs: JobBook, clock: Clock, *, beat_s: float = _BEAT_S) -> None:
        self._link = link
        self._book = jobs
        self._clock = clock
        self._beat_s = beat_s
        self._queue: deque[GuestEvent] = deque()
        self._lock = threading.Lock()
        self._overflow = 0
        self._jobs: dict[str, _Job] = {}
        self._sweep_ns: int | None = clock.monotonic_ns()
        self._closing = threading.Event()
        self._begun = threading.Event()
        self._thread: threading.Thread | None = None

    def drain(self) -> list[GuestEvent]:
        """Return what has happened since the last call, in order; the first call begins to listen."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="libvirt-watch", daemon=True)
            self._thread.start()
        with self._lock:
            found, lost = list(self._queue), self._overflow
            self._queue.clear()
            self._overflow = 0
        if lost:
            found.insert(0, self._lost("too many at once", {"events_count": lost}))
        return found

    def close(self) -> None:
        """Stop listening; the thread ends by itself."""
        self._closing.set()
        self._begun.set()

    def _run(self) -> None:
        """Keep a connection that events come over; say so where some may have been missed."""
        deaf_ns: int | None = None
        wait_s = self._beat_s
        while not self._closing.is_set():
            connection = self._connect()
            if connection is None:
                self._closing.wait(wait_s)
                wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
                continue
            if deaf_ns is not None:
                gap_s = (self._clock.monotonic_ns() - deaf_ns) / SECOND
                self._put(self._lost("no connection to libvirt", {"gap_seconds": gap_s}))
                log.warning("libvirt's events are heard again", gap_s=round(gap_s, 1))
            wait_s = self._beat_s
            self._listen(connection)
            deaf_ns = self._clock.monotonic_ns()
            self._shut(connection)

    def _connect(self) -> Any:
        """Return a connection with everything registered that its driver has, None where there is none now."""
        binding = self._link.binding
        try:
            connection = self._link.open_alone()
        except binding.libvirtError as error:
            log.debug("no connection for events", error=str(error))
            return None
        heard = [name for name, telling in TELLINGS.items() if self._register(connection, name, telling)]
        log.info("listening for libvirt's events", kinds=len(heard))
        return connection

    def _register(self, connection: Any, name: str, telling: Callable[..., Told | None]) -> bool:
        """Register for one kind of event; a libvirt or a driver that does not know it goes without."""
        binding = self._link.binding
        number = getattr(binding, f"VIR_DOMAIN_EVENT_ID_{name}", None)
        if number is None:
            return False

        def heard(_connection: Any, domain: Any, *words: Any) -> None:
            told = telling(*words[:-1])
            if told is not None:
                self._heard(domain, told, words)

        try:
            connection.domainEventRegisterAny(None, number, heard, None)
        except binding.libvirtError as error:
            log.debug("this driver has no such event", kind=name, error=str(error))
            return False
        return True

    def _heard(self, domain: Any, told: Told, words: tuple[Any, ...]) -> None:
        uuid, name = domain.UUIDString(), domain.name()
        numbers = told.numbers
        if told.kind is EventKind.MIGRATION_ITERATION:
            self._watch({uuid: name})
        elif told.kind is EventKind.JOB_COMPLETED:
            with self._lock:
                self._jobs.pop(uuid, None)
            told, numbers = Told(told.kind, read_operation(words[0])), read_job(words[0])
        self._put(self._event(told.kind, uuid, name, told.detail, numbers))

    def _listen(self, connection: Any) -> None:
        """Watch jobs, beat by beat, until the connection is lost or this ends."""
        binding = self._link.binding
        try:
            connection.setKeepAlive(5, 3)
        except binding.libvirtError as error:
            log.debug("no keepalive", error=str(error))
        while not self._closing.is_set():
            self._begun.wait(self._beat_s)
            self._begun.clear()
            try:
                if connection.isAlive() != 1:
                    return
            except binding.libvirtError:
                return
            self._sweep()
            with self._lock:
                watched = list(self._jobs.items())
            for uuid, job in watched:
                self._follow(uuid, job)

    def _sweep(self) -> None:
        """Look now and then for jobs that began without a word: dumps, backups, saves."""
        now_ns = self._clock.monotonic_ns()
        if self._sweep_ns is None or now_ns < self._sweep_ns:
            return
        self._sweep_ns = now_ns + _SWEEP_NS
        try:
            found = self._link.call(Lane.PROGRESS, self._find, patience_s=_PATIENCE_S)
        except HypervisorError as error:
            log.debug("jobs not looked for", error=str(error))
            return
        if found is None:
            self._sweep_ns = None
            return
        self._watch(found)

    def _watch(self, guests: Mapping[str, str]) -> None:
        """Follow the jobs of these guests, beginning at once: a short one is over at the next beat."""
        with self._lock:
            new = [uuid for uuid in guests if uuid not in self._jobs]
            self._jobs |= {uuid: _Job(guests[uuid]) for uuid in new}
        if new:
            self._begun.set()

    def _find(self, connection: Any) -> dict[str, str] | None:
        """Return the guests on which a job runs; None where the driver knows no jobs."""
        binding = self._link.binding
        found = {}
        for domain in connection.listAllDomains(binding.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
            try:
                kind = domain.jobInfo()[0]
            except binding.libvirtError as error:
                if connection.isAlive() != 1:
                    raise
                if error.get_error_code() == binding.VIR_ERR_NO_SUPPORT:
                    return None
                continue  # an arriving guest's job is its source's to tell of
            if kind in {binding.VIR_DOMAIN_JOB_BOUNDED, binding.VIR_DOMAIN_JOB_UNBOUNDED}:
                found[domain.UUIDString()] = domain.name()
        return found

    def _follow(self, uuid: str, job: _Job) -> None:
        try:
            reading = self._book.ask(uuid, begun=not job.last.running)
        except GuestNotFound:
            reading = JobReading(False)
        except HypervisorError as error:
            log.debug("a job's progress is not told", guest=uuid, error=str(error))
            return
        if reading is not None and reading.running:
            job.last, job.gone = reading, 0
            self._put(self._event(EventKind.JOB_PROGRESS, uuid, job.name, reading.operation, dict(reading.numbers)))
            return
        job.gone += 1
        if job.gone < _END_BEATS:
            return
        with self._lock:
            untold = self._jobs.pop(uuid, None) is not None
        if untold and job.last.running:
            last = job.last
            self._put(self._event(EventKind.JOB_ENDED, uuid, job.name, last.operation, dict(last.numbers)))

    def _event(self, kind: EventKind, guest: str, name: str, detail: str, numbers: dict[str, float]) -> GuestEvent:
        return GuestEvent(at_ns=self._clock.now_ns(), kind=kind, guest=guest, name=name, detail=detail, numbers=numbers)

    def _lost(self, why: str, numbers: dict[str, float]) -> GuestEvent:
        return GuestEvent(at_ns=self._clock.now_ns(), kind=EventKind.EVENTS_LOST, detail=why, numbers=numbers)

    def _put(self, event: GuestEvent) -> None:
        """Keep an event for `drain`; where nobody drains, the oldest go and are counted."""
        with self._lock:
            if len(self._queue) >= _MAX_WAITING:
                self._queue.popleft()
                self._overflow += 1
            self._queue.append(event)

    def _shut(self, connection: Any) -> None:
        try:
            connection.close()
        except self._link.binding.libvirtError as error:
            log.debug("events' connection not closed in order", error=str(error))
