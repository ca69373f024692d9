"""The real hypervisor: one libvirt connection with a deadline on every call, reconnect and mapped errors.

A call that a stuck guest holds up is left behind in its thread and the next call goes on: with NOWAIT libvirt then
answers at once for all the others. Calls: virConnectGetAllDomainStats, virDomainMigrateToURI3,
virDomainSetSchedulerParametersFlags.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, Final, TypeVar

import structlog

from virtpilot.clock import Clock, seconds
from virtpilot.errors import GuestNotFound, HypervisorError, HypervisorTimeout, HypervisorUnavailable, KnobUnsupported
from virtpilot.hypervisor import GuestState, GuestStats, HostFacts, Job, JobState, JobStatus
from virtpilot.libvirt_tags import TAGS_NAMESPACE, read_tags

log = structlog.get_logger(__name__)

T = TypeVar("T")
_STATES: Final = tuple(GuestState)
_LEFT_BEHIND: Final = 16
_KNOB_REFRESH_NS: Final = seconds(30)
_TAG_REFRESH_NS: Final = seconds(60)
_URI: Final = re.compile(
    r"qemu\+(?:tls|tcp|ssh)://(?:[A-Za-z0-9._-]+@)?(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:]+\])(?::\d{1,5})?/system"
)


class LibvirtHypervisor:
    """One host's libvirt at `uri`; needs the extra `libvirt`. Raises HypervisorError and its kinds."""

    def __init__(
        self, uri: str, *, clock: Clock, deadline_s: float = 5.0, tag_names: frozenset[str] = frozenset()
    ) -> None:
        try:
            import libvirt
        except ImportError as error:
            raise HypervisorUnavailable("libvirt-python is not installed: install virtpilot[libvirt]") from error
        self._libvirt: Any = libvirt
        # libvirt prints each error to standard error unless somebody listens; ours are raised.
        libvirt.registerErrorHandler(lambda _context, _error: None, None)
        self._uri = uri
        self._clock = clock
        self._deadline_s = deadline_s
        self._tag_names = tag_names
        self._connection: Any = None
        self._lock = threading.Lock()
        self._left_behind = 0
        self._knobs: dict[str, tuple[int, dict[str, int]]] = {}
        self._tags: dict[str, tuple[int, dict[str, str]]] = {}
        self._bulk = True
        self.skipped = 0

    def _call(self, work: Callable[[Any], T]) -> T:
        """Run `work(connection)` in a thread of its own and wait for the deadline at most."""
        with self._lock:
            if self._left_behind >= _LEFT_BEHIND:
                raise HypervisorTimeout(f"{self._left_behind} calls to libvirt have not come back")
            self._left_behind += 1
        future: Future[T] = Future()
        threading.Thread(target=self._run, args=(work, future), name="libvirt-call", daemon=True).start()
        try:
            return future.result(self._deadline_s)
        except FutureTimeout:
            raise HypervisorTimeout(f"no answer from libvirt within {self._deadline_s:g} s") from None

    def _run(self, work: Callable[[Any], T], future: Future[T]) -> None:
        try:
            future.set_result(work(self._connected()))
        except self._libvirt.libvirtError as error:
            future.set_exception(self._mapped(error))
        except BaseException as error:  # noqa: BLE001 - it is raised again in the thread that waits
            future.set_exception(error)
        finally:
            with self._lock:
                self._left_behind -= 1

    def _connected(self) -> Any:
        with self._lock:
            connection = self._connection
        if connection is not None and connection.isAlive():
            return connection
        fresh = self._libvirt.open(self._uri)
        with self._lock:
            if self._connection is not None:
                log.info("libvirt is back", uri=self._uri)
            self._connection = fresh
            self._knobs.clear()
            self._tags.clear()
        return fresh

    def _mapped(self, error: Any) -> HypervisorError:
        known = self._libvirt
        code, text = error.get_error_code(), str(error)
        if code == known.VIR_ERR_NO_DOMAIN:
            return GuestNotFound(text)
        if code in {
            known.VIR_ERR_NO_CONNECT, known.VIR_ERR_INVALID_CONN, known.VIR_ERR_RPC, known.VIR_ERR_SYSTEM_ERROR,
        }:  # fmt: skip
            return HypervisorUnavailable(text)
        return HypervisorError(text)

    def facts(self) -> HostFacts:
        """Return what the host is; its CPUs are those that this process may use."""

        def read(connection: Any) -> HostFacts:
            return HostFacts(
                cpus=len(os.sched_getaffinity(0)),
                memory_bytes=int(connection.getInfo()[1]) * 1024 * 1024,
                driver=connection.getType(),
                versions={
                    "libvirt": _version(connection.getLibVersion()),
                    "hypervisor": _version(connection.getVersion()),
                },
            )

        return self._call(read)

    def guests(self) -> Sequence[GuestStats]:
        """Return all guests, shut-off ones too, by one bulk call where the driver has it."""
        now_ns = self._clock.monotonic_ns()
        return self._call(lambda connection: self._read_guests(connection, now_ns))

    def _read_guests(self, connection: Any, now_ns: int) -> list[GuestStats]:
        found = []
        for domain, stats in self._stats(connection):
            try:
                uuid, name = domain.UUIDString(), domain.name()
                knobs = self._read_knobs(domain, uuid, now_ns) if stats.get("state.state") == 1 else {}
                tags = self._read_tags(domain, uuid, now_ns)
            except self._libvirt.libvirtError as error:
                self._skip(error)
                continue
            found.append(GuestStats(uuid, name, stats, knobs, tags))
        alive = {guest.uuid for guest in found}
        for cache in (self._knobs, self._tags):
            for gone in cache.keys() - alive:
                del cache[gone]
        return found

    def _stats(self, connection: Any) -> list[tuple[Any, Mapping[str, Any]]]:
        known = self._libvirt
        if self._bulk:
            wanted = (
                known.VIR_DOMAIN_STATS_STATE | known.VIR_DOMAIN_STATS_CPU_TOTAL | known.VIR_DOMAIN_STATS_BALLOON
                | known.VIR_DOMAIN_STATS_VCPU | known.VIR_DOMAIN_STATS_INTERFACE | known.VIR_DOMAIN_STATS_BLOCK
            )  # fmt: skip
            try:
                return list(connection.getAllDomainStats(wanted, known.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT))
            except known.libvirtError as error:
                if error.get_error_code() != known.VIR_ERR_NO_SUPPORT:
                    raise
                self._bulk = False  # LXC and others: asked one by one from now on
        found: list[tuple[Any, Mapping[str, Any]]] = []
        for domain in connection.listAllDomains():
            try:
                found.append((domain, _single_stats(known, domain)))
            except known.libvirtError as error:
                self._skip(error)
        return found

    def _skip(self, error: Any) -> None:
        """Leave out a guest that vanished between listing and reading."""
        if self._mapped(error).__class__ is HypervisorUnavailable:
            raise error
        self.skipped += 1
        log.debug("guest left out", error=str(error))

    def _read_knobs(self, domain: Any, uuid: str, now_ns: int) -> dict[str, int]:
        """Return a running guest's knobs, asked anew every 30 s and after each change."""
        known = self._knobs.get(uuid)
        if known is not None and now_ns - known[0] < _KNOB_REFRESH_NS:
            return known[1]
        try:
            shares = domain.schedulerParametersFlags(self._libvirt.VIR_DOMAIN_AFFECT_LIVE).get("cpu_shares")
        except self._libvirt.libvirtError as error:
            if isinstance(self._mapped(error), GuestNotFound | HypervisorUnavailable):
                raise
            shares = None  # the driver has no such knob: absent
        knobs = {} if shares is None else {"cpu_shares": int(shares)}
        self._knobs[uuid] = (now_ns, knobs)
        return knobs

    def _read_tags(self, domain: Any, uuid: str, now_ns: int) -> dict[str, str]:
        if not self._tag_names:
            return {}
        known = self._tags.get(uuid)
        if known is not None and now_ns - known[0] < _TAG_REFRESH_NS:
            return known[1]
        try:
            text = domain.metadata(self._libvirt.VIR_DOMAIN_METADATA_ELEMENT, TAGS_NAMESPACE)
        except self._libvirt.libvirtError as error:
            if isinstance(self._mapped(error), GuestNotFound | HypervisorUnavailable):
                raise
            text = ""  # no such metadata: no tags
        tags = read_tags(text, self._tag_names)
        self._tags[uuid] = (now_ns, tags)
        return tags

    def _on_guest(self, guest: str, work: Callable[[Any], T]) -> T:
        return self._call(lambda connection: work(connection.lookupByUUIDString(guest)))

    def state(self, guest: str) -> GuestState:
        """Return a guest's state; raises GuestNotFound."""
        code = self._on_guest(guest, lambda domain: domain.state()[0])
        return _STATES[code] if 0 <= code < len(_STATES) else GuestState.NOSTATE

    def get_knob(self, guest: str, knob: str) -> int:
        """Return a knob's live value; raises GuestNotFound or KnobUnsupported."""
        live = self._libvirt.VIR_DOMAIN_AFFECT_LIVE
        found = self._on_guest(guest, lambda domain: domain.schedulerParametersFlags(live))
        if knob != "cpu_shares" or knob not in found:
            raise KnobUnsupported(f"this guest has no {knob}")
        return int(found[knob])

    def set_knob(self, guest: str, knob: str, value: int) -> None:
        """Set a knob's live value; raises GuestNotFound or KnobUnsupported."""
        if knob != "cpu_shares":
            raise KnobUnsupported(f"libvirt is not asked to set {knob}")
        live = self._libvirt.VIR_DOMAIN_AFFECT_LIVE
        try:
            self._on_guest(guest, lambda domain: domain.setSchedulerParametersFlags({knob: value}, live))
        finally:
            self._knobs.pop(guest, None)

    def migrate(self, guest: str, uri: str) -> Job:
        """Start a live, peer-to-peer migration; raises GuestNotFound, or HypervisorError for an unusable URI."""
        if not _URI.fullmatch(uri):
            raise HypervisorError(f"not a libvirt URI to migrate to: {uri[:200]!r}")
        persistent = self._on_guest(guest, lambda domain: bool(domain.isPersistent()))
        return _MigrationJob(self, guest, uri, persistent=persistent)

    def close(self) -> None:
        """Let go of the connection; calls that have not come back are left to end by themselves."""
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is not None and self._left_behind == 0:
            connection.close()


