"""Guests' control groups: recorded trees of each layout, groups that come and go, names and files that say anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.collectors.told_guests import ToldGuests
from tests.collectors.trees import TextTree
from tests.thoroughness import examples
from virtpilot.clock import seconds
from virtpilot.collectors import throttle
from virtpilot.collectors.cgroup import FILES, REFRESH_NS
from virtpilot.collectors.collector import HostCollector
from virtpilot.collectors.guest_groups import GuestGroups
from virtpilot.collectors.hierarchy import group_id, parse_mounts
from virtpilot.collectors.tree import KEPT_FROM, FileTree
from virtpilot.host_fields import GROUP_FIELDS
from virtpilot.hypervisor import GuestStats

CASES: Final = sorted(Path(__file__).parent.glob("groups/*.json"))
START_NS: Final = seconds(1_800_000_000)
MOUNT: Final = "30 1 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
RUNNING: Final = {"state.state": 1, "state.reason": 1}
bounded = settings(derandomize=True, deadline=None, max_examples=examples(150))


def scope(run: int) -> str:
    return f"sys/fs/cgroup/machine.slice/machine-qemu\\x2d{run}\\x2dweb.scope"


@pytest.mark.parametrize("file", CASES, ids=lambda file: file.stem)
def test_fields_are_those_worked_out(file: Path) -> None:
    case = json.loads(file.read_text())
    tree = TextTree(case["first"])
    groups = GuestGroups(tree)
    for moment, now_ns in (("first", START_NS), ("second", START_NS + seconds(case["seconds"]))):
        tree.files = case[moment]
        groups.begin()
        found = {run: groups.collect(int(run), now_ns) for run in case["expected"]}
    assert found == {run: pytest.approx(right) for run, right in case["expected"].items()}


def test_every_field_is_in_some_case() -> None:
    worked_out = {
        name for file in CASES for fields in json.loads(file.read_text())["expected"].values() for name in fields
    }
    assert worked_out == {field.name for field in GROUP_FIELDS}


def test_a_container_that_has_the_hosts_root_mounted_finds_the_hosts_groups(tmp_path: Path) -> None:
    inside = "40 1 0:26 /docker/1 {} rw - cgroup2 cgroup2 rw\n"
    mounts = inside.format("/sys/fs/cgroup") + inside.format(f"{tmp_path}/sys/fs/cgroup")
    for path, text in (("proc/self/mountinfo", mounts), (f"{scope(1)}/memory.current", "7")):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(text)
    assert GuestGroups(FileTree(tmp_path)).collect(1, START_NS) == {"cgroup_memory_bytes": 7}


@pytest.mark.parametrize(
    "folder",
    [
        "web.partition/qemu-3-a.libvirt-qemu",
        "web.partition/inner.partition/qemu-3-a.libvirt-qemu",
        "machine/web.partition/qemu-3-a.libvirt-qemu",
        "web.slice/machine-qemu\\x2d3\\x2da.scope",
        "machine.slice/machine-web.slice/machine-qemu\\x2d3\\x2da.scope",
    ],
)
def test_a_guest_in_a_partition_of_its_own_is_found(folder: str) -> None:
    tree = TextTree({"proc/self/mountinfo": MOUNT, f"sys/fs/cgroup/{folder}/memory.current": "7"})
    assert GuestGroups(tree).collect(3, START_NS) == {"cgroup_memory_bytes": 7}


@pytest.mark.parametrize(
    "folder", ["user.slice/user-1000.slice", "system.slice", "web.partition/qemu-5-b.libvirt-qemu", ""]
)
def test_a_group_of_that_name_where_no_guests_are_is_none(folder: str) -> None:
    path = f"sys/fs/cgroup/{folder}/qemu-3-a.libvirt-qemu/memory.current".replace("//", "/")
    assert GuestGroups(TextTree({"proc/self/mountinfo": MOUNT, path: "7"})).collect(3, START_NS) == {}


def test_groups_are_looked_for_once_a_tick_and_only_while_one_is_unknown() -> None:
    tree = TextTree({"proc/self/mountinfo": MOUNT, f"{scope(1)}/memory.current": "1"})
    groups = GuestGroups(tree)
    for run in (1, 2, 3):
        groups.collect(run, START_NS)
    assert tree.reads.count("proc/self/mountinfo") == 1
    groups.begin()
    assert groups.collect(1, START_NS)["cgroup_memory_bytes"] == 1
    assert tree.reads.count("proc/self/mountinfo") == 1
    tree.files[f"{scope(2)}/memory.current"] = "2"
    assert groups.collect(2, START_NS)["cgroup_memory_bytes"] == 2


def test_a_group_that_goes_is_no_more_told_and_found_again_when_it_is_back() -> None:
    tree = TextTree({"proc/self/mountinfo": MOUNT, f"{scope(1)}/memory.current": "1"})
    groups = GuestGroups(tree)
    assert groups.collect(1, START_NS)
    gone = tree.files.pop(f"{scope(1)}/memory.current")
    groups.begin()
    assert groups.collect(1, START_NS + seconds(10)) == {}
    tree.files[f"{scope(1)}/memory.current"] = gone
    groups.begin()
    assert groups.collect(1, START_NS + seconds(20)) == {"cgroup_memory_bytes": 1}


def test_what_is_read_seldom_is_read_of_some_guests_in_each_tick() -> None:
    runs = range(1, 31)
    tree = TextTree({"proc/self/mountinfo": MOUNT})
    for run in runs:
        tree.files |= {f"{scope(run)}/memory.current": "1", f"{scope(run)}/memory.peak": "2"}
    groups = GuestGroups(tree)
    read = []
    for tick in range(12):
        tree.reads.clear()
        groups.begin()
        told = [groups.collect(run, START_NS + seconds(10 * tick))["cgroup_memory_peak_bytes"] for run in runs]
        assert told == [2] * len(runs)
        read.append(sum(path.endswith("memory.peak") for path in tree.reads))
    assert read[0] == len(runs)
    assert sum(read[1:7]) == sum(read[6:12]) == len(runs)
    assert max(read[1:]) < len(runs) / 2


QUOTA: Final = "nr_periods {}\nnr_throttled {}\nthrottled_usec 0\n"


def test_a_controller_that_comes_late_is_noticed() -> None:
    tree = TextTree({"proc/self/mountinfo": MOUNT, f"{scope(1)}/memory.events": "oom_kill 0"})
    groups = GuestGroups(tree)
    assert groups.collect(1, START_NS).keys() == {"cgroup_oom_kills_total"}
    tree.files |= {f"{scope(1)}/memory.current": "1", f"{scope(1)}/vcpu0/cpu.stat": QUOTA.format(0, 0)}
    assert groups.collect(1, START_NS + seconds(10)).keys() == {"cgroup_oom_kills_total"}
    later = groups.collect(1, START_NS + REFRESH_NS)
    assert (later["cgroup_memory_bytes"], later["cpu_periods_total"]) == (1, 0)


def test_a_new_quota_is_noticed_at_once_and_a_vcpu_may_go() -> None:
    parts = [f"{scope(1)}/libvirt/{name}/cpu.stat" for name in ("vcpu0", "vcpu1", "emulator")]
    tree = TextTree({"proc/self/mountinfo": MOUNT, f"{scope(1)}/memory.current": "1"})
    tree.files |= dict.fromkeys(parts, QUOTA.format(0, 0))
    groups = GuestGroups(tree)

    def told(now_s: int) -> tuple[float, float | None]:
        fields = groups.collect(1, START_NS + seconds(now_s))
        return fields["cpu_periods_total"], fields.get("cpu_throttled_ratio")

    assert told(0) == (0, None)
    tree.reads.clear()
    assert told(10) == (0, 0)
    assert [path for path in tree.reads if path in parts] == parts[:1]
    tree.files |= {parts[0]: QUOTA.format(60, 30), parts[1]: QUOTA.format(40, 20)}
    assert told(20) == (100, 0.5)
    tree.files |= {parts[0]: QUOTA.format(160, 30), parts[1]: QUOTA.format(140, 120)}
    assert told(30) == (300, 0.5)
    del tree.files[parts[1]]
    assert told(40) == (160, None)
    assert told(50) == (160, 0)


def test_what_is_read_each_tick_stays_open_above_all_that_select_takes_and_is_closed_in_the_end(tmp_path: Path) -> None:
    def opened() -> list[int]:
        return sorted(int(link.name) for link in Path("/proc/self/fd").iterdir() if int(link.name) >= KEPT_FROM)

    for path, text in (
        ("proc/self/mountinfo", MOUNT),
        (f"{scope(1)}/memory.current", "1"),
        (f"{scope(1)}/memory.events", "oom_kill 2\n"),
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    before = opened()
    groups = GuestGroups(FileTree(tmp_path))
    assert groups.collect(1, START_NS) == {"cgroup_memory_bytes": 1, "cgroup_oom_kills_total": 2}
    (tmp_path / scope(1) / "memory.current").write_text("5")
    assert groups.collect(1, START_NS)["cgroup_memory_bytes"] == 5
    assert len(opened()) == len(before) + 2
    groups.keep([2])
    assert opened() == before


def test_fields_are_the_guests_own_and_those_left_out_of_a_late_tick_come_first_in_the_next() -> None:
    times = [0]
    tree = TextTree({"proc/self/mountinfo": MOUNT} | {f"{scope(run)}/memory.current": str(run) for run in (1, 2, 3)})
    hypervisor = ToldGuests([GuestStats(f"u-{run}", f"g{run}", RUNNING, run=run) for run in (1, 2, 3)])
    collector = HostCollector(
        hypervisor, tree, {"host": "h"}, frozenset({0}), monotonic_ns=lambda: times[0], budget_s=1
    )
    read = tree.read

    def slow(path: str) -> str:
        if path.endswith("memory.current"):
            times[0] += seconds(0.6)
        return read(path)

    def told(now_s: int) -> dict[str, int | float]:
        samples = collector.collect(START_NS + seconds(now_s))
        return {s.tags["vm"]: s.fields["cgroup_memory_bytes"] for s in samples if "cgroup_memory_bytes" in s.fields}

    assert told(0) == {"u-1": 1, "u-2": 2, "u-3": 3}
    tree.read = slow  # type: ignore[method-assign]
    assert told(10) == {"u-1": 1, "u-2": 2}
    assert told(20) == {"u-3": 3, "u-1": 1}


WORDS: Final = """nr_periods nr_throttled oom_kill anon total_rss some total=5 8:0 Read rbytes=7 max 0 5 -3 nan \x00 ÿ ٣
- cgroup2 /sys/fs/cgroup cgroup cpu 9999999999999999999999999"""
words = st.sampled_from(WORDS.split())
texts = st.one_of(st.text(max_size=60), st.lists(st.lists(words, max_size=8).map(" ".join), max_size=5).map("\n".join))


@bounded
@given(texts)
def test_no_file_can_say_what_a_parser_does_not_take(text: str) -> None:
    for file in FILES:
        assert all(0 <= value < 2**70 for value in file.parse(text).values())
    counts = throttle.parse(text)
    assert counts is None or all(value >= 0 for value in counts)
    assert all(not path.startswith("/") for _hierarchy, path in parse_mounts(text))
    number = group_id(text)
    assert number is None or 0 <= number < 10**10


@bounded
@given(
    st.lists(st.dictionaries(st.sampled_from(["cpu.stat", *(file.name for file in FILES)]), texts), max_size=4), texts
)
def test_a_group_that_says_anything_tells_ratios_and_counts(moments: list[dict[str, str]], mounts: str) -> None:
    tree = TextTree()
    groups = GuestGroups(tree)
    for number, moment in enumerate(moments):
        files = {f"{scope(1)}/{name}": text for name, text in moment.items()}
        tree.files = {"proc/self/mountinfo": f"{mounts}\n{MOUNT}"} | files
        groups.begin()
        for name, value in groups.collect(1, START_NS + number * seconds(40)).items():
            assert value >= 0
            assert value <= 1 or not name.endswith("_ratio")
