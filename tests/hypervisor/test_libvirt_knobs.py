"""Knobs through libvirt where no real one here can show it: NICs, KVM's vCPUs, disk weights, large hosts."""

# ruff: noqa: N802 - the names are libvirt's
from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from tests.hypervisor.fake_libvirt import WEB, FakeLibvirt, FakeLibvirtError, fail
from virtpilot.clock import VirtualClock
from virtpilot.errors import HypervisorError, HypervisorTimeout, KnobUnsupported
from virtpilot.hypervisor import Footprint
from virtpilot.knobs import find
from virtpilot.libvirt_host import LibvirtHypervisor
from virtpilot.libvirt_knobs import KnobAccess, read_footprint

GUEST: Final = "00000000-0000-4000-8000-000000000001"
XML: Final = """<domain type='{type}'><memory unit='KiB'>8192</memory><iothreads>2</iothreads><vcpus>
<vcpu id='0' enabled='yes' hotpluggable='no'/><vcpu id='1' enabled='yes' hotpluggable='yes'/>
<vcpu id='2' enabled='no' hotpluggable='yes'/></vcpus><devices>
<disk><target dev='vda'/></disk>
<interface><target dev='vnet7'/></interface><interface><target dev='vnet3'/></interface>
<channel><target name='org.qemu.guest_agent.0' state='{agent}'/></channel>{balloon}
<memory model='virtio-mem'><target><size unit='KiB'>262144</size><requested unit='KiB'>0</requested>
<current unit='KiB'>0</current></target><alias name='virtiomem0'/></memory></devices></domain>"""


