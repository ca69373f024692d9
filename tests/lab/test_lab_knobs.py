"""Every knob on a real QEMU guest: set by the executor, read back from libvirt, QEMU, the kernel or inside the guest.

What this kernel or an emulated QEMU cannot do is refused in words, or fails and is taken back.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from xml.etree.ElementTree import Element

import pytest
from defusedxml.ElementTree import fromstring

from deploy import lab as lab_module
from deploy.lab import GuestPlan, Lab
from deploy.lab.container import Container, lacking
from deploy.lab.image import Image
from tests.actuators.one_host import at, command
from tests.lab.lab_process import need_a_lab
from tests.services import lack, until
from virtpilot.action import SetKnob
from virtpilot.actuators.caps import Caps
from virtpilot.actuators.executor import Executor
from virtpilot.actuators.journal import Journal
from virtpilot.clock import SystemClock, seconds
from virtpilot.errors import KnobUnsupported
from virtpilot.libvirt_host import LibvirtHypervisor
from virtpilot.model import Outcome, Result

pytestmark = [pytest.mark.lab, pytest.mark.alone, pytest.mark.one_core, pytest.mark.slow]

NAME: Final = "knoblab"
MIB: Final = 2**20
BOOT_MIB: Final = 192
CAPS: Final = Caps(balloon_floor_bytes=24 * MIB, memory_limit_headroom_bytes=64 * MIB)
_MEMORY: Final = f"""<maxMemory slots='2' unit='MiB'>1024</maxMemory><memory unit='MiB'>{BOOT_MIB + 256}</memory>
<currentMemory unit='MiB'>{BOOT_MIB}</currentMemory><iothreads>1</iothreads>
<cpu><numa><cell id='0' cpus='0-1' memory='{BOOT_MIB}' unit='MiB'/></numa></cpu>"""
_DEVICE: Final = """<memory model='virtio-mem'><target><size unit='MiB'>256</size><node>0</node>
<block unit='KiB'>2048</block><requested unit='MiB'>0</requested></target></memory></devices>"""


@dataclass(frozen=True)
class KnobPlan(GuestPlan):
    """A guest that has everything that a knob can turn: an I/O thread, a NUMA cell, memory to plug in, an agent."""

    def xml(self, lab: str, image: Image) -> str:
        text = super().xml(lab, image)
        for old, new in (
            ("<memory unit='MiB'>128</memory>", _MEMORY),
            ("virtpilot.load=0", "virtpilot.load=0 virtpilot.cpus=agent memhp_default_state=online_movable"),
            ("</devices>", _DEVICE),
        ):
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        return text


class Bench:
    """The executor of one host of the lab, and what others say of its guest."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab = lab
        self.host = lab.hosts["host-1"]
        self.guest = lab.guest("k-1")
        self._widen()
        self.hypervisor = LibvirtHypervisor(self.host.uri, clock=SystemClock(), cpus=frozenset(os.sched_getaffinity(0)))
        self.executor = Executor(self.hypervisor, Journal(folder / "journal.jsonl"), host="host-1", caps=CAPS)
        self._number = 0

    def _widen(self) -> None:
        """Let the host's guests run on every CPU: else there is nothing to pin."""
        cpus = ",".join(map(str, sorted(os.sched_getaffinity(0))))
        for folder in self._folders:
            for file in sorted(folder.rglob("cpuset.cpus"), key=lambda path: len(path.parts)):
                file.write_text(cpus)

    @property
    def _folders(self) -> list[Path]:
        return [door.parent for door in self.host.group.outer_doors()]

    def set(self, knob: str, value: int, expected: int = 0, *, guest: str = "") -> Outcome:
        """Set a knob for a minute of the executor's own time."""
        self._number += 1000
        guest = guest or self.guest.uuid
        action = SetKnob(guest=guest, knob=knob, value=value, expected=expected, lease_s=60)
        sent = command(action, f"cm-{self._number}", at_ns=at(self._number))
        (outcome,) = self.executor.submit(sent, at(self._number))
        return outcome

    def done(self, knob: str, value: int, expected: int = 0, *, guest: str = "") -> None:
        outcome = self.set(knob, value, expected, guest=guest)
        assert (outcome.result, outcome.after) == (Result.DONE, {knob: value}), outcome.reason

    def refused(self, knob: str, value: int, expected: int = 0) -> tuple[str, str]:
        outcome = self.set(knob, value, expected)
        assert outcome.result is Result.REFUSED, outcome
        return outcome.guard, outcome.reason

    def wait(self, after_s: float) -> list[Outcome]:
        """Let time pass since the last command, for the executor."""
        return self.executor.poll(at(self._number + after_s))

    def end(self) -> None:
        """Let every lease end and see it given back."""
        ended = self.wait(61)
        assert [outcome.result for outcome in ended] == [Result.REVERTED], ended
        assert [outcome.reason for outcome in ended] == ["the lease has ended"]
        assert self.executor.leases() == []

    def qmp(self, word: str) -> Any:
        said = self.host.virsh("qemu-monitor-command", "k-1", json.dumps({"execute": word}))
        return json.loads(said)["return"]

    def xml(self) -> Element:
        return fromstring(self.host.virsh("dumpxml", "k-1"))

    def group(self, name: str, part: str = "") -> str:
        """Return a file of the guest's control group, or of a part's such as `vcpu0`."""
        found = [file for folder in self._folders for file in folder.rglob(name) if "-k-1." in str(file)]
        fitting = [file for file in found if (file.parent.name == part if part else "-k-1." in file.parent.name)]
        if not fitting:
            lack(f"the guest's control group has no {name}")
        return fitting[0].read_text().strip()

    def cpu_rate(self, wall_s: float = 3.0) -> float:
        """Return the CPUs that the vCPU threads use."""
        clock = SystemClock()
        before, began = self.guest.domstats(), clock.monotonic_ns()
        until(lambda: clock.monotonic_ns() - began > seconds(wall_s), wall_s + 5)
        after, took = self.guest.domstats(), clock.monotonic_ns() - began
        return (int(after["vcpu.0.time"]) - int(before["vcpu.0.time"])) / took


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    need_a_lab()
    with lab_module.bring_up(NAME, plans=(KnobPlan("k-1", "host-1", agent=True),)) as lab:
        made = Bench(lab, tmp_path_factory.mktemp("agent"))
        yield made
        made.executor.close()
        made.hypervisor.close()
    assert lab_module.leftovers(NAME) == []


