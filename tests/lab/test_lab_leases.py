"""Leases on two real hosts: agents killed at named points, guests moved by command and by hand, everything killed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from deploy import lab as lab_module
from tests.lab.lab_process import need_a_lab
from tests.lab.leasing import BASELINE, HOSTS, PLANS, Leasing
from tests.services import until
from virtpilot.actuators.lifecycle import Point
from virtpilot.events import By

pytestmark = [pytest.mark.lab, pytest.mark.slow]

NAME = "leaselab"
GUEST = "web-1"
KNOBS = {"cpu_shares": 2048, "vcpu_quota": 90_000, "memory_soft_limit": 2**30, "vda.total_iops_sec": 300}


@pytest.fixture(scope="module")
def site() -> Iterator[Leasing]:
    need_a_lab()
    with lab_module.bring_up(NAME, plans=PLANS) as lab:
        site = Leasing(lab)
        yield site
        site.close()
    assert lab_module.leftovers(NAME) == []


@pytest.fixture(autouse=True)
def agents(site: Leasing) -> Iterator[None]:
    """Each test begins without agents and with nothing leased, and ends so."""
    yield
    for host in HOSTS:
        if host in site.agents and site.agents[host].poll() is None:
            site.kill(host)
    site.agents.clear()


@pytest.mark.parametrize(
    "point",
    [Point.AFTER_INTENT, Point.AFTER_NOTE, Point.AFTER_CHANGE, Point.AFTER_VERIFY, Point.AFTER_KEEP],
)
def test_killed_while_it_sets_a_knob(site: Leasing, point: Point) -> None:
    """What was not told as done is taken back; what was is held, and given back at its end."""
    host = site.lab.where(GUEST)
    site.start(host, point)
    command = site.set(GUEST, lease_s=20)
    site.died(host)
    assert site.shares(GUEST) == (2048 if point not in {Point.AFTER_INTENT, Point.AFTER_NOTE} else BASELINE)
    assert site.holders(GUEST) == [host]
    site.start(host)
    ended = "reverted" if point is Point.AFTER_KEEP else "failed"
    site.comes(lambda: ended in site.results(command), f"{command} is {ended}")
    site.settled(GUEST)


@pytest.mark.parametrize("point", [Point.AFTER_RELEASE_MARK, Point.AFTER_RESTORE, Point.AFTER_RELEASE])
@pytest.mark.parametrize("how", ["release", "end"])
def test_killed_while_it_gives_a_knob_back(site: Leasing, point: Point, how: str) -> None:
    host = site.lab.where(GUEST)
    site.start(host, point)
    command = site.set(GUEST, lease_s=600 if how == "release" else 3)
    site.comes(lambda: "done" in site.results(command), "set")
    if how == "release":
        command = site.release(GUEST)
    site.died(host)
    site.start(host)
    site.comes(lambda: site.results(command)[-1:] == ["reverted"], "given back")
    site.settled(GUEST)


def test_a_guest_moved_by_hand_takes_its_lease_along(site: Leasing) -> None:
    """Held there, let go here, told by both, ended there."""
    for host in HOSTS:
        site.start(host)
    command = site.set(GUEST, lease_s=25)
    site.comes(lambda: "done" in site.results(command), "set")
    source = site.lab.where(GUEST)
    site.lab.migrate(GUEST, site.other(source))
    site.comes(lambda: site.holders(GUEST) == [site.other(source)], "the target holds it, the source does not")
    assert site.shares(GUEST) == 2048
    site.comes(lambda: site.told("lease_left", GUEST) and site.told("lease_taken", GUEST), "both have told")
    (left,), (taken,) = site.told("lease_left", GUEST), site.told("lease_taken", GUEST)
    assert (left.host, taken.host, left.cause, taken.cause) == (source, site.other(source), command, command)
    site.comes(lambda: "reverted" in site.results(command), "ended")
    (ended,) = [one for one in site.outcomes if one.command == command and one.result == "reverted"]
    assert ended.host == site.other(source)
    site.settled(GUEST)


def test_knobs_of_every_kind_travel(site: Leasing) -> None:
    """What libvirt takes along it takes along with the note: schedule, memory limit and disk throttle alike."""
    for host in HOSTS:
        site.start(host)
    source = site.lab.where(GUEST)
    target = site.other(source)
    before = {knob: site.knob(GUEST, knob) for knob in KNOBS}
    commands = [site.set_knob(GUEST, knob, value, before[knob], lease_s=45) for knob, value in KNOBS.items()]
    site.comes(lambda: all("done" in site.results(one) for one in commands), "all are set")
    site.lab.migrate(GUEST, target)
    site.comes(lambda: (len(site.leases(source, GUEST)), len(site.leases(target, GUEST))) == (0, len(KNOBS)), "held")
    assert {knob: site.knob(GUEST, knob) for knob in KNOBS} == KNOBS
    site.comes(lambda: all("reverted" in site.results(one) for one in commands), "all are given back")
    assert {knob: site.knob(GUEST, knob) for knob in KNOBS} == before
    site.settled(GUEST)


@pytest.mark.parametrize(
    ("side", "point"),
    [
        ("source", Point.AFTER_PLAN_WRITTEN),
        ("source", Point.AFTER_START),
        ("source", Point.BEFORE_LET_GO),
        ("source", Point.AFTER_LET_GO),
        ("target", Point.BEFORE_TAKE_UP),
        ("target", Point.AFTER_TAKE_UP),
    ],
)
def test_killed_on_either_side_of_a_move(site: Leasing, side: str, point: Point) -> None:
    """One host runs the guest, its agent alone holds the lease, and its end comes."""
    source = site.lab.where(GUEST)
    target = site.other(source)
    site.start(source, point if side == "source" else None)
    site.start(target, point if side == "target" else None)
    command = site.set(GUEST, lease_s=600)
    site.comes(lambda: "done" in site.results(command), "set")
    moved = site.move(GUEST)
    mortal = source if side == "source" else target
    site.died(mortal)
    site.start(mortal)
    site.comes(lambda: {"done", "failed"} & set(site.results(moved)), "the move is over", 180)
    assert len(site.running_on(GUEST)) == 1
    site.comes(lambda: site.holders(GUEST) == site.running_on(GUEST), "whoever has the guest has its lease")
    assert site.shares(GUEST) == 2048
    released = site.release(GUEST)
    site.comes(lambda: "reverted" in site.results(released), "released where it is")
    site.settled(GUEST)


def test_a_knob_that_somebody_sets_is_theirs_at_once(site: Leasing) -> None:
    host = site.lab.where(GUEST)
    site.start(host)
    command = site.set(GUEST)
    site.comes(lambda: "done" in site.results(command), "set")
    since = len(site.events)
    site.lab.hosts[host].virsh("schedinfo", GUEST, "--live", "--set", "cpu_shares=500")
    site.comes(lambda: "reverted" in site.results(command), "the lease has ended", 20)
    (ended,) = [one for one in site.outcomes if one.command == command and one.result == "reverted"]
    assert (ended.guard, ended.after, site.shares(GUEST)) == ("foreign-change", {"cpu_shares": 500}, 500)
    assert {(event.by, event.numbers["cpu_shares"]) for event in site.told("knob_changed", GUEST, since)} == {
        (By.OTHER, 500)
    }
    # It is the baseline of the next lease.
    again = site.set(GUEST, 700, expected=500, lease_s=3)
    site.comes(lambda: "reverted" in site.results(again), "ended")
    assert site.shares(GUEST) == 500
    site.lab.hosts[host].virsh("schedinfo", GUEST, "--live", "--set", f"cpu_shares={BASELINE}")
    site.settled(GUEST)


def test_after_a_reboot_of_the_host(site: Leasing) -> None:
    """Guests are saved and come back as they were; or they start anew, with what is their own."""
    host = site.lab.where(GUEST)
    virsh = site.lab.hosts[host].virsh
    site.start(host)
    command = site.set(GUEST)
    site.comes(lambda: "done" in site.results(command), "set")
    site.kill(host)
    virsh("managedsave", GUEST, timeout_s=60)
    site.lab.hosts[host].restart_libvirtd()
    virsh("start", GUEST, timeout_s=60)
    assert site.shares(GUEST) == 2048
    site.start(host)
    site.comes(lambda: site.holders(GUEST) == [host], "held")
    released = site.release(GUEST)
    site.comes(lambda: "reverted" in site.results(released), "given back")
    site.settled(GUEST)
    command = site.set(GUEST)
    site.comes(lambda: "done" in site.results(command), "set once more")
    site.kill(host)
    virsh("destroy", GUEST)
    site.lab.hosts[host].restart_libvirtd()
    virsh("start", GUEST)
    site.start(host)
    site.comes(lambda: "reverted" in site.results(command), "over")
    site.settled(GUEST)


def test_a_lost_controller_leaves_no_knob_changed(site: Leasing) -> None:
    host = site.lab.where(GUEST)
    site.start(host, grace_s=15)
    command = site.set(GUEST)
    site.comes(lambda: "done" in site.results(command), "set")
    for _beat in range(9):
        site.beat()
        assert not until(lambda: "reverted" in site.results(command), 2.0, 0.25)
    assert site.shares(GUEST) == 2048
    site.comes(lambda: "reverted" in site.results(command), "given back", 60)
    (ended,) = [one for one in site.outcomes if one.command == command and one.result == "reverted"]
    assert ended.reason == "no controller was heard of for 15 s"
    site.settled(GUEST)


def test_of_two_controllers_the_newer_is_obeyed(site: Leasing) -> None:
    host = site.lab.where(GUEST)
    site.start(host)
    command = site.set(GUEST, lease_s=5)
    site.epoch += 1
    newer = site.set("web-2" if site.lab.where("web-2") == host else GUEST, 3000, expected=2048, lease_s=5)
    site.comes(lambda: site.results(newer), "answered")
    site.epoch -= 1
    older = site.set(GUEST, 4000, expected=3000, lease_s=5)
    site.comes(lambda: "refused" in site.results(older), "the older one is refused")
    (refused,) = [one for one in site.outcomes if one.command == older]
    assert refused.guard == "epoch"
    site.epoch += 1
    site.comes(lambda: "reverted" in site.results(newer) or "reverted" in site.results(command), "ended")
    site.settled(GUEST)


@pytest.mark.parametrize("victim", ["libvirtd of the source", "libvirtd of the target", "broker", "agents"])
def test_killed_in_the_middle_of_a_move(site: Leasing, victim: str) -> None:
    """The guest runs on exactly one host afterwards, and whoever has it holds its lease."""
    source = site.lab.where(GUEST)
    target = site.other(source)
    for host in HOSTS:
        site.start(host)
    command = site.set(GUEST, lease_s=600)
    site.comes(lambda: "done" in site.results(command), "set")
    site.lab.hosts[source].virsh("migrate-setspeed", GUEST, "8")
    since = len(site.events)
    moved = site.move(GUEST)
    site.comes(lambda: site.told("job_progress", GUEST, since), "the move has begun")
    _kill(site, victim, source, target)
    site.comes(lambda: {"done", "failed"} & set(site.results(moved)), "the move is over", 240)
    site.comes(lambda: len(site.running_on(GUEST)) == 1, "it runs on one host")
    site.comes(lambda: site.holders(GUEST) == site.running_on(GUEST), "whoever has the guest has its lease")
    assert site.shares(GUEST) == 2048
    released = site.release(GUEST)
    site.comes(lambda: "reverted" in site.results(released), "released where it is")
    site.settled(GUEST)
    site.lab.hosts[site.lab.where(GUEST)].virsh("migrate-setspeed", GUEST, "1000")


def _kill(site: Leasing, victim: str, source: str, target: str) -> None:
    if victim == "broker":
        site.lab.restart_broker()
    elif victim == "agents":
        for host in HOSTS:
            site.kill(host)
            site.start(host)
    else:
        site.lab.hosts[source if victim.endswith("source") else target].restart_libvirtd()
