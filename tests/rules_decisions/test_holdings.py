"""The leases as the controller knows them: each ends at its time."""

from __future__ import annotations

from virtpilot.rules.decisions.arbiter import Lease
from virtpilot.rules.decisions.holdings import Holdings


def lease(until_ns: int) -> Lease:
    return Lease(rule="r", priority=50, command=f"cm-{until_ns}", until_ns=until_ns)


def test_each_lease_ends_at_its_time_and_not_before() -> None:
    holdings = Holdings({(f"g{until_ns}", "cpu_shares"): lease(until_ns) for until_ns in (20, 10, 30)})
    left = []
    for now_ns in (9, 10, 11, 29, 30):
        holdings.expire(now_ns)
        left.append([one.until_ns for one in holdings.leases.values()])
    assert left == [[20, 10, 30], [20, 30], [20, 30], [30], []]


def test_of_what_has_ended_otherwise_nothing_stays_behind() -> None:
    holdings = Holdings({("g1", "cpu_shares"): lease(10), ("g2", "cpu_shares"): lease(20)})
    holdings.end(lambda one: one.until_ns == 10)
    holdings.expire(15)
    assert [one.until_ns for one in holdings.leases.values()] == [20]
    holdings.expire(20)
    assert not holdings.leases
    assert dict(holdings.leases.changes()) == {("g1", "cpu_shares"): None, ("g2", "cpu_shares"): None}