@pytest.fixture(autouse=True)
def nothing_left(bench: Bench) -> Iterator[None]:
    """Give everything back after each test, also after one that failed."""
    yield
    bench.wait(900)
    bench.guest.set_load(0)


def test_a_quota_slows_the_vcpus_and_leaves_qemus_own_threads_alone(bench: Bench) -> None:
    bench.guest.set_load(100)
    free = bench.cpu_rate()
    bench.done("vcpu_quota", 20_000)
    assert bench.group("cpu.cfs_quota_us", "vcpu0") == "20000"
    assert bench.group("cpu.cfs_quota_us", "emulator") == "-1"
    assert bench.cpu_rate() < 0.25 < free
    bench.end()
    assert bench.group("cpu.cfs_quota_us", "vcpu0") == "-1"


def test_a_quota_of_the_whole_guest_leaves_headroom_for_emulator_and_io_thread(bench: Bench) -> None:
    # One vCPU, the emulator and one I/O thread: 0.05 + 2 * 0.2 CPUs.
    assert bench.refused("global_quota", 40_000) == (
        "floor", "global_quota 40000 of global_period 100000 is 0.40 CPUs, 0.45 are the least here",
    )  # fmt: skip
    assert bench.refused("emulator_quota", 10_000)[0] == "floor"
    assert bench.refused("iothread_quota", 10_000)[0] == "floor"
    bench.done("global_quota", 60_000)
    assert bench.group("cpu.cfs_quota_us") == "60000"
    bench.end()
    bench.done("iothread_quota", 30_000)
    assert bench.group("cpu.cfs_quota_us", "iothread1") == "30000"
    bench.end()
    assert bench.group("cpu.cfs_quota_us", "iothread1") == "-1"


