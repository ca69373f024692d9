"""What the lab works out before it touches the machine: hierarchies, ranges, names, definitions."""

from __future__ import annotations

import contextlib
import re
import subprocess
import threading
from collections.abc import Sequence
from ipaddress import IPv4Network
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from defusedxml import ElementTree
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.lab import state
from deploy.lab.__main__ import look_around
from deploy.lab.cgroup import Group, Hierarchy, groups_of, parse_hierarchies, weight_of
from deploy.lab.errors import LabError, LabMissing
from deploy.lab.guest import TAGS_NAMESPACE, GuestPlan
from deploy.lab.image import Image, newest_kernel
from deploy.lab.lab import NEEDED, Lab
from deploy.lab.network import free_network
from deploy.lab.placement import placed
from deploy.lab.state import check_name
from deploy.lab.virsh import Virsh, parse_domstats
from deploy.lab.wait import until
from tests.thoroughness import examples

KNOWN = frozenset({"cpu", "cpuacct", "cpuset", "memory"})
HYBRID = """\
25 22 0:21 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
26 25 0:22 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
27 25 0:23 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset
28 25 0:24 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
29 25 0:25 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
30 25 0:23 / /mnt/again rw,relatime - cgroup cgroup rw,cpuset
31 25 0:26 / /mnt/unknown rw,relatime - cgroup cgroup rw,whatever
"""
IMAGE = Image(Path("/boot/vmlinuz"), Path("/cache/initramfs.gz"), Path("/cache/disk.raw"))
PARSED = settings(derandomize=True, deadline=None, max_examples=examples(60))


def test_what_it_says_to_look_around_with_can_be_typed_as_it_stands() -> None:
    """A machine need not have a `python` of its own."""
    host = SimpleNamespace(uri="qemu+tcp://10.77.0.1/system")
    fields = {"broker_host": "10.77.0.254", "broker_port": 1883, "store_url": "http://127.0.0.1:1"}
    text = look_around(cast("Lab", SimpleNamespace(name="lab2", hosts={"host-1": host}, **fields)))
    ours = [line.split() for line in text.splitlines() if "deploy.lab" in line]
    assert len(ours) == 4
    for words in ours:
        done = subprocess.run([words[0], "--version"], capture_output=True, text=True, check=True, timeout=20)
        assert done.stdout.startswith("Python 3.")
        assert words[1:5] == ["-m", "deploy.lab", "--name", "lab2"]
        assert words[5] in {"status", "load", "exec", "down"}


def test_hybrid_layout_gives_each_hierarchy_once_with_the_options_that_mount_it_again() -> None:
    found = {str(one.path): (one.version, one.options) for one in parse_hierarchies(HYBRID, KNOWN)}
    assert found == {
        "/sys/fs/cgroup/cpu,cpuacct": (1, "cpu,cpuacct"),
        "/sys/fs/cgroup/cpuset": (1, "cpuset"),
        "/sys/fs/cgroup/systemd": (1, "none,name=systemd"),
        "/sys/fs/cgroup/unified": (2, ""),
    }


@PARSED
@given(st.text() | st.lists(st.sampled_from([" - ", "cgroup", "rw", " ", "\n", "cpu", "1", "cgroup2"])).map("".join))
def test_any_mountinfo_is_read_without_an_error(text: str) -> None:
    assert isinstance(parse_hierarchies(text, KNOWN), list)


@PARSED
@given(st.dictionaries(st.from_regex(r"[a-z][a-z0-9.]{0,12}", fullmatch=True), st.integers(-(2**63), 2**64)))
def test_domstats_come_back_as_they_were_printed(stats: dict[str, int]) -> None:
    text = "Domain: 'web-1'\n" + "".join(f"  {name}={value}\n" for name, value in stats.items())
    assert parse_domstats(text) == stats


@PARSED
@given(st.text())
def test_any_domstats_are_read_without_an_error(text: str) -> None:
    assert isinstance(parse_domstats(text), dict)


def test_unified_layout_confines_the_group_and_keeps_its_processes_in_a_leaf(tmp_path: Path) -> None:
    """Plain folders stand for a v2 mount, which this project's machines have not: what is written where."""
    mounted = [Hierarchy(tmp_path, 2, "", frozenset({"cpu", "cpuset", "memory", "hugetlb"}))]
    group = Group("virtpilot-lab-host-1", mounted)
    group.create(cpus="1", shares=1024)
    top = tmp_path / "virtpilot-lab-host-1"
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+cpuset +cpu +memory"
    assert (top / "cpuset.cpus").read_text() == "1"
    assert (top / "cpu.weight").read_text() == str(weight_of(1024))
    assert group.outer_doors() == [top / "cgroup.procs"]
    assert group.doors() == [top / "init" / "cgroup.procs"]
    assert group.delegations() == [(top / "cgroup.subtree_control", "+cpuset +cpu +memory")]
    assert [one.name for one in groups_of("virtpilot-lab-", mounted)] == [group.name]


@pytest.mark.parametrize(
    ("shares", "weight"), [(0, 1), (2, 1), (1024, 39), (131072, 5000), (262144, 10000), (2**20, 10000)]
)
def test_shares_become_the_weight_that_others_take_for_them(shares: int, weight: int) -> None:
    assert weight_of(shares) == weight


def test_range_overlaps_with_no_route_whatever_its_size() -> None:
    routed = [IPv4Network("0.0.0.0/0"), IPv4Network("10.77.40.0/22"), IPv4Network("10.77.44.7/32")]
    found = free_network(routed)
    assert found == IPv4Network("10.77.45.0/24")


