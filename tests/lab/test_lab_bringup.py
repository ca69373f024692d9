"""The lab on this machine: it comes up, it measures, guests move, and it goes without a trace."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.request import urlopen

import pytest

from deploy import lab as lab_module
from deploy.lab import Lab, LabBusy, LabError
from deploy.lab.guest import TAGS_NAMESPACE
from deploy.lab.plan import TWO
from deploy.lab.wait import until
from tests.lab.lab_process import ROOT, need_a_lab, ran
from virtpilot.clock import SystemClock

pytestmark = [pytest.mark.lab, pytest.mark.slow]

NAME = "labtest"
Rates = dict[str, float]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """One lab for the tests that only look and move."""
    need_a_lab()
    with lab_module.bring_up(NAME, plans=[replace(one, load=0) for one in TWO]) as up:  # at rest: others measure
        yield up
    assert lab_module.leftovers(NAME) == []


def rates(lab: Lab, guest: str, wall_s: float = 4.0) -> Rates:
    """Return a guest's CPU use and steal as ratios of `wall_s` seconds and a little."""
    clock = SystemClock()
    before, began = lab.domstats(guest), clock.monotonic_ns()
    until(lambda: clock.monotonic_ns() - began > wall_s * 1e9, wall_s + 5, "the time to measure in")
    after, took = lab.domstats(guest), clock.monotonic_ns() - began
    return {name: (int(after[name]) - int(before[name])) / took for name in ("vcpu.0.time", "vcpu.0.delay", "cpu.time")}


def test_guests_run_where_they_were_planned_and_report_memory(lab: Lab) -> None:
    where = {name: lab.where(name) for name in lab.guests}
    assert where == {"web-1": "host-1", "batch-1": "host-1", "batch-2": "host-1", "web-2": "host-2"}

    def reported() -> bool:
        stats = lab.domstats("web-2")
        return {"balloon.usable", "block.0.rd.bytes", "net.0.rx.bytes", "vcpu.0.delay"} <= stats.keys()

    assert until(reported, 10, "balloon, disk and net statistics of web-2")


def test_a_guest_that_woke_with_anothers_memory_knows_the_time_and_who_it_is(lab: Lab) -> None:
    virsh = lab.hosts["host-1"].virsh
    for name in ("web-1", "batch-1", "batch-2"):
        assert virsh("domstate", name, "--reason") == "running (restored)"
        word, clock, _up, address = lab.guest(name).ask("time 0").split()
        assert word == "time"
        assert abs(float(clock) - SystemClock().now_ns() / 1e9) < 30
        assert address in virsh("domiflist", name)


def test_guests_carry_their_tags(lab: Lab) -> None:
    uri = TAGS_NAMESPACE
    shown = lab.hosts["host-1"].virsh("metadata", "batch-1", uri)
    assert 'tier="batch"' in shown


def test_processes_run_on_a_host_of_one_core_and_a_name_of_its_own(lab: Lab) -> None:
    for host in lab.hosts.values():
        assert host.run(["hostname"]).strip() == host.name
        assert host.run(["nproc"]).strip() == "1"
        assert str(host.address) in host.run(["ip", "-brief", "address"])
        assert host.run(["virsh", "-c", "qemu:///system", "hostname"]).strip() == host.name


def test_a_bridge_keeps_its_hardware_address_whatever_joins_it(lab: Lab) -> None:
    """The lowest of its ports would become its own, while neighbours go on sending to the one they know."""
    host = lab.hosts["host-2"]
    address = "/sys/class/net/br0/address"
    before = host.run(["cat", address])
    host.run(["ip", "link", "add", "low", "address", "00:16:3e:00:00:01", "type", "veth", "peer", "name", "other"])
    try:
        host.run(["ip", "link", "set", "low", "master", "br0", "up"])
        assert host.run(["cat", address]) == before
    finally:
        host.run(["ip", "link", "delete", "low"])
    assert before not in [one.run(["cat", address]) for one in lab.hosts.values() if one is not host]


