"""A simulated host's libvirt: the Hypervisor Protocol over the fleet model."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from typing import Final

import numpy as np

from virtpilot.action import Verb, Way
from virtpilot.clock import SECOND
from virtpilot.errors import GuestNotFound, HypervisorError, HypervisorTimeout, HypervisorUnavailable, KnobUnsupported
from virtpilot.events import EventKind
from virtpilot.hypervisor import (
    FITTING,
    Footprint,
    GuestEvent,
    GuestState,
    GuestStats,
    HostFacts,
    Job,
    JobState,
    JobStatus,
    Move,
)
from virtpilot.knobs import Knob, find
from virtpilot.simulator.fault import Faults
from virtpilot.simulator.knobs import KnobBook
from virtpilot.simulator.migration import OPERATION, Migration, Migrations
from virtpilot.simulator.power import PowerJob, switch
from virtpilot.simulator.stats import guest_stats
from virtpilot.simulator.world import MIB, World

_URI: Final = re.compile(r"qemu\+(?:tcp|tls|ssh)://(?:[^/@]+@)?([^/:?]+)(?::\d+)?/system")


class RefusedJob:
    """A migration that could not even begin."""

    def __init__(self, error: str) -> None:
        self._error = error

    def poll(self) -> JobStatus:
        """Return that it failed, and why."""
        return JobStatus(JobState.FAILED, self._error)

    def abort(self) -> None:
        """Do nothing: it is over."""

    def post_copy(self) -> None:
        """Do nothing: it is over."""


class MigrationJob:
    """A migration under way."""

    def __init__(self, migrations: Migrations, migration: Migration) -> None:
        self._migrations, self._migration = migrations, migration

    def poll(self) -> JobStatus:
        """Return where it stands in virtual time."""
        return self._migration.status()

    def abort(self) -> None:
        """Cancel it, as virDomainAbortJob does; the guest stays where it is."""
        self._migrations.abort(self._migration, "operation aborted: migration job: canceled by client")

    def post_copy(self) -> None:
        """Let the guest run on the target now."""
        self._migrations.switch(self._migration)


class FleetHypervisor:
    """One connection to one simulated host; raises what libvirt would: HypervisorError."""

    def __init__(
        self,
        world: World,
        knobs: KnobBook,
        migrations: Migrations,
        faults: Faults,
        host: int,
        *,
        deadline_s: float = 5.0,
    ) -> None:
        self._world, self._knobs, self._migrations, self._faults = world, knobs, migrations, faults
        self._host = host
        self._deadline_s = deadline_s
        self._closed = False
        self._place: int | None = None
        self._deaf_ns: int | None = None
        self._progress_ns: dict[str, int] = {}

    def facts(self) -> HostFacts:
        """Return what the host is."""
        self._answer()
        spec = self._world.scenario.hosts[self._host]
        return host_facts(spec.cpus, int(self._world.memory_bytes[self._host]))

    def guests(self) -> Sequence[GuestStats]:
        """Return all guests, shut-off ones too."""
        self._answer()
        here = np.flatnonzero(self._world.host == self._host).tolist()
        return [guest_stats(self._world, self._knobs, guest) for guest in here]

    def some(self, wanted: Collection[str]) -> Sequence[GuestStats]:
        """Return those of the wanted guests that are here."""
        return [guest for guest in self.guests() if guest.uuid in wanted]

    def state(self, guest: str) -> GuestState:
        """Return a guest's state; raises GuestNotFound."""
        return self._world.state_of(self._find(guest))

    def get_knob(self, guest: str, knob: str) -> int:
        """Return the live value of a guest's knob, or of the host's; raises GuestNotFound or KnobUnsupported."""
        known = self._known(guest, knob)
        if known.of_host:
            return self._knobs.get_of_host(self._host, known)
        return self._knobs.get(self._find_running(guest), known)

    def set_knob(self, guest: str, knob: str, value: int) -> None:
        """Set a knob's live value; raises GuestNotFound, KnobUnsupported, or HypervisorError out of its range."""
        known = self._known(guest, knob)
        if known.of_host:
            self._knobs.set_of_host(self._host, known, value)
        else:
            index = self._find_running(guest)
            self._check_still(index)
            self._knobs.set(index, known, value)

    def footprint(self, guest: str) -> Footprint:
        """Return what a running guest takes up; raises GuestNotFound."""
        return self._knobs.footprint(self._find_running(guest))

    def read_note(self, guest: str) -> str:
        """Return what a guest that runs carries, "" where nothing; raises GuestNotFound."""
        return self._world.notes.get(self._find_running(guest), "")

    def write_note(self, guest: str, note: str) -> None:
        """Give a guest that runs another note, "" removes it; raises HypervisorError while it moves."""
        index = self._find_running(guest)
        self._check_still(index)
        self._world.notes[index] = note

    def _check_still(self, guest: int) -> None:
        """Raise what libvirt raises for a change to a guest that it is busy moving."""
        if self._migrations.of(guest):
            raise HypervisorError("timed out during operation: cannot acquire state change lock")

    def migrate(self, guest: str, uri: str, way: Way = Way()) -> Move:  # noqa: B008 - frozen
        """Start a live migration to the host in `uri`; raises GuestNotFound. What stands in its way fails the job."""
        index = self._find(guest)
        error = self._obstacle(index, uri)
        if error:
            return RefusedJob(error)
        return MigrationJob(self._migrations, self._migrations.start(index, self._target(uri), way))

    def unfit(self, guest: str, uri: str, way: Way = Way()) -> str:  # noqa: ARG002, B008 - disks are all shared; frozen
        """Return what the host in `uri` does not offer of the guest's needs; one that does not answer may do."""
        index, target = self._find(guest), self._target(uri)
        return "" if target < 0 or self._way_obstacle(target, uri) else ", ".join(self._lacking(index, target))

    def _lacking(self, guest: int, target: int) -> Iterator[str]:
        """Yield what a libvirt that answers would say that it does not offer, in LibvirtHypervisor's words."""
        world = self._world
        if target == self._host:
            name = world.scenario.guests[guest].name
            yield f"the guest's UUID, which is {name}'s there, and that runs"
        wanted = world.scenario.guests[guest].networks
        yield from (f"the network {name}" for name in wanted if name not in self._offered(target))
        free, needed = world.memory_bytes[target] - world.host_used_bytes[target], world.balloon_bytes[guest]
        if free < needed:
            yield f"{int(needed) // MIB} MiB of memory ({int(free) // MIB} MiB are free)"

    def there(self, guest: str, uri: str) -> GuestState | None:
        """Return what the host in `uri` says of a guest: NOSTATE where it has none such, None without an answer."""
        target = self._target(uri)
        if target < 0 or self._way_obstacle(target, uri):
            return None
        index = self._world.guest_index.get(guest, -1)
        here = index >= 0 and self._world.host[index] == target
        return self._world.state_of(index) if here else GuestState.NOSTATE

    def moving(self, guest: str) -> bool:
        """Return whether a migration of a guest is under way; raises GuestNotFound."""
        return self._migrations.of(self._find(guest)) is not None

    def abort_job(self, guest: str) -> None:
        """Abort a guest's migration; raises GuestNotFound, HypervisorError where none is under way."""
        migration = self._migrations.of(self._find(guest))
        if migration is None:
            raise HypervisorError("requested operation is not valid: no job is active on the domain")
        MigrationJob(self._migrations, migration).abort()

    def power(self, guest: str, verb: Verb) -> Job:
        """Bring a guest into another state, at once, or never where it does not listen; raises what libvirt would."""
        index = self._find(guest)
        state = self._world.state_of(index)
        if state not in FITTING[verb]:
            raise HypervisorError(f"requested operation is not valid: domain is {state}")
        return PowerJob(self._world, index, verb, done=switch(self._world, index, verb))

    def drain(self) -> list[GuestEvent]:
        """Return what the host's libvirt has told since the last call; the first call begins to listen."""
        chronicle = self._world.chronicle
        if self._closed or not self._faults.hypervisor_up(self._host):
            self._deaf_ns = self._deaf_ns or chronicle.now_ns
            self._place = chronicle.length
            return []
        if self._place is None:
            self._place = chronicle.length
        found = self._gap() + chronicle.since(self._place, self._host) + self._jobs()
        self._place = chronicle.length
        return found

    def _gap(self) -> list[GuestEvent]:
        if self._deaf_ns is None:
            return []
        now_ns = self._world.chronicle.now_ns
        gap_s, self._deaf_ns = (now_ns - self._deaf_ns) / SECOND, None
        why = "no connection to libvirt"
        return [GuestEvent(at_ns=now_ns, kind=EventKind.EVENTS_LOST, detail=why, numbers={"gap_seconds": gap_s})]

    def _jobs(self) -> list[GuestEvent]:
        """Return where the migrations from this host stand, each once a second."""
        now_ns = self._world.chronicle.now_ns
        here = [migration for migration in self._migrations.active if migration.source == self._host]
        specs = {self._world.scenario.guests[one.guest].uuid: one for one in here}
        self._progress_ns = {uuid: at for uuid, at in self._progress_ns.items() if uuid in specs}
        found = []
        for uuid, migration in specs.items():
            if now_ns - self._progress_ns.get(uuid, 0) >= SECOND:
                self._progress_ns[uuid] = now_ns
                found.append(
                    GuestEvent(
                        at_ns=now_ns,
                        kind=EventKind.JOB_PROGRESS,
                        guest=uuid,
                        name=self._world.scenario.guests[migration.guest].name,
                        detail=OPERATION,
                        numbers=migration.status().progress,
                    )
                )
        return found

    def close(self) -> None:
        """Let go of the connection: calls raise HypervisorUnavailable from now on."""
        self._closed = True

    def _answer(self) -> None:
        """Raise what a libvirt that is gone or slow makes a client raise."""
        name = self._world.host_names[self._host]
        if self._closed:
            raise HypervisorUnavailable(f"{name}: the connection is closed")
        if not self._faults.hypervisor_up(self._host):
            raise HypervisorUnavailable(f"{name}: failed to connect socket: connection refused")
        answer_s = float(self._faults.answer_s[self._host])
        if answer_s > self._deadline_s:
            raise HypervisorTimeout(f"{name}: no answer within {self._deadline_s:g} s")

    def _find(self, guest: str) -> int:
        self._answer()
        index = self._world.guest_index.get(guest, -1)
        if index < 0 or self._world.host[index] != self._host:
            raise GuestNotFound(f"no domain with matching uuid '{guest}'")
        return index

    def _known(self, guest: str, name: str) -> Knob:
        self._answer()
        knob = find(name)
        if knob is None:
            raise KnobUnsupported(f"{guest} has no knob {name!r}")
        return knob

    def _find_running(self, guest: str) -> int:
        index = self._find(guest)
        if self._world.state_of(index) is GuestState.SHUTOFF:
            raise HypervisorError(f"requested operation is not valid: domain {guest} is not running")
        return index

    def _target(self, uri: str) -> int:
        match = _URI.fullmatch(uri)
        return self._world.host_index.get(match[1], -1) if match else -1

    def _obstacle(self, guest: int, uri: str) -> str:
        """Say why a migration cannot begin, as libvirt would, or ""."""
        target = self._target(uri)
        if target < 0:
            return f"unable to connect to server at '{uri}': name or service not known"
        return self._own_obstacle(guest, target) or self._way_obstacle(target, uri) or self._no_network(guest, target)

    def _own_obstacle(self, guest: int, target: int) -> str:
        if target == self._host:
            return "internal error: attempt to migrate guest to the same host"
        if self._world.state_of(guest) is GuestState.SHUTOFF:
            return "requested operation is not valid: domain is not running"
        if self._migrations.of(guest):
            return "timed out during operation: cannot acquire state change lock: another migration is under way"
        return ""

    def _no_network(self, guest: int, target: int) -> str:
        absent = [name for name in self._world.scenario.guests[guest].networks if name not in self._offered(target)]
        return f"network not found: no network with matching name '{absent[0]}'" if absent else ""

    def _offered(self, host: int) -> list[str]:
        return self._world.scenario.hosts[host].networks

    def _way_obstacle(self, target: int, uri: str) -> str:
        if not self._faults.hypervisor_up(target):
            return f"unable to connect to server at '{uri}': connection refused"
        if not (self._faults.link_up(self._host) and self._faults.link_up(target)):
            return f"unable to connect to server at '{uri}': no route to host"
        return ""


def host_facts(cpus: int, memory_bytes: int) -> HostFacts:
    """Return the facts of a simulated host."""
    return HostFacts(
        cpus=cpus, memory_bytes=memory_bytes, driver="QEMU", versions={"simulator": "1"}, cpu_set=2**cpus - 1
    )
