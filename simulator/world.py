"""The physics of the fleet: who has what, who gets what, and the counters that this moves; arrays, not objects.

Rates stand between two moments at which something changes and are integrated over the time between them, so that the
length of a caller's steps leaves no trace. CPU in cores, memory and traffic in bytes, time in seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import Final

import numpy as np

from virtpilot.events import EventKind
from virtpilot.hypervisor import GuestState
from virtpilot.simulator.caps import Caps
from virtpilot.simulator.chronicle import Chronicle
from virtpilot.simulator.contention import share
from virtpilot.simulator.demand import Demand, Floats
from virtpilot.simulator.scenario import SIGNALS, Scenario

MIB: Final = 1024 * 1024
NOWHERE: Final = -1
_PACKET: Final = 1448.0
REQUEST_BYTES: Final = 65536.0
_SECONDS_A_REQUEST: Final = 0.0004
_FLUSHES_A_WRITE: Final = 0.1
_QEMU_BYTES: Final = 48 * MIB
_KERNEL_SEES: Final = 0.97
_SWAP_BYTES_S: Final = 64.0 * MIB
_PAGE: Final = 4096.0
_PRESSURE_FROM: Final = 0.95
# virDomainShutoffReason
_STOPPED: Final = {1: "shutdown", 2: "destroyed", 3: "crashed"}
# virDomainRunningReason
_MIGRATED: Final = 2
WINDOWS_S: Final = np.array([10.0, 60.0, 300.0])
_LOAD_WINDOWS_S: Final = np.array([60.0, 300.0, 900.0])


class Guest(IntEnum):
    """The counters of a guest: row numbers of `World.guest_total` and `World.guest_rate`."""

    CPU = 0
    DELAY = 1
    WAIT = 2
    READ_BYTES = 3
    READ_REQUESTS = 4
    READ_SECONDS = 5
    WRITE_BYTES = 6
    WRITE_REQUESTS = 7
    WRITE_SECONDS = 8
    FLUSH_REQUESTS = 9
    FLUSH_SECONDS = 10
    RECEIVE_BYTES = 11
    RECEIVE_PACKETS = 12
    RECEIVE_DROPS = 13
    TRANSMIT_BYTES = 14
    TRANSMIT_PACKETS = 15
    TRANSMIT_DROPS = 16
    # seconds in which at least one of its threads waited
    PSI_CPU_SOME = 17
    PSI_IO_SOME = 18
    # the guest's kernel counts these: they outlive the QEMU process
    SWAP_IN_BYTES = 19
    SWAP_OUT_BYTES = 20
    MAJOR_FAULTS = 21


_OF_PROCESS: Final = slice(0, Guest.SWAP_IN_BYTES)


class Host(IntEnum):
    """The counters of a host: row numbers of `World.host_total` and `World.host_rate`."""

    GUEST = 0
    SYSTEM = 1
    IOWAIT = 2
    IDLE = 3
    PSI_CPU_SOME = 4
    PSI_MEMORY_SOME = 5
    PSI_MEMORY_FULL = 6
    PSI_IO_SOME = 7
    PSI_IO_FULL = 8
    # what its guests do through its disk and its NIC, in the guests' own order
    READ_BYTES = 9
    READ_REQUESTS = 10
    READ_SECONDS = 11
    WRITE_BYTES = 12
    WRITE_REQUESTS = 13
    WRITE_SECONDS = 14
    RECEIVE_BYTES = 15
    RECEIVE_PACKETS = 16
    RECEIVE_DROPS = 17
    TRANSMIT_BYTES = 18
    TRANSMIT_PACKETS = 19
    TRANSMIT_DROPS = 20
    DISK_BUSY = 21


PRESSURES: Final = slice(Host.PSI_CPU_SOME, Host.PSI_IO_FULL + 1)
_THROUGH: Final = (
    *zip(range(Host.READ_BYTES, Host.RECEIVE_BYTES), range(Guest.READ_BYTES, Guest.FLUSH_REQUESTS), strict=True),
    *zip(range(Host.RECEIVE_BYTES, Host.DISK_BUSY), range(Guest.RECEIVE_BYTES, Guest.PSI_CPU_SOME), strict=True),
)


class World:
    """All hosts and guests of a scenario at one moment; `refresh` sets the rates, `integrate` lets time pass."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.chronicle = Chronicle()
        self.host_names = tuple(host.name for host in scenario.hosts)
        self.host_index = {name: index for index, name in enumerate(self.host_names)}
        self.guest_index = {guest.uuid: index for index, guest in enumerate(scenario.guests)}
        self._init_hosts()
        self._init_guests()
        self._demands = {name: Demand([getattr(guest, name) for guest in scenario.guests]) for name in SIGNALS}
        self._noise = np.array([guest.noise for guest in scenario.guests], dtype=np.float64)
        self._random = np.random.default_rng(scenario.seed)
        # when they next want something else than now; with noise that is always
        self._next_wants_s = 0.0
        # whether somebody has changed what the rates depend on since `refresh`
        self.stale = True

    def _init_hosts(self) -> None:
        hosts = self.scenario.hosts
        count = len(hosts)
        self.cpus = np.array([host.cpus for host in hosts], dtype=np.float64)
        self.overhead_cores = np.array([host.overhead_cores for host in hosts], dtype=np.float64)
        self.memory_bytes = np.array([host.memory_mib for host in hosts], dtype=np.float64) * MIB
        self._overhead_bytes = np.array([host.overhead_mib for host in hosts], dtype=np.float64) * MIB
        self.link = np.array([host.link_mib_s for host in hosts], dtype=np.float64) * MIB
        self._disk = np.array([host.disk_mib_s for host in hosts], dtype=np.float64) * MIB
        self.net = np.array([host.net_mib_s for host in hosts], dtype=np.float64) * MIB
        self.powered = np.ones(count, dtype=np.bool_)
        self.ksm_run = np.zeros(count, dtype=np.intp)
        self.booted_s = np.zeros(count)
        self.incoming_bytes = np.zeros(count)
        self.host_rate = np.zeros((len(Host), count))
        self.host_total = np.zeros((len(Host), count))
        self.runnable = np.zeros(count)
        self.load = np.zeros((3, count))
        self.pressure = np.zeros((PRESSURES.stop - PRESSURES.start, 3, count))

    def _init_guests(self) -> None:
        guests = self.scenario.guests
        count = len(guests)
        self.host = np.array([self.host_index[guest.host] for guest in guests], dtype=np.intp)
        self.running = np.array([guest.running for guest in guests], dtype=np.bool_)
        self.paused = np.zeros(count, dtype=np.bool_)
        # libvirt's domain ids: another one for each start, -1 while it is off
        self.run = np.where(self.running, np.arange(1, count + 1), -1)
        self._runs = count
        self.reason = np.array([1 if guest.running else 0 for guest in guests], dtype=np.intp)
        self.vcpus = np.array([guest.vcpus for guest in guests], dtype=np.float64)
        self.shares = np.array([guest.cpu_shares for guest in guests], dtype=np.float64)
        self.balloon_bytes = np.array([guest.memory_mib for guest in guests], dtype=np.float64) * MIB
        # who else has something that a guest loses when it starts anew
        self.on_boot: Callable[[int], None] = lambda _guest: None
        # what each running guest carries in its live metadata
        self.notes: dict[int, str] = {}
        self.caps = Caps(count)
        self.speed = np.ones(count)
        self.used_bytes = np.zeros(count)
        self.rss_bytes = np.zeros(count)
        self.wanted_cores = np.zeros(count)
        self.dirty_rate = np.zeros(count)
        self.guest_rate = np.zeros((len(Guest), count))
        self.guest_total = np.zeros((len(Guest), count))

    @property
    def available_bytes(self) -> Floats:
        """What each guest's kernel sees of its balloon."""
        return self.balloon_bytes * _KERNEL_SEES

    @property
    def host_used_bytes(self) -> Floats:
        """Memory in use on each host: its own, its guests' resident sets, and what migrations have brought so far."""
        here = np.flatnonzero((self.host != NOWHERE) & self.running)
        resident = np.bincount(self.host[here], weights=self.rss_bytes[here], minlength=len(self.host_names))
        return np.asarray(self._overhead_bytes + resident + self.incoming_bytes)

    def tell(self, guest: int, kind: EventKind, detail: str = "", numbers: Mapping[str, float] | None = None) -> None:
        """Let the libvirt of the host where a guest is tell what happened to it."""
        spec = self.scenario.guests[guest]
        self.chronicle.tell(int(self.host[guest]), kind, (spec.uuid, spec.name), detail, numbers)

    def state_of(self, guest: int) -> GuestState:
        """Return the state that libvirt would tell."""
        if not self.running[guest]:
            return GuestState.SHUTOFF
        return GuestState.PAUSED if self.paused[guest] else GuestState.RUNNING

    def want(self, time_s: float) -> None:
        """Take over what the guests want from `time_s` on; call once for each time, in order: it draws the noise."""
        # What a migration brings to a host changes that host's memory, without anybody's wanting anything else.
        self.stale = self.stale or bool(self.incoming_bytes.any())
        if time_s < self._next_wants_s:
            return
        self.stale = True
        self._wants = {name: demand.at(time_s) for name, demand in self._demands.items()}
        if self._noise.any():
            wobble = 1.0 + self._noise * (2.0 * self._random.random((3, self._noise.size)) - 1.0)
            for row, names in enumerate((SIGNALS[:1], SIGNALS[2:4], SIGNALS[4:6])):
                for name in names:
                    self._wants[name] = self._wants[name] * wobble[row]
        else:
            self._next_wants_s = min(demand.next_s for demand in self._demands.values())

    def refresh(self) -> None:
        """Share out CPU, memory, disk and network among those who want them now."""
        self.stale = False
        active = np.flatnonzero(self.running & (self.host != NOWHERE))
        active = active[self.powered[self.host[active]]]
        self.guest_rate[:] = 0.0
        self.wanted_cores[:] = 0.0
        self._refresh_memory(active)
        self._refresh_disk(active)
        self._refresh_net(active)
        self._refresh_cpu(active)
        self._refresh_hosts(active)

    def _refresh_memory(self, active: np.ndarray) -> None:
        wanted = self._wants["memory_used_mib"][active] * MIB
        sees = self.available_bytes[active]
        self.used_bytes[active] = np.minimum(wanted, sees)
        self.rss_bytes[active] = np.minimum(
            np.maximum(self.rss_bytes[active], self.used_bytes[active] + _QEMU_BYTES),
            self.balloon_bytes[active] + _QEMU_BYTES,
        )
        swapping = np.minimum(np.maximum(wanted - sees, 0.0), _SWAP_BYTES_S) * (self.speed[active] > 0)
        self.guest_rate[Guest.SWAP_IN_BYTES, active] = swapping
        self.guest_rate[Guest.SWAP_OUT_BYTES, active] = swapping
        self.guest_rate[Guest.MAJOR_FAULTS, active] = swapping / _PAGE

    def _refresh_disk(self, active: np.ndarray) -> None:
        rate, owner, speed = self.guest_rate, self.host[active], self.speed[active]
        caps = self.caps
        read = np.minimum(self._wants["disk_read_mib_s"][active] * MIB * speed, caps.read[active])
        write = np.minimum(self._wants["disk_write_mib_s"][active] * MIB * speed, caps.write[active])
        both = read + write
        served = share(np.minimum(both, caps.disk[active]), caps.disk_weight[active], owner, self._disk)
        ratio = np.divide(served, both, out=np.ones_like(both), where=both > 0)
        for first, wanted in ((Guest.READ_BYTES, read), (Guest.WRITE_BYTES, write)):
            rate[first, active] = wanted * ratio
            rate[first + 1, active] = wanted * ratio / REQUEST_BYTES
            # a queue makes each request take longer by what the disk falls short
            rate[first + 2, active] = wanted * ratio / REQUEST_BYTES * _SECONDS_A_REQUEST / np.maximum(ratio, 0.01)
        rate[Guest.FLUSH_REQUESTS, active] = rate[Guest.WRITE_REQUESTS, active] * _FLUSHES_A_WRITE
        rate[Guest.FLUSH_SECONDS, active] = rate[Guest.WRITE_SECONDS, active] * _FLUSHES_A_WRITE
        rate[Guest.WAIT, active] = 1.0 - ratio

    def _refresh_net(self, active: np.ndarray) -> None:
        rate, owner, speed = self.guest_rate, self.host[active], self.speed[active]
        for first, name, cap in (
            (Guest.RECEIVE_BYTES, "net_receive_mib_s", self.caps.receive),
            (Guest.TRANSMIT_BYTES, "net_transmit_mib_s", self.caps.transmit),
        ):
            wanted = self._wants[name][active] * MIB * speed
            served = share(np.minimum(wanted, cap[active]), np.ones_like(wanted), owner, self.net)
            rate[first, active] = served
            rate[first + 1, active] = served / _PACKET
            rate[first + 2, active] = np.maximum(wanted - served, 0.0) / _PACKET

    def _refresh_cpu(self, active: np.ndarray) -> None:
        rate, owner, vcpus = self.guest_rate, self.host[active], self.vcpus[active]
        full_speed = np.minimum(np.minimum(self._wants["cpu_cores"][active], vcpus), self.caps.cpu[active])
        wanted = full_speed * self.speed[active]
        given = share(wanted, self.shares[active], owner, self.cpus - self.overhead_cores)
        self.wanted_cores[active] = wanted
        rate[Guest.CPU, active] = given
        rate[Guest.DELAY, active] = np.maximum(wanted - given, 0.0)
        rate[Guest.PSI_CPU_SOME, active] = np.minimum(rate[Guest.DELAY, active], 1.0)
        # one thread of the guest waits for its disk, on a vCPU that has nothing else to do
        rate[Guest.WAIT, active] = np.minimum(rate[Guest.WAIT, active], vcpus - wanted)
        rate[Guest.PSI_IO_SOME, active] = rate[Guest.WAIT, active]
        # a guest that gets less CPU writes its memory more slowly
        pace = np.divide(given, full_speed, out=self.speed[active].copy(), where=full_speed > 0)
        self.dirty_rate[active] = self._wants["dirty_mib_s"][active] * MIB * pace

    def _refresh_hosts(self, active: np.ndarray) -> None:
        owner, count = self.host[active], len(self.host_names)
        rate = self.host_rate

        def summed(values: Floats) -> Floats:
            return np.asarray(np.bincount(owner, weights=values, minlength=count))

        def some(values: Floats) -> Floats:
            """Return the share of time in which at least one of independent waiters waits."""
            return 1.0 - np.exp(summed(np.log1p(-np.clip(values, 0.0, 0.999999))))

        delay, wait = self.guest_rate[Guest.DELAY, active], self.guest_rate[Guest.WAIT, active]
        rate[Host.GUEST] = np.minimum(summed(self.guest_rate[Guest.CPU, active]), self.cpus - self.overhead_cores)
        rate[Host.SYSTEM] = self.overhead_cores
        spare = np.maximum(self.cpus - rate[Host.GUEST] - rate[Host.SYSTEM], 0.0)
        rate[Host.IOWAIT] = np.minimum(summed(wait), spare)
        rate[Host.IDLE] = spare - rate[Host.IOWAIT]
        rate[Host.PSI_CPU_SOME] = some(delay)
        full = np.clip((self.host_used_bytes / self.memory_bytes - _PRESSURE_FROM) / (1 - _PRESSURE_FROM), 0.0, 1.0)
        rate[Host.PSI_MEMORY_SOME] = full
        rate[Host.PSI_MEMORY_FULL] = full * 0.5
        rate[Host.PSI_IO_SOME] = some(wait)
        rate[Host.PSI_IO_FULL] = rate[Host.PSI_IO_SOME] * rate[Host.IDLE] / self.cpus
        for mine, theirs in _THROUGH:
            rate[mine] = summed(self.guest_rate[theirs, active])
        rate[Host.DISK_BUSY] = np.minimum((rate[Host.READ_BYTES] + rate[Host.WRITE_BYTES]) / self._disk, 1.0)
        self.runnable = summed(self.wanted_cores[active] + wait) + self.overhead_cores
        rate[:, ~self.powered] = 0.0
        self.runnable[~self.powered] = 0.0

    def integrate(self, span_s: float) -> None:
        """Let `span_s` seconds pass at the present rates."""
        self.guest_total += self.guest_rate * span_s
        self.host_total += self.host_rate * span_s
        keep = np.exp(-span_s / _LOAD_WINDOWS_S)[:, None]
        self.load = self.runnable + (self.load - self.runnable) * keep
        keep = np.exp(-span_s / WINDOWS_S)[:, None]
        ratios = self.host_rate[PRESSURES][:, None, :]
        self.pressure = ratios + (self.pressure - ratios) * keep

    def set_shares(self, guest: int, value: int) -> None:
        """Set a guest's CPU shares."""
        self.shares[guest] = value
        self.stale = True
        self.tell(guest, EventKind.KNOB_CHANGED, "cputune", {"cpu_shares": float(value)})

    def land(self, guest: int, host: int) -> None:
        """Put a guest on another host: a new QEMU process there, its counters from zero, its knobs kept."""
        self.host[guest] = host
        self.start(guest, reason=_MIGRATED)

    def start(self, guest: int, reason: int = 1) -> None:
        """Give a guest a new QEMU process where it is; `reason` is a virDomainRunningReason.

        Unless it comes from another host, it has what its definition says, and nothing that was set while it ran.
        """
        self.stale = True
        if reason != _MIGRATED:
            self.shares[guest] = self.scenario.guests[guest].cpu_shares
            self.notes.pop(guest, None)
            self.on_boot(guest)
        self.running[guest], self.paused[guest], self.speed[guest] = True, False, 1.0
        self._runs += 1
        self.run[guest] = self._runs
        self.reason[guest] = reason
        self.guest_total[_OF_PROCESS, guest] = 0.0
        self.rss_bytes[guest] = self.used_bytes[guest] + _QEMU_BYTES
        self.tell(guest, EventKind.STARTED, "migrated" if reason == _MIGRATED else "booted")

    def stop(self, guest: int, reason: int) -> None:
        """End a guest's QEMU process; `reason` is a virDomainShutoffReason."""
        self.stale = True
        self.running[guest], self.paused[guest], self.speed[guest] = False, False, 1.0
        self.run[guest] = -1
        self.reason[guest] = reason
        self.guest_total[:, guest] = 0.0
        self.rss_bytes[guest] = self.used_bytes[guest] = 0.0
        self.tell(guest, EventKind.STOPPED, _STOPPED.get(reason, ""))

    def pause(self, guest: int, reason: int) -> None:
        """Stop a guest's CPUs; `reason` is a virDomainPausedReason."""
        self.stale = True
        self.paused[guest], self.speed[guest], self.reason[guest] = True, 0.0, reason
        self.tell(guest, EventKind.SUSPENDED, "paused")

    def resume(self, guest: int, reason: int) -> None:
        """Let a guest go on; `reason` is a virDomainRunningReason."""
        self.stale = True
        self.paused[guest], self.speed[guest], self.reason[guest] = False, 1.0, reason
        self.tell(guest, EventKind.RESUMED, "unpaused")

    def power_off(self, host: int) -> None:
        """Cut a host's power: its guests end, its counters are lost."""
        self.stale = True
        self.powered[host] = False
        for guest in np.flatnonzero((self.host == host) & self.running).tolist():
            self.stop(guest, reason=3)

    def power_on(self, host: int, time_s: float) -> None:
        """Boot a host at `time_s`: counters from zero."""
        self.stale = True
        self.powered[host] = True
        self.ksm_run[host] = 0
        self.booted_s[host] = time_s
        self.host_total[:, host] = 0.0
        self.load[:, host] = 0.0
        self.pressure[:, :, host] = 0.0
