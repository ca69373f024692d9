"""The collector as a whole: totals, failures told once, guests that come and go, a real /proc and a real libvirt."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import pytest
import structlog.testing

from tests.collectors.told_guests import ToldGuests
from tests.collectors.trees import TextTree
from virtpilot.clock import SystemClock, seconds
from virtpilot.collectors import collector as collector_module
from virtpilot.collectors.collector import HostCollector
from virtpilot.collectors.source import Found, Look, Source
from virtpilot.collectors.sources import SOURCES
from virtpilot.collectors.tree import FileTree, Tree
from virtpilot.errors import HypervisorTimeout
from virtpilot.fields import FIELDS, names
from virtpilot.hypervisor import GuestStats
from virtpilot.libvirt_host import LibvirtHypervisor

# What is no source of a host's measurements.
PARTS = {
    "__init__",
    "budget",
    "collector",
    "cgroup",
    "domain",
    "guest_groups",
    "hierarchy",
    "host",
    "layout",
    "limits",
    "number",
    "opened",
    "rates",
    "reading",
    "source",
    "sources",
    "throttle",
    "tree",
}
KSM = ("run", "full_scans", "pages_shared", "pages_sharing", "pages_unshared", "pages_volatile")
# Nothing to tell of: no disk, no NIC, no vmstat, no huge pages, no merging, no NUMA.
QUIET = {
    "sys/block/loop0/size": "",
    "proc/diskstats": "",
    "proc/net/dev": "",
    "proc/vmstat": "",
    "sys/devices/system/node/online": "",
    "sys/kernel/mm/hugepages/none": "",
    **{f"sys/kernel/mm/ksm/{name}": "" for name in KSM},
}
RUNNING = {"state.state": 1, "state.reason": 1}


def collector_of(
    hypervisor: ToldGuests | LibvirtHypervisor,
    tree: Tree | None = None,
    monotonic_ns: Callable[[], int] = lambda: 0,
) -> HostCollector:
    return HostCollector(
        hypervisor, tree or TextTree(), {"cluster": "c", "host": "h"}, frozenset({0}), monotonic_ns=monotonic_ns
    )


def test_totals_count_what_runs_and_what_is_defined() -> None:
    guests = [
        GuestStats("u-1", "a", RUNNING | {"vcpu.current": 2, "balloon.current": 1024}),
        GuestStats("u-2", "b", RUNNING | {"vcpu.current": 4, "balloon.current": 2048}),
        GuestStats("u-3", "c", {"state.state": 5, "state.reason": 1, "vcpu.current": 8, "balloon.current": 4096}),
    ]
    (host, *_guests) = collector_of(ToldGuests(guests, skipped=3)).collect(seconds(1))
    assert host.fields.keys() <= set(names("host"))
    own = {name: value for name, value in host.fields.items() if not name.startswith(("tick_", "source_"))}
    assert own == {
        "guests_running_count": 2,
        "guests_defined_count": 3,
        "guests_skipped_total": 3,
        "vcpus_allocated_count": 6,
        "memory_allocated_bytes": 3 * 1024 * 1024,
    }


def test_a_failing_source_stops_no_other_and_is_told_once_in_a_row() -> None:
    hypervisor = ToldGuests([GuestStats("u-1", "a", RUNNING)])
    tree = TextTree({"proc/loadavg": "1 2 3", "proc/stat": "cpu0 1 1 1 1 1 1 1 1"} | QUIET, PermissionError)
    collector = collector_of(hypervisor, tree)
    with structlog.testing.capture_logs() as logs:
        for number in range(3):
            host, guest = collector.collect(seconds(10 * number))
            assert (host.fields["load1_count"], guest.measurement) == (1, "vm")
        tree.files["proc/meminfo"] = "MemTotal: 1 kB"
        collector.collect(seconds(30))
        del tree.files["proc/meminfo"]
        collector.collect(seconds(40))
    told = [entry["source"] for entry in logs if entry["log_level"] == "warning"]
    assert told == ["memory", "memory"]
    assert collector.failures == 4


def test_a_hypervisor_that_hangs_costs_the_guests_only() -> None:
    hypervisor = ToldGuests(HypervisorTimeout("no answer"))
    collector = collector_of(hypervisor, TextTree({"proc/loadavg": "1 2 3"}))
    (host,) = collector.collect(seconds(1))
    assert host.fields["load1_count"] == 1
    assert "guests_defined_count" not in host.fields
    hypervisor.told = [GuestStats("u-1", "a", RUNNING)]
    assert [sample.measurement for sample in collector.collect(seconds(11))] == ["host", "vm"]


def test_a_tick_tells_how_long_the_one_before_took() -> None:
    times = itertools.count(0, 250_000_000)
    calls: list[int] = []

    def monotonic_ns() -> int:
        calls.append(next(times))
        return calls[-1]

    collector = collector_of(ToldGuests(), None, monotonic_ns)
    assert "tick_duration_seconds" not in collector.collect(seconds(1))[0].fields
    took_s = (calls[-1] - calls[0]) / 1e9
    assert took_s > 0
    assert collector.collect(seconds(11))[0].fields["tick_duration_seconds"] == took_s


def test_a_guest_that_was_away_for_a_round_has_no_rate_from_before() -> None:
    hypervisor = ToldGuests()
    collector = collector_of(hypervisor)

    def usage(cpu_time: int | None, now_s: int) -> Any:
        told = [GuestStats("u-1", "a", RUNNING | {"vcpu.current": 1, "cpu.time": cpu_time}, run=1)] if cpu_time else []
        hypervisor.told = told
        samples = collector.collect(seconds(now_s))
        return samples[1].fields.get("cpu_usage_ratio") if told else None

    second = 10**9
    assert [usage(second, 0), usage(2 * second, 10), usage(None, 20)] == [None, 0.1, None]
    assert [usage(9 * second, 30), usage(14 * second, 40)] == [None, 0.5]


def test_this_machine_and_libvirts_own_test_driver_are_measured() -> None:
    clock = SystemClock()
    hypervisor = LibvirtHypervisor("test:///default", clock=clock)
    collector = HostCollector(
        hypervisor, FileTree(), {"cluster": "c", "host": "h"}, frozenset(os.sched_getaffinity(0)),
        monotonic_ns=clock.monotonic_ns,
    )  # fmt: skip
    try:
        now_ns = clock.now_ns()
        collector.collect(now_ns)
        samples = collector.collect(now_ns + seconds(10))
    finally:
        hypervisor.close()
    host, (guest,) = samples[0], [sample for sample in samples if sample.measurement == "vm"]
    assert {(sample.measurement, name) for sample in samples for name in sample.fields} <= FIELDS.keys()
    assert host.fields["memory_total_bytes"] == pytest.approx(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    assert host.fields["cpus_count"] == len(os.sched_getaffinity(0))
    assert {"load1_count", "memory_available_bytes", "guests_running_count"} <= host.fields.keys()
    assert (guest.measurement, guest.tags["name"], guest.fields["state_code"]) == ("vm", "test", 1)
    assert collector.failures == 0


def test_a_few_guests_can_be_measured_between_two_ticks_and_all_rates_stay_right() -> None:
    hypervisor = ToldGuests()
    collector = collector_of(hypervisor)

    def usage(now_s: int, only: frozenset[str] | None = None) -> dict[str, float | None]:
        # u-1 uses half a CPU, u-2 a quarter
        hypervisor.told = [
            GuestStats(uuid, uuid, RUNNING | {"vcpu.current": 1, "cpu.time": int(share * now_s * 1e9)}, run=1)
            for uuid, share in (("u-1", 0.5), ("u-2", 0.25))
        ]
        samples = collector.collect(seconds(now_s), only)
        assert (samples[0].measurement == "host") is (only is None)
        return {s.tags["vm"]: s.fields.get("cpu_usage_ratio") for s in samples if s.measurement == "vm"}

    assert usage(100) == {"u-1": None, "u-2": None}
    assert usage(101, frozenset({"u-1"})) == {"u-1": 0.5}
    assert usage(103, frozenset({"u-1", "unheard-of"})) == {"u-1": 0.5}
    assert usage(110) == {"u-1": 0.5, "u-2": 0.25}


def test_a_hypervisor_that_can_tell_of_a_few_guests_is_asked_for_those_alone() -> None:
    class Choosy(ToldGuests):
        def __init__(self, told: Sequence[GuestStats]) -> None:
            super().__init__(told)
            self.asked: list[frozenset[str]] = []

        def some(self, wanted: Collection[str]) -> Sequence[GuestStats]:
            self.asked.append(frozenset(wanted))
            return [guest for guest in super().guests() if guest.uuid in wanted]

        def guests(self) -> Sequence[GuestStats]:
            self.asked.append(frozenset())
            return super().guests()

    hypervisor = Choosy([GuestStats(uuid, uuid, RUNNING) for uuid in ("u-1", "u-2")])
    collector = collector_of(hypervisor)
    collector.collect(seconds(1))
    (sample,) = collector.collect(seconds(2), frozenset({"u-2"}))
    assert sample.tags["vm"] == "u-2"
    assert hypervisor.asked == [frozenset(), frozenset({"u-2"})]


def test_a_late_tick_leaves_out_what_can_wait_and_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now_ns = 0

    def slow(_look: Look) -> Found:
        nonlocal now_ns
        now_ns += 2 * 10**9
        return Found({"load1_count": 1})

    def can_wait(_look: Look) -> Found:
        return Found({"load5_count": 5})

    monkeypatch.setitem(SOURCES, "load", Source(lambda: slow))
    monkeypatch.setitem(SOURCES, "later", Source(lambda: can_wait, every_s=30))
    collector = HostCollector(
        ToldGuests(), TextTree(), {"host": "h"}, frozenset({0}), monotonic_ns=lambda: now_ns, budget_s=1.5
    )
    first, second = (collector.collect(seconds(number))[0].fields for number in (0, 10))
    assert "load5_count" not in first
    waiting = sum(source.every_s > 0 for source in SOURCES.values())
    assert (first["load1_count"], first["tick_skips_total"], first["tick_overruns_total"]) == (1, waiting, 0)
    assert (second["tick_skips_total"], second["tick_overruns_total"]) == (2 * waiting, 1)
    assert (second["tick_budget_seconds"], second["tick_duration_seconds"]) == (1.5, 2)


def test_what_hardly_changes_is_read_seldom_and_told_again_in_between() -> None:
    tree = TextTree({f"sys/kernel/mm/ksm/{name}": "1" for name in KSM} | {"proc/loadavg": "1 2 3"})
    collector = collector_of(ToldGuests(), tree)
    told = []
    for now_s in (0, 10, 20, 29.9, 40):
        tree.files["sys/kernel/mm/ksm/full_scans"] = str(int(now_s))
        told.append(collector.collect(seconds(now_s))[0].fields["ksm_full_scans_total"])
    assert told == [0, 0, 0, 29, 29]
    assert tree.reads.count("sys/kernel/mm/ksm/run") == 3  # it is looked whether it is there before it is kept
    tree.files.clear()
    assert "ksm_full_scans_total" not in collector.collect(seconds(60))[0].fields


def test_what_can_no_more_be_read_is_not_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = False

    def collect(_look: Look) -> Found:
        if broken:
            raise OSError("gone")
        return Found({"ksm_run_code": 1})

    monkeypatch.setitem(SOURCES, "ksm", Source(lambda: collect, every_s=30))
    collector = collector_of(ToldGuests())
    assert "ksm_run_code" in collector.collect(seconds(0))[0].fields
    broken = True
    told = ["ksm_run_code" in collector.collect(seconds(now_s))[0].fields for now_s in (10, 40, 50)]
    assert told == [True, False, False]
    broken = False
    assert "ksm_run_code" in collector.collect(seconds(60))[0].fields


def test_every_module_of_a_source_is_in_the_register_and_what_can_wait_comes_last() -> None:
    modules = {path.stem for path in Path(collector_module.__file__).parent.glob("*.py")}
    assert modules - PARTS == set(SOURCES)
    seldom = [source.every_s > 0 for source in SOURCES.values()]
    assert seldom == sorted(seldom)