def test_a_period_is_set_and_given_back(bench: Bench) -> None:
    bench.done("vcpu_period", 50_000, 100_000)
    assert bench.group("cpu.cfs_period_us", "vcpu0") == "50000"
    bench.end()
    assert bench.group("cpu.cfs_period_us", "vcpu0") == "100000"


def test_shares_are_set_and_given_back(bench: Bench) -> None:
    bench.done("cpu_shares", 4096, 1024)
    assert bench.group("cpu.shares") == "4096"
    bench.end()
    assert bench.group("cpu.shares") == "1024"


def test_vcpus_are_pinned_and_let_go(bench: Bench) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        lack("pinning needs a second CPU")
    bench.done("vcpupin", 0b10)
    assert bench.group("cpuset.cpus", "vcpu0") == "1"
    assert bench.xml().find("cputune/vcpupin[@vcpu='0']").get("cpuset") == "1"  # type: ignore[union-attr]
    bench.end()
    assert bench.group("cpuset.cpus", "vcpu0") == "0-1"
    bench.done("emulatorpin", 0b01)
    assert bench.group("cpuset.cpus", "emulator") == "0"
    bench.end()
    assert bench.group("cpuset.cpus", "emulator") == "0-1"
    assert bench.refused("vcpupin", 1 << 40)[0] == "value"
    assert bench.refused("numa_nodeset", 0b110)[0] == "value"


def test_a_vcpu_is_plugged_in_and_the_guest_uses_it(bench: Bench) -> None:
    """QEMU without KVM must not unplug: a lease could not be given back, so the executor refuses."""
    assert bench.refused("vcpus", 2, 1) == (
        "knob", "this guest is emulated, its vCPUs cannot be unplugged safely; guest_vcpus can",
    )  # fmt: skip
    assert bench.guest.see()[0] == "0"
    bench.hypervisor.set_knob(bench.guest.uuid, "vcpus", 2)
    assert bench.hypervisor.get_knob(bench.guest.uuid, "vcpus") == 2
    assert len(bench.qmp("query-cpus-fast")) == 2
    # The agent inside has brought it online.
    assert until(lambda: bench.guest.see()[0] == "0-1", 20)


def test_vcpus_pinned_one_by_one_are_left_alone(bench: Bench) -> None:
    bench.host.virsh("vcpupin", "k-1", "0", "0", "--live")
    guard, reason = bench.refused("vcpupin", 0b10)
    assert (guard, reason) == ("knob", "its vCPUs are pinned one by one: 0 0-1")
    bench.host.virsh("vcpupin", "k-1", "0", "0-1", "--live")


def test_the_guests_kernel_lets_go_of_a_vcpu_and_takes_it_back(bench: Bench) -> None:
    assert bench.refused("guest_vcpus", 3, 2)[0] == "value"
    bench.done("guest_vcpus", 1, 2)
    assert bench.guest.see()[0] == "0"
    bench.end()
    assert bench.guest.see()[0] == "0-1"


def usable(bench: Bench) -> int:
    return bench.hypervisor.footprint(bench.guest.uuid).usable_bytes or 0


def test_the_balloon_takes_what_the_guest_does_not_work_with(bench: Bench) -> None:
    full = BOOT_MIB * MIB
    assert until(lambda: usable(bench) > 40 * MIB, 20), "the guest tells of its memory"
    assert bench.refused("memory_balloon", 96 * MIB, full)[0] == "working-set"
    seen = bench.guest.see()[1]
    target = full - 16 * MIB
    bench.done("memory_balloon", target, full)
    assert bench.qmp("query-balloon")["actual"] == target
    assert bench.guest.see()[1] == seen - 16 * MIB
    bench.end()
    assert bench.qmp("query-balloon")["actual"] == full
    assert bench.guest.see()[1] == seen


