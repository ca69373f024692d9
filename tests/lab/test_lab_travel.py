"""Leases that go with their guests between two real hosts, moved by hand."""

from __future__ import annotations

import pytest

from tests.lab.leasing import HOSTS, Leasing

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.usefixtures("agents")]

NAME = "travlab"
GUEST = "web-1"
KNOBS = {"cpu_shares": 2048, "vcpu_quota": 90_000, "memory_soft_limit": 2**30, "vda.total_iops_sec": 300}


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
    commands = [site.set_knob(GUEST, knob, value, before[knob], lease_s=600) for knob, value in KNOBS.items()]
    site.comes(lambda: all("done" in site.results(one) for one in commands), "all are set")
    site.lab.migrate(GUEST, target)
    site.comes(lambda: (len(site.leases(source, GUEST)), len(site.leases(target, GUEST))) == (0, len(KNOBS)), "held")
    assert {knob: site.knob(GUEST, knob) for knob in KNOBS} == KNOBS
    released = [site.release(GUEST, knob) for knob in KNOBS]
    site.comes(lambda: all("reverted" in site.results(one) for one in released), "all are given back")
    assert {knob: site.knob(GUEST, knob) for knob in KNOBS} == before
    site.settled(GUEST)
