"""The knobs of simulated guests and hosts beside CPU shares: their values, and what they hold the guests down to."""

from __future__ import annotations

from typing import Final

import numpy as np

from virtpilot.errors import HypervisorError, KnobUnsupported
from virtpilot.events import EventKind
from virtpilot.hypervisor import Footprint
from virtpilot.knobs import KNOBS, NO_LIMIT, Family, Knob
from virtpilot.simulator.world import MIB, REQUEST_BYTES, World

# Where a knob stands that nobody has set; the other limits are none.
_UNSET: Final = {
    **{f"{part}_period": 100_000 for part in ("vcpu", "global", "emulator", "iothread")},
    "blkio_weight": 100,
    "ksm_pages_to_scan": 100,
    "ksm_sleep_millisecs": 20,
}
_DEVICES: Final = frozenset({"vda", "nic0"})
_ABSENT: Final = frozenset({"guest_vcpus", "numa_nodeset"})
_PART_OF_EVENT: Final = {Family.SCHEDULE: "cputune", Family.PINNING: "cputune", Family.DISK: "blkdeviotune"}


class KnobBook:
    """What has been set in one fleet; a guest's values go where it goes."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._values: dict[tuple[str, str], int] = {}
        world.on_boot = self._forget

    def _forget(self, guest: int) -> None:
        """Give a guest that starts anew what its definition says."""
        world, spec = self._world, self._world.scenario.guests[guest]
        world.vcpus[guest], world.balloon_bytes[guest] = spec.vcpus, spec.memory_mib * MIB
        self._values = {key: value for key, value in self._values.items() if key[0] != spec.uuid}
        self._hold(guest, spec.uuid)

    def get(self, guest: int, knob: Knob) -> int:
        """Return a guest's value; raises KnobUnsupported."""
        self._check(knob)
        world = self._world
        match knob.name:
            case "cpu_shares":
                return int(world.shares[guest])
            case "vcpus":
                return int(world.vcpus[guest])
            case "memory_balloon":
                return int(world.balloon_bytes[guest])
        return self._of(world.scenario.guests[guest].uuid, knob.name)

    def set(self, guest: int, knob: Knob, value: int) -> None:
        """Set a guest's value; raises KnobUnsupported, and HypervisorError for what the guest cannot have."""
        self._check(knob)
        self._check_value(guest, knob, value)
        world, spec = self._world, self._world.scenario.guests[guest]
        match knob.name:
            case "cpu_shares":
                world.set_shares(guest, value)
                return
            case "vcpus":
                world.vcpus[guest] = value
            case "memory_balloon":
                world.balloon_bytes[guest] = value
                world.tell(guest, EventKind.BALLOON_CHANGED, "", {"memory_balloon_bytes": float(value)})
            case _:
                self._values[spec.uuid, knob.name] = value
        world.stale = True
        self._hold(guest, spec.uuid)
        if knob.family in _PART_OF_EVENT:
            world.tell(guest, EventKind.KNOB_CHANGED, _PART_OF_EVENT[knob.family], {knob.name: float(value)})

    def get_of_host(self, host: int, knob: Knob) -> int:
        """Return a host's value."""
        if knob.name == "ksm_run":
            return int(self._world.ksm_run[host])
        return self._of(self._world.host_names[host], knob.name)

    def set_of_host(self, host: int, knob: Knob, value: int) -> None:
        """Set a host's value; it changes nothing else in the fleet."""
        if knob.name == "ksm_run":
            self._world.ksm_run[host] = value
        else:
            self._values[self._world.host_names[host], knob.name] = value

    def told(self, guest: int) -> dict[str, int]:
        """Return the knobs of a running guest that are told with its statistics: those without a limit are not."""
        uuid = self._world.scenario.guests[guest].uuid
        set_here = {name: value for (owner, name), value in self._values.items() if owner == uuid and value}
        always = ("cpu_shares", "memory_balloon")
        return {name: self.get(guest, KNOBS[name]) for name in always} | set_here

    def footprint(self, guest: int) -> Footprint:
        """Return what a guest takes up."""
        world = self._world
        usable = max(float(world.available_bytes[guest] - world.used_bytes[guest]), 0.0)
        return Footprint(
            vcpus=int(world.vcpus[guest]),
            memory_bytes=int(world.balloon_bytes[guest]),
            memory_max_bytes=int(world.scenario.guests[guest].memory_mib * MIB),
            usable_bytes=int(usable),
            rss_bytes=int(world.rss_bytes[guest]),
            told_s=0.0,
        )

    def _of(self, owner: str, name: str) -> int:
        return self._values.get((owner, name), _UNSET.get(name, NO_LIMIT))

    @staticmethod
    def _check(knob: Knob) -> None:
        device = knob.name.partition(".")[0] if knob.device else ""
        if knob.name in _ABSENT or (device and device not in _DEVICES):
            raise KnobUnsupported(f"a simulated guest has no {knob.name}")

    def _check_value(self, guest: int, knob: Knob, value: int) -> None:
        spec = self._world.scenario.guests[guest]
        if not knob.allows(value):
            raise HypervisorError(f"invalid argument: {knob.name} {value} must be from {knob.low} to {knob.high}")
        most = {"vcpus": spec.vcpus, "memory_balloon": spec.memory_mib * MIB}.get(knob.name, knob.high)
        if value > most:
            raise HypervisorError(f"invalid argument: {knob.name} {value} is more than the guest's {most}")

    def _hold(self, guest: int, uuid: str) -> None:
        """Put a guest's limits into the arrays that the world works with."""

        def limit(name: str, factor: float = 1.0) -> float:
            value = self._of(uuid, name)
            return value * factor if value != NO_LIMIT else np.inf

        caps, vcpus = self._world.caps, float(self._world.vcpus[guest])
        pinned = self._of(uuid, "vcpupin").bit_count() or np.inf
        caps.cpu[guest] = min(
            limit("vcpu_quota", vcpus / self._of(uuid, "vcpu_period")),
            limit("global_quota", 1.0 / self._of(uuid, "global_period")),
            pinned,
        )
        for array, way in ((caps.read, "read"), (caps.write, "write"), (caps.disk, "total")):
            array[guest] = min(limit(f"vda.{way}_bytes_sec"), limit(f"vda.{way}_iops_sec", REQUEST_BYTES))
        caps.receive[guest] = limit("nic0.inbound_average")
        caps.transmit[guest] = limit("nic0.outbound_average")
        caps.disk_weight[guest] = self._of(uuid, "blkio_weight")