def test_a_step_of_the_balloon_is_bounded(bench: Bench) -> None:
    full = BOOT_MIB * MIB
    strict = Caps(balloon_floor_bytes=MIB, balloon_step_ratio=0.05)
    made = Executor(bench.hypervisor, Journal(bench.host.folder / "strict.jsonl"), host="host-1", caps=strict)
    action = SetKnob(guest=bench.guest.uuid, knob="memory_balloon", value=full - 16 * MIB, expected=full, lease_s=60)
    (outcome,) = made.submit(command(action), at(0))
    assert (outcome.guard, outcome.reason) == ("step", "the balloon takes 10 MiB at a time here, not 16 MiB")
    made.close()


def test_a_guest_that_falls_short_has_its_balloon_given_back_at_once(bench: Bench) -> None:
    full = BOOT_MIB * MIB
    target = full - 16 * MIB
    bench.done("memory_balloon", target, full)
    assert bench.wait(6) == []
    room = usable(bench)
    bench.guest.ask(f"eat {(room - 7 * MIB) // MIB}", timeout_s=40)
    assert until(lambda: usable(bench) < 12 * MIB, 20)
    (ended,) = bench.wait(12)
    assert (ended.result, ended.after) == (Result.REVERTED, {"memory_balloon": full})
    assert ended.reason.startswith("the guest is short of memory: it could give back")
    assert bench.qmp("query-balloon")["actual"] == full
    bench.guest.ask("eat 0")


def test_memory_is_plugged_in_and_out_again(bench: Bench) -> None:
    seen = bench.guest.see()[1]
    bench.done("virtiomem0.plugged", 64 * MIB)
    assert bench.xml().findtext("devices/memory/target/current") == str(64 * 1024)
    assert until(lambda: bench.guest.see()[1] >= seen + 60 * MIB, 10)
    bench.end()
    assert bench.xml().findtext("devices/memory/target/current") == "0"
    assert until(lambda: bench.guest.see()[1] == seen, 10)
    assert bench.refused("virtiomem1.plugged", 64 * MIB)[0] == "knob"


def test_memory_limits_are_in_the_guests_control_group(bench: Bench) -> None:
    assert bench.refused("memory_hard_limit", BOOT_MIB * MIB)[0] == "floor"
    bench.done("memory_hard_limit", 1024 * MIB)
    assert bench.group("memory.limit_in_bytes") == str(1024 * MIB)
    bench.end()
    assert int(bench.group("memory.limit_in_bytes")) > 2**60
    bench.done("memory_soft_limit", 128 * MIB)
    assert bench.group("memory.soft_limit_in_bytes") == str(128 * MIB)
    bench.end()
    assert int(bench.group("memory.soft_limit_in_bytes")) > 2**60


def throttle(bench: Bench) -> dict[str, int]:
    (disk,) = [one["inserted"] for one in bench.qmp("query-block") if "inserted" in one]
    return {name: disk.get(name, 0) for name in ("iops", "bps_rd", "bps_wr", "iops_max")}


def read_s(bench: Bench, count: int) -> float:
    """Return how long the guest takes to read from its disk."""
    clock = SystemClock()
    began = clock.monotonic_ns()
    bench.guest.ask(f"read {count}", timeout_s=40)
    return (clock.monotonic_ns() - began) / 1e9


