"""How each family of knobs is read from and written to a running guest of libvirt, or to the host itself.

A reader raises KnobUnsupported where the driver or this guest has no such knob; libvirt's own errors pass through.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from xml.etree.ElementTree import Element, tostring

import structlog

from virtpilot.clock import SECOND
from virtpilot.errors import HypervisorError, KnobUnsupported
from virtpilot.hypervisor import Footprint
from virtpilot.knobs import MAX_NUMBER_IN_SET, NO_LIMIT, Family, Knob, list_of, numbers_in
from virtpilot.libvirt_limits import agent_listens, root_of

log = structlog.get_logger(__name__)

KSM: Final = Path("/sys/kernel/mm/ksm")
GROUPS: Final = Path("/sys/fs/cgroup")
_WEIGHTS: Final = ("blkio/*/blkio*weight", "*/io*weight", "unified/*/io*weight")
_KIB: Final = 1024
_NO_MEMORY_LIMIT: Final = 2**53 - 1  # VIR_DOMAIN_MEMORY_PARAM_UNLIMITED, KiB
_SETTLE_STEP_S: Final = 0.05
_SETTLE_STEPS: Final = 60
_STILL_STEPS: Final = 20  # what has not moved for so many steps moves no more
_PER_NIC_UNIT: Final = {"average": 1000, "peak": 1000, "burst": 1024}


class KnobAccess:
    """Reads and writes knobs; `cpus` are those of the host that guests may run on."""

    def __init__(self, binding: Any, cpus: frozenset[int], ksm: Path = KSM, groups: Path = GROUPS) -> None:
        self._binding = binding
        self._live = int(binding.VIR_DOMAIN_AFFECT_LIVE)
        self._cpus = sum(1 << cpu for cpu in cpus)
        self._ksm = ksm
        self._groups = groups
        self._readers: Mapping[Family, Callable[[Any, Any, Knob], int]] = {
            Family.SCHEDULE: self._read_schedule,
            Family.VCPUS: self._read_vcpus,
            Family.PINNING: self._read_pins,
            Family.BALLOON: self._read_balloon,
            Family.MEMORY_DEVICE: self._read_plugged,
            Family.MEMORY_LIMIT: self._read_memory_limit,
            Family.BLOCK_WEIGHT: self._read_weight,
            Family.DISK: self._read_disk,
            Family.NIC: self._read_nic,
        }
        self._writers: Mapping[Family, Callable[[Any, Any, Knob, int], None]] = {
            Family.SCHEDULE: self._write_schedule,
            Family.VCPUS: self._write_vcpus,
            Family.PINNING: self._write_pins,
            Family.BALLOON: self._write_balloon,
            Family.MEMORY_DEVICE: self._write_plugged,
            Family.MEMORY_LIMIT: self._write_memory_limit,
            Family.BLOCK_WEIGHT: self._write_weight,
            Family.DISK: self._write_disk,
            Family.NIC: self._write_nic,
        }

    def read(self, connection: Any, guest: str, knob: Knob) -> int:
        """Return a knob's live value; raises KnobUnsupported, HypervisorError and libvirt's errors."""
        if knob.of_host:
            return self._read_ksm(connection, knob)
        domain = connection.lookupByUUIDString(guest)
        if domain.isActive() != 1:  # not left to libvirt: see read_schedule
            raise KnobUnsupported(f"guest {guest} is not running: it has no {knob.name} just now")
        return self._readers[knob.family](connection, domain, knob)

    def write(self, connection: Any, guest: str, knob: Knob, value: int) -> None:
        """Set a knob's live value; raises KnobUnsupported, HypervisorError and libvirt's errors."""
        if knob.of_host:
            return self._write_ksm(connection, knob, value)
        domain = connection.lookupByUUIDString(guest)
        if domain.isActive() != 1:
            raise HypervisorError(f"guest {guest} is not running: it has no live {knob.name}")
        return self._writers[knob.family](connection, domain, knob, value)

    def _read_schedule(self, connection: Any, domain: Any, knob: Knob) -> int:
        found = read_schedule(self._binding, connection, domain).get(knob.name)
        if found is None:
            raise KnobUnsupported(f"this guest has no {knob.name} just now")
        value = int(found)
        # Without a quota libvirt tells -1, or what that is without a sign.
        return NO_LIMIT if knob.limit and not knob.low <= value <= knob.high else value

    def _write_schedule(self, _connection: Any, domain: Any, knob: Knob, value: int) -> None:
        # Of a quota 0 is "as it is" to libvirt.
        told = -1 if knob.limit and value == NO_LIMIT else value
        domain.setSchedulerParametersFlags({knob.name: told}, self._live)

    def _read_vcpus(self, _connection: Any, domain: Any, knob: Knob) -> int:
        return int(domain.vcpusFlags(self._live | self._of_guest(knob)))

    def _write_vcpus(self, _connection: Any, domain: Any, knob: Knob, value: int) -> None:
        if inside := self._of_guest(knob):
            domain.setVcpusFlags(value, inside)
            return
        rises = value > int(domain.vcpusFlags(self._live))
        domain.setVcpusFlags(value, self._live)
        if rises and agent_listens(_description(domain)):
            self._bring_online(domain, value)

    def _bring_online(self, domain: Any, count: int) -> None:
        """Let the agent inside bring new vCPUs online, once the guest's kernel has seen them; without it they wait."""
        pause = threading.Event()
        for left in reversed(range(_SETTLE_STEPS)):
            try:
                domain.setVcpusFlags(count, int(self._binding.VIR_DOMAIN_VCPU_GUEST))
            except self._binding.libvirtError as error:
                # Of vCPUs that it does not see yet the agent tells less than it is asked for, no more than that.
                if left and error.get_error_code() == self._binding.VIR_ERR_INTERNAL_ERROR:
                    pause.wait(_SETTLE_STEP_S)
                    continue
                log.debug("the guest agent does not help with new vCPUs", error=str(error))
            return

    def _of_guest(self, knob: Knob) -> int:
        return int(self._binding.VIR_DOMAIN_VCPU_GUEST) if knob.name == "guest_vcpus" else 0

    def _read_pins(self, connection: Any, domain: Any, knob: Knob) -> int:
        if knob.name == "numa_nodeset":
            text = str(domain.numaParameters(self._live).get("numa_nodeset", ""))
            return _of_all(_told_numbers(text), _nodes(connection))
        told = domain.vcpuPinInfo(self._live) if knob.name == "vcpupin" else [domain.emulatorPinInfo(self._live)]
        pins = {_mask(one) & self._cpus for one in told}
        if len(pins) != 1:
            each = " ".join(map(list_of, map(_mask, told)))
            raise KnobUnsupported(f"its vCPUs are pinned one by one: {each}")
        return _of_all(pins.pop(), self._cpus)

    def _write_pins(self, connection: Any, domain: Any, knob: Knob, value: int) -> None:
        there = _nodes(connection) if knob.name == "numa_nodeset" else self._cpus
        wanted = there if value == NO_LIMIT else value
        if wanted & ~there:
            raise HypervisorError(f"{knob.name} {list_of(wanted)}: this host has {list_of(there)}")
        if knob.name == "numa_nodeset":
            domain.setNumaParameters({"numa_nodeset": list_of(wanted)}, self._live)
            return
        places = tuple(bool(wanted >> cpu & 1) for cpu in range(int(connection.getCPUMap()[0])))
        if knob.name == "emulatorpin":
            domain.pinEmulator(places, self._live)
            return
        for number in range(len(domain.vcpuPinInfo(self._live))):
            domain.pinVcpuFlags(number, places, self._live)

    def _read_balloon(self, connection: Any, domain: Any, _knob: Knob) -> int:
        balloon = _description(domain).find("devices/memballoon")
        if connection.getType() == "LXC" or balloon is None or balloon.get("model") == "none":
            raise KnobUnsupported("this guest has no balloon")
        return _actual(domain)

    def _write_balloon(self, _connection: Any, domain: Any, _knob: Knob, value: int) -> None:
        domain.setMemoryFlags(value // _KIB, self._live)
        _settle(lambda: _actual(domain), value)

    def _read_plugged(self, _connection: Any, domain: Any, knob: Knob) -> int:
        return _size(_memory_device(domain, knob), "current")

    def _write_plugged(self, _connection: Any, domain: Any, knob: Knob, value: int) -> None:
        device = _memory_device(domain, knob)
        requested = device.find("target/requested")
        if requested is None:
            raise KnobUnsupported(f"{knob.name} cannot be changed")
        requested.text, requested.attrib["unit"] = str(value // _KIB), "KiB"
        domain.updateDeviceFlags(tostring(device, "unicode"), self._live)
        _settle(lambda: _size(_memory_device(domain, knob), "current"), value)

    def _read_memory_limit(self, _connection: Any, domain: Any, knob: Knob) -> int:
        found = domain.memoryParameters(self._live).get(knob.name.removeprefix("memory_"))
        if found is None:
            raise KnobUnsupported(f"this guest has no {knob.name}")
        return NO_LIMIT if int(found) >= _NO_MEMORY_LIMIT else int(found) * _KIB

    def _write_memory_limit(self, _connection: Any, domain: Any, knob: Knob, value: int) -> None:
        kib = _NO_MEMORY_LIMIT if value == NO_LIMIT else value // _KIB
        domain.setMemoryParameters({knob.name.removeprefix("memory_"): kib}, self._live)

    def _read_weight(self, _connection: Any, domain: Any, knob: Knob) -> int:
        found = domain.blkioParameters(self._live).get("weight")
        # libvirt (seen with 9.0) takes a weight where the kernel has no place for it, and tells it as if it had.
        if not found or not any(place for pattern in _WEIGHTS for place in self._groups.glob(pattern)):
            raise KnobUnsupported(f"this guest has no {knob.name}: the host's kernel weighs no disk requests")
        return int(found)

    def _write_weight(self, _connection: Any, domain: Any, _knob: Knob, value: int) -> None:
        domain.setBlkioParameters({"weight": value}, self._live)

    def _read_disk(self, _connection: Any, domain: Any, knob: Knob) -> int:
        found = self._tuned(domain, knob).get(_rest(knob))
        if found is None:
            raise KnobUnsupported(f"this guest has no {knob.name}")
        return int(found)

    def _write_disk(self, _connection: Any, domain: Any, knob: Knob, value: int) -> None:
        """Set one limit; libvirt takes away those of its kind that are not told with it."""
        name = _rest(knob)
        what = "bytes_sec" if "bytes" in name else "iops_sec"
        kind = what + name.partition(what)[2]
        told = self._tuned(domain, knob)
        alike = {f"{way}_{kind}": int(told.get(f"{way}_{kind}", 0)) for way in ("total", "read", "write")}
        domain.setBlockIoTune(_device(knob), alike | {name: value}, self._live)

    def _tuned(self, domain: Any, knob: Knob) -> Mapping[str, Any]:
        disks = [target.get("dev") for target in _description(domain).iterfind("devices/disk/target")]
        if _device(knob) not in disks:
            raise KnobUnsupported(f"this guest has no disk {_device(knob)}")
        found: Mapping[str, Any] = domain.blockIoTune(_device(knob), self._live)
        return found

    def _read_nic(self, _connection: Any, domain: Any, knob: Knob) -> int:
        way, part = _rest(knob).split("_")
        found = domain.interfaceParameters(_nic(domain, knob), self._live).get(f"{way}.{part}")
        if found is None:
            raise KnobUnsupported(f"this guest has no {knob.name}")
        return int(found) * _PER_NIC_UNIT[part]

    def _write_nic(self, _connection: Any, domain: Any, knob: Knob, value: int) -> None:
        """Set one of a direction's three numbers; libvirt takes away those that are not told with it."""
        way, part = _rest(knob).split("_")
        target = _nic(domain, knob)
        told = domain.interfaceParameters(target, self._live)
        alike = {f"{way}.{one}": int(told.get(f"{way}.{one}", 0)) for one in _PER_NIC_UNIT}
        domain.setInterfaceParameters(target, alike | {f"{way}.{part}": value // _PER_NIC_UNIT[part]}, self._live)

    def _read_ksm(self, connection: Any, knob: Knob) -> int:
        if knob.name == "ksm_run":
            try:
                return int((self._ksm / "run").read_text())
            except (OSError, ValueError) as error:
                raise KnobUnsupported(f"this host has no {knob.name}: {error}") from error
        found = connection.getMemoryParameters(0).get(f"shm_{knob.name.removeprefix('ksm_')}")
        if found is None:
            raise KnobUnsupported(f"this host has no {knob.name}")
        return int(found)

    def _write_ksm(self, connection: Any, knob: Knob, value: int) -> None:
        if knob.name == "ksm_run":
            try:
                (self._ksm / "run").write_text(f"{value}\n")
            except OSError as error:
                raise HypervisorError(f"{knob.name} cannot be set: {error}") from error
        else:
            connection.setMemoryParameters({f"shm_{knob.name.removeprefix('ksm_')}": value}, 0)


def read_schedule(binding: Any, connection: Any, domain: Any) -> Mapping[str, Any]:
    """Return a guest's live scheduler parameters, none where its driver has none; raises where the connection is lost.

    libvirt reads them from the cgroup itself, whoever wrote them. Its LXC driver (seen with 9.0) crashes libvirtd when
    it is asked for those of a container that is off.
    """
    try:
        if domain.isActive() != 1:
            return {}
        return dict(domain.schedulerParametersFlags(binding.VIR_DOMAIN_AFFECT_LIVE))
    except binding.libvirtError:
        if connection.isAlive() != 1:
            raise
        return {}


def read_footprint(domain: Any, live: int, now_ns: int) -> Footprint:
    """Return what a running guest takes up; raises libvirt's errors."""
    told, root = domain.memoryStats(), _description(domain)
    usable, updated_s = told.get("usable"), told.get("last_update")
    return Footprint(
        vcpus=int(domain.vcpusFlags(live)),
        fixed_vcpus=len(root.findall("vcpus/vcpu[@enabled='yes'][@hotpluggable='no']")),
        # Without KVM, QEMU (seen with 7.2) unplugs a vCPU and tells nobody, and ends when it is plugged in again.
        unplugs=root.get("type") != "qemu",
        iothreads=int(root.findtext("iothreads") or 0),
        memory_bytes=int(told["actual"]) * _KIB,
        memory_max_bytes=int(root.findtext("memory") or 0) * _KIB,
        usable_bytes=None if usable is None else int(usable) * _KIB,
        rss_bytes=int(told.get("rss", 0)) * _KIB,
        told_s=max(now_ns / SECOND - updated_s, 0.0) if updated_s else math.inf,
    )


def _description(domain: Any) -> Element:
    root = root_of(domain.XMLDesc())
    if root is None:
        raise HypervisorError("the guest's description cannot be read")
    return root


def _device(knob: Knob) -> str:
    return knob.name.partition(".")[0]


def _rest(knob: Knob) -> str:
    return knob.name.partition(".")[2]


def _nic(domain: Any, knob: Knob) -> str:
    """Return the target of the NIC that `nic0` and so on stands for, which is another one on each host."""
    number = int(_device(knob).removeprefix("nic"))
    targets = [target.get("dev", "") for target in _description(domain).iterfind("devices/interface/target")]
    if number >= len(targets):
        raise KnobUnsupported(f"this guest has no {_device(knob)}: its NICs are {len(targets)}")
    return targets[number]


def _memory_device(domain: Any, knob: Knob) -> Element:
    for device in _description(domain).iterfind("devices/memory[@model='virtio-mem']"):
        alias = device.find("alias")
        if alias is not None and alias.get("name") == _device(knob):
            return device
    raise KnobUnsupported(f"this guest has no {_device(knob)}: memory is plugged in through a virtio-mem device")


def _size(device: Element, name: str) -> int:
    text = device.findtext(f"target/{name}") or ""
    if not text.strip().isdecimal():
        raise KnobUnsupported(f"the device does not tell its {name} size")
    return int(text) * _KIB


def _actual(domain: Any) -> int:
    return int(domain.memoryStats()["actual"]) * _KIB


def _settle(read: Callable[[], int], wanted: int) -> None:
    """Wait until the guest has done what it is asked for, or does no more; whether it is right is checked after."""
    pause, seen, still = threading.Event(), -1, 0
    for _step in range(_SETTLE_STEPS):
        live = read()
        still = still + 1 if live == seen else 0
        if live == wanted or still > _STILL_STEPS:
            return
        seen = live
        pause.wait(_SETTLE_STEP_S)


def _mask(places: Sequence[bool]) -> int:
    return sum(1 << number for number, taken in enumerate(places) if taken)


def _told_numbers(text: str) -> int:
    try:
        return numbers_in(text) if text else 0
    except ValueError as error:
        raise KnobUnsupported(str(error)) from error


def _nodes(connection: Any) -> int:
    return int((1 << int(connection.getInfo()[4])) - 1)


def _of_all(found: int, there: int) -> int:
    """Return a set as a knob's value: of all that there are it is no limit."""
    if found in {0, there}:
        return NO_LIMIT
    if found >> (MAX_NUMBER_IN_SET + 1):
        raise KnobUnsupported(f"{list_of(found)}: numbers above {MAX_NUMBER_IN_SET} cannot be told")
    return found