class _MigrationJob:
    """virDomainMigrateToURI3 in a thread of its own: it returns when the guest has moved or has not."""

    def __init__(self, hypervisor: LibvirtHypervisor, guest: str, uri: str, *, persistent: bool) -> None:
        self._hypervisor = hypervisor
        self._guest = guest
        self._status = JobStatus(JobState.RUNNING)
        self._persistent = persistent
        threading.Thread(target=self._run, args=(uri,), name=f"migrate-{guest[:8]}", daemon=True).start()

    def _run(self, uri: str) -> None:
        owner = self._hypervisor
        known = owner._libvirt  # noqa: SLF001 - one thing in two classes
        flags = (
            known.VIR_MIGRATE_LIVE | known.VIR_MIGRATE_PEER2PEER | known.VIR_MIGRATE_AUTO_CONVERGE
            | known.VIR_MIGRATE_ABORT_ON_ERROR
        )  # fmt: skip
        if self._persistent:
            flags |= known.VIR_MIGRATE_PERSIST_DEST | known.VIR_MIGRATE_UNDEFINE_SOURCE
        try:
            # A connection of its own: the migration must not be cut off when the other one is reopened.
            connection = known.open(owner._uri)  # noqa: SLF001
            try:
                connection.lookupByUUIDString(self._guest).migrateToURI3(uri, {}, flags)
            finally:
                connection.close()
        except known.libvirtError as error:
            self._status = JobStatus(JobState.FAILED, str(error))
        else:
            self._status = JobStatus(JobState.DONE)

    def poll(self) -> JobStatus:
        """Return where it stands."""
        return self._status

    def abort(self) -> None:
        """Ask libvirt to abort the job; whether it did is told by poll."""
        try:
            self._hypervisor._on_guest(self._guest, lambda domain: domain.abortJob())  # noqa: SLF001
        except HypervisorError as error:
            log.warning("migration not aborted", guest=self._guest, error=str(error))


def _version(number: int) -> str:
    return f"{number // 1_000_000}.{number // 1_000 % 1_000}.{number % 1_000}"


def _single_stats(known: Any, domain: Any) -> dict[str, Any]:
    """Ask a driver without bulk statistics, under the bulk call's names."""
    state, reason = domain.state()
    stats: dict[str, Any] = {"state.state": state, "state.reason": reason}
    if state not in {known.VIR_DOMAIN_RUNNING, known.VIR_DOMAIN_PAUSED, known.VIR_DOMAIN_BLOCKED}:
        return stats
    _state, maximum, current, vcpus, cpu_time = domain.info()
    stats |= {"cpu.time": cpu_time, "vcpu.current": vcpus, "vcpu.maximum": vcpus}
    stats |= {"balloon.current": current, "balloon.maximum": maximum}
    try:
        memory = domain.memoryStats()
    except known.libvirtError:
        return stats  # this driver has none
    return stats | {
        f"balloon.{name}": memory[name] for name in ("rss", "unused", "usable", "available") if name in memory
    }
