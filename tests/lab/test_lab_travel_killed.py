"""Moves between two real hosts, with everything killed: one host runs the guest, and its agent holds the lease."""

from __future__ import annotations

import pytest

from tests.lab.leasing import HOSTS, Leasing
from virtpilot.actuators.lifecycle import Point

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.usefixtures("agents")]

NAME = "killtrav"
GUEST = "web-1"
KNOBS = {"cpu_shares": 2048, "vcpu_quota": 90_000, "memory_soft_limit": 2**30, "vda.total_iops_sec": 300}


@pytest.mark.parametrize(
    ("side", "point"),
    [
        ("source", Point.AFTER_PLAN_WRITTEN),
        pytest.param("source", Point.AFTER_START, marks=pytest.mark.long),
        ("source", Point.BEFORE_LET_GO),
        pytest.param("source", Point.AFTER_LET_GO, marks=pytest.mark.long),
        pytest.param("target", Point.BEFORE_TAKE_UP, marks=pytest.mark.long),
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
    site.comes(lambda: {"done", "failed"} & set(site.results(moved)), "the move is over")
    assert len(site.running_on(GUEST)) == 1
    site.comes(lambda: site.holders(GUEST) == site.running_on(GUEST), "whoever has the guest has its lease")
    assert site.shares(GUEST) == 2048
    released = site.release(GUEST)
    site.comes(lambda: "reverted" in site.results(released), "released where it is")
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
