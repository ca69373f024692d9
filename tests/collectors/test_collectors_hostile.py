"""Whatever /proc and libvirt say: finite numbers, ratios within 0 and 1, the documented errors, no guest lost."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.collectors.told_guests import ToldGuests
from tests.collectors.trees import TextTree
from tests.thoroughness import examples
from virtpilot.clock import seconds
from virtpilot.collectors import cpu, disk, load, memory, nic, numa, paging, pressure
from virtpilot.collectors.collector import HostCollector
from virtpilot.collectors.number import pairs
from virtpilot.fields import FIELDS, Unit
from virtpilot.hypervisor import GuestDetails, GuestStats
from virtpilot.lineprotocol import encode_lines, parse
from virtpilot.model import Sample

FULL: Final[dict[str, Any]] = json.loads((Path(__file__).parent / "guests/everything-that-qemu-tells.json").read_text())
FILES: Final = [
    "proc/stat",
    "proc/meminfo",
    "proc/loadavg",
    "proc/vmstat",
    "proc/diskstats",
    "proc/net/dev",
    "proc/pressure/cpu",
    "proc/pressure/io",
    "sys/block/sda/size",
    "sys/block/some/size",
    "sys/class/net/eth0/speed",
    "sys/devices/system/node/node0/meminfo",
    "sys/devices/system/node/node0/numastat",
    "sys/devices/system/node/node٣/meminfo",
    "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages",
    "sys/kernel/mm/hugepages/hugepages-ÿ/nr_hugepages",
    "sys/kernel/mm/ksm/pages_shared",
]
MEASURED: Final = {Unit.RATIO, Unit.SECONDS, Unit.PER_SECOND, Unit.BYTES_PER_SECOND}
START_NS: Final = seconds(1_800_000_000)
# A domain's CPU time has QEMU's own threads in it: a guest can use more than its vCPUs.
# A burst exceeds its limit.
UNBOUND: Final = {
    ("vm", "cpu_usage_ratio"),
    ("host", "cpu_overcommit_ratio"),
    ("host", "memory_overcommit_ratio"),
    ("vm", "cpu_limit_ratio"),
    ("vm", "disks_limit_used_ratio"),
    ("vm", "nics_limit_used_ratio"),
    ("vm_disk", "limit_used_ratio"),
    ("vm_net", "limit_used_ratio"),
}
bounded = settings(derandomize=True, deadline=None, max_examples=examples(150))

words = st.sampled_from(
    [
        "cpu0",
        "cpu1",
        "cpu",
        "some",
        "full",
        "avg10=0.00",
        "total=12",
        "total=x",
        "MemTotal:",
        "MemAvailable:",
        "Node 0 MemTotal:",
        "Node 0 MemUsed:",
        "numa_hit",
        "pswpin",
        "oom_kill",
        "eth0:",
        "sda",
        "8 0 sda 1 2 3 4 5 6 7 8 9 10 11",
        "eth0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16",
        "kB",
        "0",
        "7",
        "18446744073709551616",
        "-3",
        "99999999999999999999999",
        "1e400",
        "nan",
        "inf",
        "\x00",
        "ÿ",
        ":",
        "=",
        "٣",
    ]
)
texts = st.one_of(st.text(max_size=80), st.lists(st.lists(words, max_size=11).map(" ".join), max_size=6).map("\n".join))
values = st.one_of(
    st.integers(0, 2**63),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.text(max_size=5),
)
odd_names = [
    "unheard.of",
    "vcpu.9.delay",
    "vcpu.9.halted",
    "block.7.name",
    "block..rd.bytes",
    "net.999999999.rx.bytes",
    "iothread.1.poll-max-ns",
    "iothread.٣.poll-grow",
    "perf.cmt",
    "perf.cpu_cycles",
    "dirtyrate.megabytes_per_second",
]
stats = st.dictionaries(st.one_of(st.sampled_from([*sorted(FULL["first"]), *odd_names]), st.text(max_size=8)), values)


def limits_of(measurement: str) -> st.SearchStrategy[dict[str, int]]:
    names = sorted(name for kind, name in FIELDS if kind == measurement and "limit_" in name and "ratio" not in name)
    return st.dictionaries(st.sampled_from(names), st.integers(1, 2**62))


def check_numbers(samples: list[Sample]) -> None:
    for sample in samples:
        for name, value in sample.fields.items():
            assert math.isfinite(value)
            assert value >= 0
            declared = FIELDS[sample.measurement, name]
            # a store that keeps types refuses a field that is an integer now and a float then
            if sample.measurement.startswith("host"):
                assert isinstance(value, float) or declared.unit not in MEASURED, (sample.measurement, name)
            if declared.unit is Unit.RATIO and (sample.measurement, name) not in UNBOUND:
                assert value <= 1, name


@bounded
@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(FILES),
            texts,
        )
    )
)
def test_a_proc_that_says_anything(moments: list[dict[str, str]]) -> None:
    tree = TextTree()
    collector = HostCollector(ToldGuests(), tree, {"host": "h"}, frozenset({0, 1}), monotonic_ns=lambda: 0)
    for number, moment in enumerate(moments):
        tree.files = moment
        samples = collector.collect(START_NS + number * seconds(40))
        check_numbers(samples)
        assert samples[0].fields["guests_defined_count"] == 0
        assert parse(encode_lines(samples)).bad == []


@bounded
@given(texts)
def test_each_parser_by_itself_raises_value_error_at_most(text: str) -> None:
    assert all(number >= 0 for number in cpu.parse(text, frozenset({0})).values())
    told: list[Mapping[str, int | float]] = [
        memory.parse(text),
        pressure.parse(text),
        paging.parse(text),
        numa.parse_memory(text),
        dict(pairs(text)),
        *disk.parse(text, frozenset(text.split()).__contains__).values(),
        *nic.parse(text).values(),
    ]
    for found in told:
        assert all(number >= 0 for number in found.values())
    with contextlib.suppress(ValueError):
        assert all(math.isfinite(number) for number in load.parse(text).values())


@bounded
@given(st.lists(stats, min_size=1, max_size=3), limits_of("vm_disk"), limits_of("vm_net"))
def test_guests_of_which_libvirt_says_anything(
    rounds: list[dict[str, Any]], disk: dict[str, int], nic: dict[str, int]
) -> None:
    hypervisor = ToldGuests()
    collector = HostCollector(
        hypervisor, TextTree(), {"cluster": "c", "host": "h"}, frozenset({0}), monotonic_ns=lambda: 0
    )
    sound = {"state.state": 1, "state.reason": 1, "cpu.time": 5}
    for number, told in enumerate(rounds):
        details = GuestDetails(disks={"vda": disk, "0": disk}, nics={"vnet3": nic, "0": nic})
        odd = GuestStats("u-1", "odd one", told, run=1, age_s=1.5, details=details)
        hypervisor.told = [odd, GuestStats("u-2", "sound", sound, run=1)]
        samples = collector.collect(START_NS + number * seconds(10))
        check_numbers(samples)
        assert any(sample.tags.get("vm") == "u-2" for sample in samples)
        if told.get("state.state") == 1 and not isinstance(told["state.state"], bool):
            assert any(sample.tags.get("vm") == "u-1" for sample in samples)


@bounded
@given(st.lists(st.dictionaries(st.sampled_from(sorted(FULL["first"])), st.integers(0, 2**50)), max_size=3))
def test_what_is_told_goes_over_the_wire_unchanged(rounds: list[dict[str, Any]]) -> None:
    hypervisor = ToldGuests()
    collector = HostCollector(hypervisor, TextTree(), {"host": "h"}, frozenset({0}), monotonic_ns=lambda: 0)
    for number, part in enumerate(rounds):
        hypervisor.told = [GuestStats("u-1", "a name, with = signs", FULL["first"] | part, run=1)]
        samples = collector.collect(START_NS + number * seconds(10))
        parsed = parse(encode_lines(samples))
        assert parsed.bad == []
        assert [(s.measurement, dict(s.tags), dict(s.fields), s.time_ns) for s in parsed.samples] == [
            (s.measurement, dict(sorted(s.tags.items())), s.fields, s.time_ns) for s in samples
        ]
