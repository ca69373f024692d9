"""The real hypervisor: libvirt behind the Hypervisor Protocol.

A call that a stuck guest holds up is left behind and the others go on: with NOWAIT libvirt then answers at once for
all but that guest. Calls: virConnectGetAllDomainStats, virDomainMigrateToURI3, virDomainSetSchedulerParametersFlags.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import chain
from typing import Any, Final, TypeVar

import structlog

from virtpilot.action import Verb, Way
from virtpilot.clock import SECOND, Clock
from virtpilot.errors import HypervisorError, HypervisorTimeout, KnobUnsupported, Unsupported
from virtpilot.events import EventKind
from virtpilot.hypervisor import Footprint, GuestDetails, GuestEvent, GuestState, GuestStats, HostFacts, Job, Move
from virtpilot.knobs import Knob, find
from virtpilot.libvirt_details import Details
from virtpilot.libvirt_dirty import DirtyRates
from virtpilot.libvirt_events import LibvirtEvents
from virtpilot.libvirt_inside import NOTHING, GuestAgents
from virtpilot.libvirt_jobs import JobBook, read_operation
from virtpilot.libvirt_knobs import KnobAccess, read_footprint
from virtpilot.libvirt_limits import Configured
from virtpilot.libvirt_link import NO_MEANING, Lane, LibvirtLink, Meaning, load_binding
from virtpilot.libvirt_migration import MIGRATION_URI, LibvirtMigration, look_there
from virtpilot.libvirt_notes import read_note, write_note
from virtpilot.libvirt_power import Reboot, Switch
from virtpilot.libvirt_reader import Reader
from virtpilot.libvirt_stats import Reading
from virtpilot.libvirt_target import host_cpu, lacking, read_needs
from virtpilot.libvirt_target_disks import lacking_disks, read_disks
from virtpilot.libvirt_way import own_disks, read_mounts

T = TypeVar("T")
_STATES: Final = tuple(GuestState)
# What makes a guest's knobs, limits and tags worth asking for at once.
_NEWS: Final = frozenset({
    EventKind.KNOB_CHANGED, EventKind.BALLOON_CHANGED, EventKind.DEVICE_ADDED, EventKind.DEVICE_REMOVED,
    EventKind.GUEST_AGENT, EventKind.METADATA_CHANGED, EventKind.EVENTS_LOST,
})  # fmt: skip


log = structlog.get_logger(__name__)

# The jobs by which a guest may be leaving: an older libvirt does not say which it is.
_LEAVING: Final = frozenset({"", "migration_out"})
# How long a target is waited for, before it is moved to without a word of it.
_THERE_S: Final = 3.0


class LibvirtHypervisor:
    """One host's libvirt at `uri`; needs the extra `libvirt`. Raises HypervisorError and its kinds.

    `cpus` are those of the host that guests may run on, without them this process's own.
    `skipped` counts the guests that could not be read: they vanished between being listed and being read.
    """

    def __init__(
        self,
        uri: str,
        *,
        clock: Clock,
        deadline_s: float = 5.0,
        tag_names: frozenset[str] = frozenset(),
        dirty_rate_every_s: float = 0.0,
        guest_agent_every_s: float = 0.0,
        cpus: frozenset[int] | None = None,
        binding: Any = None,
    ) -> None:
        self._clock = clock
        self._deadline_s = deadline_s
        self._link = LibvirtLink(uri, binding=binding or load_binding(), clock=clock, deadline_s=deadline_s)
        self._details = Details(self._link, tag_names=tag_names)
        self._jobs = JobBook(self._link, clock)
        self._events = LibvirtEvents(self._link, self._jobs, clock)
        self._dirty = DirtyRates(self._link, every_s=dirty_rate_every_s)
        cpus = frozenset(os.sched_getaffinity(0)) if cpus is None else cpus
        self._cpus = cpus
        self._access = KnobAccess(self._link.binding, cpus)
        self._unsupported = _unsupported(self._link.binding)
        self._agents = GuestAgents(self._link, every_s=guest_agent_every_s)
        self._reader = Reader(self._link, deadline_s=deadline_s)
        self._whole: dict[str, tuple[int, int]] = {}  # which run was last told in whole, and when
        self.skipped = 0

    def facts(self) -> HostFacts:
        """Return what the host is; its CPUs are those that this process may use."""

        def read(connection: Any) -> HostFacts:
            about = connection.getInfo()
            return HostFacts(
                cpus=len(self._cpus),
                memory_bytes=int(about[1]) * 1024 * 1024,
                cpu_set=sum(1 << cpu for cpu in self._cpus),
                node_set=(1 << int(about[4])) - 1,
                driver=connection.getType(),
                versions={
                    "libvirt": _version(connection.getLibVersion()),
                    "hypervisor": _version(connection.getVersion()),
                },
            )

        return self._link.call(Lane.DETAILS, read)

    def guests(self) -> Sequence[GuestStats]:
        """Return all guests, shut-off ones too, by one bulk call where the driver has it."""
        found, skipped = self._reader.read(dirty_rate=self._dirty.pending())
        self.skipped += skipped
        now_ns, changes = self._clock.monotonic_ns(), self._details.changes
        self._details.refresh(found, now_ns)
        if changes != self._details.changes:
            self._reader.look_again()
        self._dirty.refresh(found, now_ns)
        told = [(guest, *self._details.told(guest)) for guest in found]
        self._agents.refresh([guest.uuid for guest, configured, _tags in told if configured.agent], now_ns)
        ages_s = self._ages(found, now_ns)
        return [self._told(guest, configured, tags, ages_s[guest.uuid], now_ns) for guest, configured, tags in told]

    def some(self, wanted: Collection[str]) -> Sequence[GuestStats]:
        """Return those of the wanted guests that are known and answer at once; their details are those of `guests`."""
        now_ns = self._clock.monotonic_ns()
        told = []
        for guest in self._reader.some([uuid for uuid in wanted if uuid in self._whole]):
            if not self._details.knows(guest):
                continue  # started since: the next call for all brings what is set on it
            if guest.whole:
                self._whole[guest.uuid] = (guest.run, now_ns)
            age_s = (now_ns - self._whole[guest.uuid][1]) / SECOND
            told.append(self._told(guest, *self._details.told(guest), age_s, now_ns))
        return told

    def _told(
        self, guest: Reading, configured: Configured, tags: Mapping[str, str], age_s: float, now_ns: int
    ) -> GuestStats:
        details = configured.details
        dirty, inside = self._dirty.numbers(guest.uuid, now_ns), self._agents.told(guest.uuid, now_ns)
        if dirty or inside is not NOTHING:
            own = {**details.guest, **dirty, **inside.guest}
            details = GuestDetails(own, details.disks, details.nics, inside.filesystems)
        return GuestStats(guest.uuid, guest.name, guest.stats, configured.knobs, tags, guest.run, age_s, details)

    def _ages(self, guests: Sequence[Reading], now_ns: int) -> dict[str, float]:
        """Return for how many seconds each guest has not been told in whole; forgets the guests that have gone."""
        known, self._whole = self._whole, {}
        for guest in guests:
            run, whole_ns = known.get(guest.uuid, (guest.run, now_ns))
            self._whole[guest.uuid] = (guest.run, now_ns if guest.whole or run != guest.run else whole_ns)
        return {uuid: (now_ns - whole_ns) / SECOND for uuid, (_run, whole_ns) in self._whole.items()}

    def _on_guest(self, guest: str, work: Callable[[Any], T], meaning: Meaning = NO_MEANING) -> T:
        return self._link.call(Lane.COMMAND, lambda connection: work(connection.lookupByUUIDString(guest)), meaning)

    def state(self, guest: str) -> GuestState:
        """Return a guest's state; raises GuestNotFound."""
        code = self._on_guest(guest, lambda domain: domain.state()[0])
        return _STATES[code] if 0 <= code < len(_STATES) else GuestState.NOSTATE

    def get_knob(self, guest: str, knob: str) -> int:
        """Return the live value of a guest's knob, or of the host's; raises GuestNotFound or KnobUnsupported."""
        wanted = self._known_knob(knob)
        return self._link.call(
            Lane.COMMAND, lambda connection: self._access.read(connection, guest, wanted), self._unsupported
        )

    def set_knob(self, guest: str, knob: str, value: int) -> None:
        """Set a knob's live value and wait while the guest follows; raises GuestNotFound or KnobUnsupported."""
        wanted = self._known_knob(knob)
        try:
            self._link.call(
                Lane.COMMAND, lambda connection: self._access.write(connection, guest, wanted, value), self._unsupported
            )
        finally:
            self._details.forget(guest)

    @staticmethod
    def _known_knob(name: str) -> Knob:
        knob = find(name)
        if knob is None:
            raise KnobUnsupported(f"libvirt is not asked for {name}")
        return knob

    def footprint(self, guest: str) -> Footprint:
        """Return what a running guest takes up; raises GuestNotFound."""
        live, now_ns = self._link.binding.VIR_DOMAIN_AFFECT_LIVE, self._clock.now_ns()
        return self._link.call(
            Lane.COMMAND,
            lambda connection: read_footprint(connection.lookupByUUIDString(guest), live, now_ns),
        )

    def read_note(self, guest: str) -> str:
        """Return what a guest that runs carries of ours, "" where nothing; raises GuestNotFound or KnobUnsupported."""
        binding = self._link.binding
        return self._on_guest(guest, lambda domain: read_note(binding, domain), self._no_notes)

    def write_note(self, guest: str, note: str) -> None:
        """Give a guest that runs another note, "" removes it; raises GuestNotFound or KnobUnsupported."""
        binding = self._link.binding
        self._on_guest(guest, lambda domain: write_note(binding, domain, note), self._no_notes)

    @property
    def _no_notes(self) -> Meaning:
        return {self._link.binding.VIR_ERR_NO_SUPPORT: KnobUnsupported}

    def unfit(self, guest: str, uri: str, way: Way = Way()) -> str:  # noqa: B008 - frozen
        """Return what the libvirt at `uri` does not offer of the guest's needs; one that does not answer may do.

        Raises HypervisorError where it is not known which disks are to be copied.
        """
        if not MIGRATION_URI.fullmatch(uri):
            return ""  # `migrate` says so

        def read(connection: Any) -> tuple[str, str]:
            return connection.lookupByUUIDString(guest).XMLDesc(), connection.getCapabilities()

        xml, capabilities = self._link.call(Lane.DETAILS, read)
        needs, own, binding = read_needs(xml), host_cpu(capabilities), self._link.binding
        disks = read_disks(xml, own_disks(xml, read_mounts) if way.copy_disks else [])
        found: list[str] = []

        def ask(target: Any) -> None:
            # One by one: what is known to lack is told, should a later answer take too long.
            found.extend(chain(lacking(binding, target, needs, own), lacking_disks(binding, target, disks)))

        there = LibvirtLink(uri, binding=binding, clock=self._clock, deadline_s=_THERE_S)
        try:
            there.call(Lane.COMMAND, ask)
        except HypervisorError as error:
            log.info("the target does not say all that it offers", error=str(error))
        finally:
            there.close()
        return ", ".join(tuple(found))

    def there(self, guest: str, uri: str) -> GuestState | None:
        """Return what the libvirt at `uri` says of a guest: NOSTATE where it has none such, None without an answer."""
        return look_there(self._link, guest, uri) if MIGRATION_URI.fullmatch(uri) else None

    def moving(self, guest: str) -> bool:
        """Return whether a migration of a guest away from here is under way; raises GuestNotFound."""
        told = self._on_guest(guest, lambda domain: domain.jobStats())
        return told.get("type") != self._link.binding.VIR_DOMAIN_JOB_NONE and read_operation(told) in _LEAVING

    def migrate(self, guest: str, uri: str, way: Way = Way()) -> Move:  # noqa: B008 - frozen
        """Start a live migration; raises GuestNotFound, Unsupported, or HypervisorError for an unusable URI."""
        self._link.call(Lane.COMMAND, _check_migrates)
        if not MIGRATION_URI.fullmatch(uri):
            raise HypervisorError(f"not a libvirt URI to migrate to: {uri[:200]!r}")
        persistent = self._on_guest(guest, lambda domain: bool(domain.isPersistent()))
        return LibvirtMigration(self._link, self._jobs, guest, uri, way, persistent=persistent)

    def abort_job(self, guest: str) -> None:
        """Ask for the end of a guest's migration; raises GuestNotFound, HypervisorError where none is under way."""

        def abort(domain: Any) -> None:
            other = read_operation(domain.jobStats())
            if other not in _LEAVING:  # what somebody else may have begun since is not ours to end
                raise HypervisorError(f"no migration is under way, but {other}")
            domain.abortJob()

        self._on_guest(guest, abort, {self._link.binding.VIR_ERR_OPERATION_TIMEOUT: HypervisorTimeout})

    def power(self, guest: str, verb: Verb) -> Job:
        """Ask for another state of a guest; raises GuestNotFound, or Unsupported where the driver cannot do it."""
        if verb is not Verb.REBOOT:
            return Switch(self._link, guest, verb, self.state)
        self.state(guest)
        reboot = Reboot(self._link, guest)
        reboot.asked(self._deadline_s)
        return reboot

    def drain(self) -> list[GuestEvent]:
        """Return what libvirt has told of by itself since the last call."""
        events = self._events.drain()
        for event in events:
            if event.kind in _NEWS:
                self._details.forget(event.guest)
        return events

    def close(self) -> None:
        """Let go of the connections; calls that have not come back are left to end by themselves."""
        self._events.close()
        self._link.close()


def _check_migrates(connection: Any) -> None:
    """Raise Unsupported where the driver says that it moves no guests."""
    if "<migration_features>" not in connection.getCapabilities():
        raise Unsupported(f"the driver {connection.getType()} has no live migration")


def _unsupported(binding: Any) -> Meaning:
    """Return the errors by which libvirt says that there is no such knob, or that it waited for the guest in vain.

    A guest held by another call, or with an agent that is silent, is asked again: a call may still be under way.
    """
    codes = (
        binding.VIR_ERR_NO_SUPPORT,
        binding.VIR_ERR_OPERATION_UNSUPPORTED,
        binding.VIR_ERR_CONFIG_UNSUPPORTED,
        binding.VIR_ERR_ARGUMENT_UNSUPPORTED,
    )
    vain = (binding.VIR_ERR_OPERATION_TIMEOUT, binding.VIR_ERR_AGENT_UNRESPONSIVE)
    return dict.fromkeys(codes, KnobUnsupported) | dict.fromkeys(vain, HypervisorTimeout)


def _version(number: int) -> str:
    return f"{number // 1_000_000}.{number // 1_000 % 1_000}.{number % 1_000}"
