"""Control groups of the real kernel: pressure of a busy v2 group, and of a QEMU guest what its quota does to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from deploy import lab as lab_module
from deploy.lab import GuestPlan, Lab
from tests.lab.lab_process import ROOT, need_a_lab
from tests.services import until
from virtpilot.clock import SystemClock, seconds
from virtpilot.collectors.guest_groups import GuestGroups
from virtpilot.collectors.hierarchy import UNIFIED, find_mounts
from virtpilot.collectors.tree import FileTree

NAME: Final = "groups"
BUSY: Final = [sys.executable, "-c", "while True: pass"]
MEASURE: Final = """
import json, sys, threading
from virtpilot.clock import SystemClock
from virtpilot.collectors.collector import HostCollector
from virtpilot.collectors.tree import FileTree
from virtpilot.libvirt_host import LibvirtHypervisor
clock = SystemClock()
hypervisor = LibvirtHypervisor(sys.argv[1], clock=clock)
collector = HostCollector(hypervisor, FileTree(), {"host": "h"}, frozenset({0}), monotonic_ns=clock.monotonic_ns)
told = []
while len(told) < 200 and not (told and told[-1]["cpu_periods_total"] > told[0]["cpu_periods_total"] + 20):
    threading.Event().wait(0.5)
    samples = collector.collect(clock.now_ns())
    told += [sample.fields for sample in samples if sample.measurement == "vm"]
print(json.dumps([told[0], told[-1]]))
"""


class Below(FileTree):
    """The real files, with one group of this test's own as the place where a v2 hierarchy is mounted."""

    def __init__(self, mount: Path) -> None:
        super().__init__()
        self._mount = mount

    def read(self, path: str) -> str:
        if path == "proc/self/mountinfo":
            return f"1 1 0:1 / {self._mount} rw - cgroup2 cgroup2 rw\n"
        return super().read(path)


@pytest.fixture
def unified() -> Iterator[Path]:
    """A group of this test's own in this machine's v2 hierarchy."""
    folder = find_mounts(FileTree()).get(UNIFIED)
    if folder is None or os.geteuid() or not (Path("/") / folder / "cgroup.procs").exists():
        pytest.skip("no cgroup v2 that this user may write to")
    group = Path("/") / folder / f"virtpilot-test-{os.getpid()}"
    inner = group / "machine.slice" / "machine-qemu\\x2d7\\x2dbusy.scope"
    inner.mkdir(parents=True)
    if not (inner / "cpu.pressure").exists():
        pytest.skip("a kernel without pressure stall information")
    yield group
    for path in (inner, inner.parent, group):
        until(lambda path=path: removed(path), 10)  # type: ignore[misc]


def removed(path: Path) -> bool:
    try:
        path.rmdir()
    except OSError:  # busy: a process is on its way out
        return False
    return True


def test_threads_that_share_one_cpu_are_under_pressure(unified: Path) -> None:
    groups = GuestGroups(Below(unified))
    door = next(unified.glob("machine.slice/*.scope")) / "cgroup.procs"
    cpu = min(os.sched_getaffinity(0))
    clock = SystemClock()
    busy = [subprocess.Popen(BUSY) for _ in range(3)]
    try:
        for process in busy:
            os.sched_setaffinity(process.pid, {cpu})
            door.write_text(str(process.pid))
        began_ns = clock.monotonic_ns()
        assert groups.collect(7, clock.now_ns()).keys() <= {"cgroup_memory_bytes"}
        until(lambda: clock.monotonic_ns() - began_ns > seconds(1), 20)
        told = groups.collect(7, clock.now_ns())
    finally:
        for process in busy:
            process.kill()
            process.wait()
    # of three at most two wait at a time on an idle machine: one always does, not all of them do
    assert told["psi_cpu_some_ratio"] > 0.5
    assert told["psi_cpu_full_ratio"] <= told["psi_cpu_some_ratio"] <= 1
    assert told["psi_memory_full_ratio"] <= 1


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """One real host that matters, with a guest that wants a whole CPU."""
    need_a_lab()
    with lab_module.bring_up(NAME, plans=(GuestPlan("hog", "host-1", load=100),)) as up:
        yield up
    assert lab_module.leftovers(NAME) == []


@pytest.mark.lab
@pytest.mark.slow
def test_a_qemu_guest_with_a_quota_is_told_to_be_stopped_by_it(lab: Lab) -> None:
    host = lab.hosts["host-1"]

    def measured() -> list[dict[str, float]]:
        text = host.run([sys.executable, "-c", MEASURE, host.uri], cwd=ROOT, timeout_s=60)
        found: list[dict[str, float]] = json.loads(text.splitlines()[-1])
        return found

    host.virsh("schedinfo", "hog", "--set", "vcpu_quota=20000", "--live")
    first, last = measured()
    assert last["cpu_throttled_ratio"] > 0.5
    assert last["cpu_throttled_seconds_total"] > first["cpu_throttled_seconds_total"]
    assert last["cpu_throttled_periods_total"] <= last["cpu_periods_total"]
    assert last["cgroup_memory_bytes"] > 32 * 1024 * 1024
    assert last["cgroup_memory_peak_bytes"] > 32 * 1024 * 1024
    assert last["cgroup_oom_kills_total"] == 0
