"""Leases on two real hosts: agents killed at named points, a lost controller, a newer one, a host that reboots."""

from __future__ import annotations

import pytest

from tests.lab.leasing import BASELINE, Leasing
from tests.services import until
from virtpilot.actuators.lifecycle import Point
from virtpilot.events import By

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.usefixtures("agents")]

NAME = "leaselab"
GUEST = "web-1"


@pytest.mark.parametrize(
    "point",
    [
        Point.AFTER_INTENT,
        pytest.param(Point.AFTER_NOTE, marks=pytest.mark.long),
        Point.AFTER_CHANGE,
        pytest.param(Point.AFTER_VERIFY, marks=pytest.mark.long),
        Point.AFTER_KEEP,
    ],
)
def test_killed_while_it_sets_a_knob(site: Leasing, point: Point) -> None:
    """What was not told as done is taken back; what was is held, and given back at its end."""
    host = site.lab.where(GUEST)
    site.start(host, point)
    command = site.set(GUEST, lease_s=8)
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
    site.start(host, grace_s=10)
    command = site.set(GUEST)
    site.comes(lambda: "done" in site.results(command), "set")
    for _beat in range(6):
        site.beat()
        assert not until(lambda: "reverted" in site.results(command), 2.0, 0.25)
    assert site.shares(GUEST) == 2048
    site.comes(lambda: "reverted" in site.results(command), "given back", 60)
    (ended,) = [one for one in site.outcomes if one.command == command and one.result == "reverted"]
    assert ended.reason == "no controller was heard of for 10 s"
    site.settled(GUEST)


def test_of_two_controllers_the_newer_is_obeyed(site: Leasing) -> None:
    host = site.lab.where(GUEST)
    site.start(host)
    command = site.set(GUEST, lease_s=5)
    site.comes(lambda: site.results(command), "answered before there is a newer one")
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