def test_a_disk_is_throttled_with_bursts_and_let_go(bench: Bench) -> None:
    free = read_s(bench, 40)
    bench.done("vda.total_iops_sec", 20)
    assert throttle(bench) == {"iops": 20, "bps_rd": 0, "bps_wr": 0, "iops_max": 0}
    # 40 requests at 20 a second, of which the first few pass at once.
    assert read_s(bench, 40) > max(1.0, 2 * free)
    bench.end()
    assert throttle(bench)["iops"] == 0
    bench.host.virsh("blkdeviotune", "k-1", "vda", "--live", "--total-iops-sec", "50", "--write-bytes-sec", "900000")
    bench.done("vda.total_iops_sec_max", 80)
    bench.done("vda.read_bytes_sec", 700_000)
    # What somebody else has set beside it stays.
    assert throttle(bench) == {"iops": 50, "bps_rd": 700_000, "bps_wr": 900_000, "iops_max": 80}
    bench.wait(2000)
    assert throttle(bench) == {"iops": 50, "bps_rd": 0, "bps_wr": 900_000, "iops_max": 0}
    assert bench.refused("vdz.total_iops_sec", 20) == ("knob", "this guest has no disk vdz")
    bench.host.virsh("blkdeviotune", "k-1", "vda", "--live", "--total-iops-sec", "0", "--write-bytes-sec", "0")


def test_a_nics_bandwidth_is_shaped_or_the_kernels_word_is_passed_on(bench: Bench) -> None:
    outcome = bench.set("nic0.inbound_average", 1_000_000)
    target = bench.xml().find("devices/interface/target")
    assert target is not None
    if outcome.result is Result.DONE:
        assert "1:" in bench.host.run(["tc", "class", "show", "dev", str(target.get("dev"))])
        bench.end()
    else:  # a kernel without sch_sfq: said, and nothing is left behind
        assert outcome.result is Result.FAILED
        assert "tc qdisc" in outcome.reason
        assert "it is back at 0" in outcome.reason
    assert bench.executor.leases() == []
    assert bench.hypervisor.get_knob(bench.guest.uuid, "nic0.inbound_average") == 0
    assert bench.refused("nic7.inbound_average", 1_000_000)[0] == "knob"


def test_a_disk_weight_without_a_place_in_the_kernel_is_refused(bench: Bench) -> None:
    groups = Path("/sys/fs/cgroup")
    if any(groups.glob("blkio/*/blkio*weight")) or any(groups.glob("*/io*weight")):
        bench.done("blkio_weight", 300, bench.hypervisor.get_knob(bench.guest.uuid, "blkio_weight"))
        bench.end()
    else:
        guard, reason = bench.refused("blkio_weight", 300, 100)
        assert guard == "knob"
        assert reason.endswith("the host's kernel weighs no disk requests")


def test_the_hosts_page_merging_is_set_and_given_back(bench: Bench) -> None:
    file = Path("/sys/kernel/mm/ksm/pages_to_scan")
    before = int(file.read_text())
    bench.done("ksm_pages_to_scan", before + 100, before, guest="host-1")
    assert int(file.read_text()) == before + 100
    bench.end()
    assert int(file.read_text()) == before
    run = int(file.with_name("run").read_text())
    bench.done("ksm_run", 1 - run % 2, run, guest="host-1")
    assert int(file.with_name("run").read_text()) == 1 - run % 2
    bench.end()
    assert int(file.with_name("run").read_text()) == run


def test_a_container_refuses_what_it_does_not_have(bench: Bench) -> None:
    if lacking():
        lack(f"this needs {', '.join(lacking())}")
    container = Container(bench.host, "box")
    container.start()
    hypervisor = LibvirtHypervisor(container.uri, clock=SystemClock())
    for knob in ("vcpus", "vcpupin", "memory_balloon", "vda.total_iops_sec", "virtiomem0.plugged", "guest_vcpus"):
        with pytest.raises(KnobUnsupported):
            hypervisor.get_knob(container.uuid, knob)
    before = hypervisor.get_knob(container.uuid, "vcpu_quota")
    hypervisor.set_knob(container.uuid, "vcpu_quota", 50_000)
    assert "vcpu_quota     : 50000" in container.virsh("schedinfo", "box")
    hypervisor.set_knob(container.uuid, "vcpu_quota", before)
    container.destroy()
    hypervisor.close()