class Guest:
    """A guest and its host as libvirt-python tells them; `calls` are those that change something."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.xml = XML.format(type="kvm", agent="connected", balloon="<memballoon model='virtio'/>")
        self.vcpus = 2
        self.agent_error: FakeLibvirtError | None = None
        self.unseen = 0
        self.nic = {f"{way}.{part}": 0 for way in ("inbound", "outbound") for part in ("average", "peak", "burst")}
        self.pins: Sequence[tuple[bool, ...]] = [(True, True, True, True)] * 2
        self.actual = [4096, 4000, 3500, 3072]
        self.driver = "QEMU"

    def lookupByUUIDString(self, uuid: str) -> Guest:
        assert uuid == GUEST
        return self

    def getType(self) -> str:
        return self.driver

    def getInfo(self) -> list[Any]:
        return ["x86_64", 4096, 4, 2000, 2, 1, 2, 1]

    def getCPUMap(self) -> tuple[int, list[bool], int]:
        return 4, [True] * 4, 4

    def isActive(self) -> int:
        return 1

    def XMLDesc(self) -> str:
        return self.xml

    def vcpusFlags(self, flags: int) -> int:
        return self.vcpus if flags == 1 else self.vcpus - 1

    def setVcpusFlags(self, count: int, flags: int) -> None:
        self.calls.append(("vcpus", count, flags))
        if flags == FakeLibvirt.VIR_DOMAIN_VCPU_GUEST and self.unseen:
            self.unseen -= 1
            raise FakeLibvirtError("guest agent reports less cpu than requested", FakeLibvirt.VIR_ERR_INTERNAL_ERROR)
        if flags == FakeLibvirt.VIR_DOMAIN_VCPU_GUEST and self.agent_error is not None:
            raise self.agent_error

    def interfaceParameters(self, target: str, _flags: int) -> Mapping[str, int]:
        assert target in {"vnet7", "vnet3"}
        return self.nic

    def setInterfaceParameters(self, target: str, values: Mapping[str, int], _flags: int) -> None:
        self.calls.append((target, values))

    def vcpuPinInfo(self, _flags: int) -> Sequence[tuple[bool, ...]]:
        return self.pins

    def pinVcpuFlags(self, number: int, places: tuple[bool, ...], _flags: int) -> None:
        self.calls.append((number, places))

    def numaParameters(self, _flags: int) -> Mapping[str, Any]:
        return {"numa_mode": 0, "numa_nodeset": "0-1"}

    def setNumaParameters(self, values: Mapping[str, str], _flags: int) -> None:
        self.calls.append(("numa", values))

    def blkioParameters(self, _flags: int) -> Mapping[str, Any]:
        return {"weight": 500}

    def setBlkioParameters(self, values: Mapping[str, int], _flags: int) -> None:
        self.calls.append(("blkio", values))

    def memoryStats(self) -> dict[str, int]:
        actual = self.actual.pop(0) if len(self.actual) > 1 else self.actual[0]
        return {"actual": actual, "usable": 1024, "rss": 5000, "last_update": 90}

    def setMemoryFlags(self, kib: int, _flags: int) -> None:
        self.calls.append(("memory", kib))

    def updateDeviceFlags(self, xml: str, _flags: int) -> None:
        self.calls.append(("device", xml))
        self.xml = self.xml.replace("<current unit='KiB'>0<", "<current unit='KiB'>65536<")

    def getMemoryParameters(self, _flags: int) -> Mapping[str, int]:
        return {"shm_pages_to_scan": 100}

    def setMemoryParameters(self, values: Mapping[str, int], _flags: int) -> None:
        self.calls.append(("node", values))


@pytest.fixture
def guest() -> Guest:
    return Guest()


@pytest.fixture
def access(tmp_path: Path) -> KnobAccess:
    return KnobAccess(FakeLibvirt(), frozenset(range(4)), tmp_path / "ksm", tmp_path / "groups")


def read(access: KnobAccess, guest: Guest, name: str) -> int:
    knob = find(name)
    assert knob is not None
    return access.read(guest, GUEST, knob)


def write(access: KnobAccess, guest: Guest, name: str, value: int) -> list[tuple[Any, ...]]:
    knob = find(name)
    assert knob is not None
    access.write(guest, GUEST, knob, value)
    return guest.calls


def test_a_nic_is_found_by_its_place_and_keeps_what_else_is_set(access: KnobAccess, guest: Guest) -> None:
    guest.nic |= {"inbound.average": 800, "inbound.peak": 900, "inbound.burst": 64}
    assert read(access, guest, "nic1.inbound_average") == 800_000
    assert read(access, guest, "nic0.inbound_burst") == 64 * 1024
    calls = write(access, guest, "nic1.inbound_average", 500_000)
    assert calls == [("vnet3", {"inbound.average": 500, "inbound.peak": 900, "inbound.burst": 64})]
    with pytest.raises(KnobUnsupported, match="no nic2: its NICs are 2"):
        read(access, guest, "nic2.inbound_average")


def test_vcpus_are_plugged_in_with_the_agents_help_where_it_gives_it(access: KnobAccess, guest: Guest) -> None:
    assert write(access, guest, "vcpus", 3) == [("vcpus", 3, 1), ("vcpus", 3, 8)]
    guest.calls.clear()
    # The guest's kernel takes a moment to see them.
    guest.unseen = 2
    assert write(access, guest, "vcpus", 3) == [("vcpus", 3, 1), *[("vcpus", 3, 8)] * 3]
    guest.calls.clear()
    guest.agent_error = FakeLibvirtError("no answer", 86)
    assert write(access, guest, "vcpus", 3) == [("vcpus", 3, 1), ("vcpus", 3, 8)]
    guest.calls.clear()
    assert write(access, guest, "vcpus", 1) == [("vcpus", 1, 1)]
    guest.calls.clear()
    guest.xml = XML.format(type="kvm", agent="disconnected", balloon="")
    assert write(access, guest, "vcpus", 3) == [("vcpus", 3, 1)]
    assert (read(access, guest, "vcpus"), read(access, guest, "guest_vcpus")) == (2, 1)


def test_what_a_guest_takes_up(guest: Guest) -> None:
    told = read_footprint(guest, 1, 100 * 10**9)
    assert told == Footprint(
        vcpus=2, fixed_vcpus=1, unplugs=True, iothreads=2, memory_bytes=4096 * 1024, memory_max_bytes=8192 * 1024,
        usable_bytes=1024 * 1024,
        rss_bytes=5000 * 1024, told_s=10.0,
    )  # fmt: skip
    guest.xml = guest.xml.replace("type='kvm'", "type='qemu'")
    assert not read_footprint(guest, 1, 0).unplugs


def test_a_balloon_is_waited_for_while_it_moves(access: KnobAccess, guest: Guest) -> None:
    assert write(access, guest, "memory_balloon", 3072 * 1024) == [("memory", 3072)]
    assert read(access, guest, "memory_balloon") == 3072 * 1024
    guest.xml = XML.format(type="kvm", agent="connected", balloon="<memballoon model='none'/>")
    with pytest.raises(KnobUnsupported, match="no balloon"):
        read(access, guest, "memory_balloon")


def test_memory_is_plugged_in_through_the_device_of_that_alias(access: KnobAccess, guest: Guest) -> None:
    ((_, xml),) = write(access, guest, "virtiomem0.plugged", 64 * 2**20)
    assert '<requested unit="KiB">65536</requested>' in xml
    assert read(access, guest, "virtiomem0.plugged") == 64 * 2**20
    with pytest.raises(KnobUnsupported, match="no virtiomem1"):
        read(access, guest, "virtiomem1.plugged")


def test_pins(access: KnobAccess, guest: Guest) -> None:
    assert read(access, guest, "vcpupin") == 0
    assert write(access, guest, "vcpupin", 0b0101) == [(0, (True, False, True, False)), (1, (True, False, True, False))]
    guest.pins = [(True, False, True, False)] * 2
    assert read(access, guest, "vcpupin") == 0b0101
    guest.calls.clear()
    assert write(access, guest, "vcpupin", 0) == [(0, (True,) * 4), (1, (True,) * 4)]
    guest.pins = [(True, False, True, False), (True, True, True, True)]
    with pytest.raises(KnobUnsupported, match="one by one: 0,2 0-3"):
        read(access, guest, "vcpupin")
    with pytest.raises(HypervisorError, match="vcpupin 4: this host has 0-3"):
        write(access, guest, "vcpupin", 0b10000)
    guest.calls.clear()
    assert read(access, guest, "numa_nodeset") == 0
    assert write(access, guest, "numa_nodeset", 0) == [("numa", {"numa_nodeset": "0-1"})]


def test_a_cpu_number_that_no_measurement_could_carry_is_refused(guest: Guest, tmp_path: Path) -> None:
    large = KnobAccess(FakeLibvirt(), frozenset(range(128)), tmp_path)
    guest.pins = [(True,) * 128]
    assert read(large, guest, "vcpupin") == 0
    guest.pins = [(False,) * 60 + (True,) * 68]
    with pytest.raises(KnobUnsupported, match="numbers above 51 cannot be told"):
        read(large, guest, "vcpupin")


def test_a_disk_weight_counts_where_the_kernel_has_a_place_for_it(
    access: KnobAccess, guest: Guest, tmp_path: Path
) -> None:
    with pytest.raises(KnobUnsupported, match="weighs no disk requests"):
        read(access, guest, "blkio_weight")
    place = tmp_path / "groups" / "machine.slice"
    place.mkdir(parents=True)
    (place / "io.bfq.weight").touch()
    assert read(access, guest, "blkio_weight") == 500
    assert write(access, guest, "blkio_weight", 300) == [("blkio", {"weight": 300})]


def test_the_hosts_page_merging(access: KnobAccess, guest: Guest, tmp_path: Path) -> None:
    with pytest.raises(KnobUnsupported, match="this host has no ksm_run"):
        read(access, guest, "ksm_run")
    (tmp_path / "ksm").mkdir()
    (tmp_path / "ksm" / "run").write_text("0\n")
    write(access, guest, "ksm_run", 1)
    assert read(access, guest, "ksm_run") == 1
    assert read(access, guest, "ksm_pages_to_scan") == 100
    assert write(access, guest, "ksm_pages_to_scan", 200) == [("node", {"shm_pages_to_scan": 200})]
    with pytest.raises(KnobUnsupported):
        read(access, guest, "ksm_sleep_millisecs")


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (FakeLibvirt.VIR_ERR_NO_SUPPORT, KnobUnsupported),
        (FakeLibvirt.VIR_ERR_ARGUMENT_UNSUPPORTED, KnobUnsupported),
        (FakeLibvirt.VIR_ERR_OPERATION_UNSUPPORTED, KnobUnsupported),
        (FakeLibvirt.VIR_ERR_CONFIG_UNSUPPORTED, KnobUnsupported),
        (FakeLibvirt.VIR_ERR_OPERATION_TIMEOUT, HypervisorTimeout),
        (FakeLibvirt.VIR_ERR_AGENT_UNRESPONSIVE, HypervisorTimeout),
        (9, HypervisorError),
    ],
)
def test_an_error_means_the_same_whether_a_knob_is_set_or_read(code: int, kind: type[HypervisorError]) -> None:
    """A guest that is held by another call, or whose agent is silent, has the knob all the same."""
    libvirt = FakeLibvirt()
    hypervisor = LibvirtHypervisor("fake:///system", clock=VirtualClock(), binding=libvirt)
    libvirt.on |= dict.fromkeys(("setSchedulerParametersFlags", "lookupByUUIDString"), fail("no", code))
    with pytest.raises(HypervisorError) as read:
        hypervisor.get_knob(WEB, "cpu_shares")
    libvirt.on.pop("lookupByUUIDString")
    with pytest.raises(HypervisorError) as written:
        hypervisor.set_knob(WEB, "cpu_shares", 2048)
    assert (type(read.value), type(written.value)) == (kind, kind)
    hypervisor.close()