def test_labs_that_come_up_at_once_have_names_and_ranges_of_their_own() -> None:
    given = re.compile(r'^(?:NAME|KILLED)(?:: Final)? = "([a-z][a-z0-9]{0,7})"$', re.MULTILINE)
    files = sorted(Path(__file__).parents[1].rglob("test_*.py"))
    names = [name for file in files for name in given.findall(file.read_text())]
    assert len(names) > 5
    assert len(set(names)) == len(names)
    assert len({free_network([], name) for name in names}) == len(names), "choose another name"


@pytest.mark.parametrize(
    ("guests", "taken", "cores"),
    [
        ({"host-1": 3, "host-2": 1}, {}, {"host-1": 0, "host-2": 1}),
        ({"host-1": 3, "host-2": 4, "host-3": 1}, {}, {"host-1": 0, "host-2": 1, "host-3": 0}),
        ({"host-1": 3, "host-2": 1}, {0: 3, 1: 1}, {"host-1": 1, "host-2": 0}),
        ({"host-1": 1}, {0: 1}, {"host-1": 1}),
        ({"host-1": 1}, {0: 2, 1: 2}, {"host-1": 0}),
        ({}, {}, {}),
    ],
)
def test_hosts_take_the_cores_that_other_labs_have_left(
    guests: dict[str, int], taken: dict[int, int], cores: dict[str, int]
) -> None:
    assert placed(guests, [0, 1], taken) == cores


@given(st.lists(st.integers(1, 8), max_size=12), st.integers(1, 8))
def test_labs_of_one_host_share_the_cores_evenly(guests: list[int], cores: int) -> None:
    taken = dict.fromkeys(range(cores), 0)
    for count in guests:
        taken[placed({"host-1": count}, range(cores), taken)["host-1"]] += count
    assert max(taken.values()) - min(taken.values()) <= max(guests, default=0)


def test_one_lab_comes_up_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "RUN", tmp_path / "run")
    said, up = list[str](), list[str]()

    def second() -> None:
        with state.one_comes_up(said.append):
            up.append("second")

    other = threading.Thread(target=second)
    with state.one_comes_up(said.append):
        assert said == []
        other.start()
        assert until(lambda: said, 20, "the second one says that it waits")
        up.append("first")
    other.join(20)
    assert (up, len(said)) == (["first", "second"], 1)


def test_no_free_range_is_said() -> None:
    with pytest.raises(LabError, match="give one"):
        free_network([IPv4Network("10.0.0.0/8")])


@pytest.mark.parametrize("name", ["", "Lab", "two words", "../x", "a-b", "ninechars", "1st"])
def test_names_that_cannot_name_devices_and_groups_are_refused(name: str) -> None:
    with pytest.raises(LabError, match="cannot name a lab"):
        check_name(name)


@pytest.mark.parametrize(("said", "left", "tries"), [("client socket is closed", "web-1", 2), ("no such guest", "", 1)])
def test_a_move_that_the_two_libvirtd_gave_up_before_it_began_is_tried_again(said: str, left: str, tries: int) -> None:
    asked: list[str] = []

    def run(argv: Sequence[str], timeout_s: float) -> str:
        asked.append(argv[4])
        if argv[4] == "list":
            return left
        if asked.count("migrate") == 1:
            raise LabError(said)
        return ""

    with contextlib.nullcontext() if tries == 2 else pytest.raises(LabError, match=said):
        Virsh("qemu+tcp://host/system", run).migrate("web-1", "qemu+tcp://other/system")
    assert asked.count("migrate") == tries


def test_newest_kernel_is_by_number_not_by_text(tmp_path: Path) -> None:
    for name in ("vmlinuz-6.1.0-9-cloud-amd64", "vmlinuz-6.1.0-10-cloud-amd64", "vmlinuz-6.12.0-amd64", "config-7"):
        (tmp_path / name).touch()
    assert newest_kernel(tmp_path)[0] == "6.1.0-10-cloud-amd64"


def test_missing_kernel_names_the_package(tmp_path: Path) -> None:
    with pytest.raises(LabMissing, match="linux-image-cloud-amd64"):
        newest_kernel(tmp_path)


def test_definition_carries_tags_size_and_control_port() -> None:
    plan = GuestPlan("web-1", "host-1", tags={"tier": "<&'\">", "owner": "ops"}, memory_mib=160)
    tree = ElementTree.fromstring(plan.xml("lab", IMAGE))
    tags = tree.find(f"metadata/{{{TAGS_NAMESPACE}}}tags")
    assert tags is not None
    assert tags.attrib == {"tier": "<&'\">", "owner": "ops"}
    assert tree.findtext("memory") == "160"
    assert tree.findtext("cputune/shares") == "1024"
    assert tree.findtext("uuid") == plan.uuid("lab") != plan.uuid("other")
    source = tree.find("devices/channel/source")
    assert source is not None
    assert source.attrib["path"] == "/var/lib/libvirt/qemu/lab/web-1.sock"


def test_every_command_of_the_lab_has_its_package_in_the_list() -> None:
    lines = Path(__file__).parents[2].joinpath("deploy/packages.txt").read_text().splitlines()
    listed = {line.partition("#")[0].strip() for line in lines}
    assert set(NEEDED.values()) | {"libvirt-daemon-driver-qemu", "linux-image-cloud-amd64"} <= listed


def test_waiting_ends_at_the_deadline_and_says_for_what() -> None:
    with pytest.raises(LabError, match=r"the moon: not within 0\.01 s"):
        until(lambda: False, 0.01, "the moon", step_s=0.001)