def test_popen_gives_the_pid_of_the_command_itself(lab: Lab) -> None:
    host = lab.hosts["host-2"]
    child = host.popen([sys.executable, "-c", "import signal; signal.pause()"], cwd=ROOT)
    command_line = Path(f"/proc/{child.pid}/cmdline")
    started = f"{sys.executable}\0-c\0import signal; signal.pause()\0"
    until(lambda: command_line.read_text() == started, 5, "the command runs")
    assert os.sched_getaffinity(child.pid) == {host.cpu}
    assert child.pid in host.group.pids()
    assert Path(f"/proc/{child.pid}/cwd").samefile(ROOT)  # its name may be another one: a root within a root
    child.terminate()
    assert child.wait(20) == -signal.SIGTERM


def test_failing_command_tells_its_words(lab: Lab) -> None:
    with pytest.raises(LabError, match="No such file"):
        lab.hosts["host-1"].run(["cat", "/nonexistent/file"])


def test_servers_are_reached_from_the_hosts_and_from_here(lab: Lab) -> None:
    knock = f"import socket; socket.create_connection(('{lab.broker_host}', {lab.broker_port}), 5); print('open')"
    for host in lab.hosts.values():
        assert host.run([sys.executable, "-c", knock]).strip() == "open"
    with urlopen(f"{lab.store_url}/health", timeout=5) as answer:  # noqa: S310 # a loopback server of our own
        assert answer.status == 200


@pytest.mark.alone
@pytest.mark.long  # the main job rests on it, and says so where it does not hold
@pytest.mark.parametrize("percent", [100, 50])
def test_load_is_seen_in_domstats(lab: Lab, percent: int) -> None:
    guest = lab.guest("web-2")
    idle = rates(lab, "web-2", 2)["vcpu.0.time"]
    guest.set_load(percent)
    busy = rates(lab, "web-2")
    guest.set_load(0)
    assert idle < 0.15
    assert percent / 100 == pytest.approx(busy["vcpu.0.time"] + busy["vcpu.0.delay"], abs=0.12)


def test_load_out_of_range_is_refused(lab: Lab) -> None:
    with pytest.raises(ValueError, match="0 to 100"):
        lab.guest("web-2").set_load(101)


@pytest.mark.alone
@pytest.mark.long  # the main job does so once, by its rules
def test_starved_guest_is_helped_a_little_by_shares_and_wholly_by_a_move_both_ways(lab: Lab) -> None:
    guest = lab.guest("web-1")
    for neighbour in ("batch-1", "batch-2"):
        lab.guest(neighbour).set_load(100)
    guest.set_load(70)
    starved = rates(lab, "web-1")
    lab.hosts["host-1"].virsh("schedinfo", "web-1", "--live", "cpu_shares=2048")
    favoured = rates(lab, "web-1")
    lab.migrate("web-1", "host-2")
    assert lab.where("web-1") == "host-2"

    def undisturbed() -> bool:
        seen = rates(lab, "web-1", 2)
        return seen["vcpu.0.delay"] < 0.15 and seen["vcpu.0.time"] > 0.5

    # 3 % by itself (docs/lab.md); what else runs on this machine adds to it, each busy task 1 to 2 %
    assert until(undisturbed, 60, "web-1 runs, and waits less than 15 %, on host-2")
    guest.set_load(10)
    lab.migrate("web-1", "host-1")
    assert lab.where("web-1") == "host-1"
    for used in (guest, lab.guest("batch-1"), lab.guest("batch-2")):
        used.set_load(0)
    assert starved["vcpu.0.delay"] > 0.25
    assert 0.10 < favoured["vcpu.0.delay"] < starved["vcpu.0.delay"]


def test_second_lab_of_the_same_name_is_refused_and_the_first_stays(lab: Lab) -> None:
    with pytest.raises(LabBusy, match=f"--name {NAME} down"):
        lab_module.bring_up(NAME)
    assert lab.where("web-2") == "host-2"


def test_another_process_sees_the_lab(lab: Lab) -> None:
    done = ran(NAME, "status")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["guests"]["batch-1"]["host"] == "host-1"
    assert document["broker"] == f"{lab.broker_host}:{lab.broker_port}"
    assert ran(NAME, "exec", "host-2", "--", "hostname").stdout.strip() == "host-2"
    assert ran(NAME, "load", "web-2", "0").returncode == 0
