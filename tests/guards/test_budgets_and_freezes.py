"""Budgets, freezes and opt-outs: how often, when and on whom something may be done."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.thoroughness import examples
from virtpilot.actuators.guards.bucket import Buckets, Budget
from virtpilot.actuators.guards.chain import Guards
from virtpilot.actuators.guards.options import GuardOptions
from virtpilot.actuators.guards.request import GuardRequest
from virtpilot.clock import SECOND, seconds
from virtpilot.model import Mode, Result
from virtpilot.tracked import Tracked

NOW = 1_700_000_000 * SECOND
HOUR = 3600 * SECOND
PER_HOUR = Budget("rule", 2, HOUR, "starved")
WANTED = GuardRequest(
    mode=Mode.ACT,
    rule="starved",
    cooldown_ns=0,
    guest="g1",
    host="host-1",
    sample_ns=NOW,
    first_seen_ns=NOW - HOUR,
    state_code=1,
    budgets=(PER_HOUR,),
)
FREE = GuardOptions(guest_cooldown_s=0, max_sample_age_s=86_400)


def at(time_s: float) -> int:
    return NOW + seconds(time_s)


def done(guards: Guards, request: GuardRequest, now_ns: int, result: Result = Result.DONE) -> bool:
    """Do what is wanted if the guards let it."""
    if guards.check(request, now_ns) is not None:
        return False
    guards.started(request, f"cm-{now_ns}-{request.guest}", now_ns)
    guards.finished(f"cm-{now_ns}-{request.guest}", now_ns, result)
    return True


def test_a_budget_is_used_up_and_fills_up_again() -> None:
    guards = Guards(FREE)
    assert [done(guards, WANTED, at(second)) for second in (0, 1, 2)] == [True, True, False]
    refusal = guards.check(WANTED, at(2))
    assert refusal is not None
    assert (refusal.guard, refusal.reason) == (
        "budget",
        "rule starved's budget is used up (2 in 3600 s), the next in 1798 s",
    )
    assert [done(guards, WANTED, at(second)) for second in (1799, 1801, 1802)] == [False, True, False]


def test_a_restart_forgets_no_budget() -> None:
    guards = Guards(FREE)
    assert all(done(guards, WANTED, at(second)) for second in (0, 1))
    again = Guards(FREE)
    again.restore(msgspec.json.decode(msgspec.json.encode(guards.saved())))
    assert not done(again, WANTED, at(2))
    assert done(again, WANTED, at(1801))


def test_what_an_agent_refused_costs_nothing() -> None:
    guards = Guards(FREE)
    assert all(done(guards, WANTED, at(second), Result.REFUSED) for second in range(5))
    assert all(done(guards, WANTED, at(second)) for second in (5, 6))
    assert not done(guards, WANTED, at(7))


@pytest.mark.parametrize(
    ("scope", "other", "shared"),
    [
        ("rule", {"guest": "g2", "host": "host-2"}, True),
        ("guest", {"guest": "g2"}, False),
        ("guest", {"host": "host-2"}, True),
        ("host", {"guest": "g2"}, True),
        ("host", {"guest": "g2", "host": "host-2"}, False),
        ("host", {"guest": "g2", "host": "host-2", "target": "host-1"}, True),
    ],
)
def test_whose_budget_it_is(scope: str, other: dict[str, str], shared: bool) -> None:
    budget = msgspec.convert({"scope": scope, "count": 1, "span_ns": HOUR, "rule": "starved"}, Budget)
    guards, request = Guards(FREE), replace(WANTED, budgets=(budget,))
    assert done(guards, request, NOW)
    assert done(guards, replace(request, **other), at(1)) is not shared


def test_budgets_of_all_rules_together() -> None:
    guards = Guards(replace(FREE, guest_actions_per_hour=1, host_actions_per_hour=2, cluster_actions_per_hour=3))
    free = replace(WANTED, budgets=())
    told = []
    for guest, host in (("g1", "h1"), ("g1", "h1"), ("g2", "h1"), ("g3", "h1"), ("g4", "h2"), ("g5", "h3")):
        refusal = guards.check(replace(free, guest=guest, host=host), NOW)
        told.append(refusal.reason.partition(" is used")[0] if refusal else "")
        if refusal is None:
            assert done(guards, replace(free, guest=guest, host=host), NOW)
    assert told == ["", "the budget for guest g1", "", "the budget for host h1", "", "the budget for the cluster"]


def test_in_a_freeze_nothing_is_done() -> None:
    guards = Guards(GuardOptions(freezes=["Tue 22:00-23:00", "2026-12-24 Europe/Berlin"]))
    # The moment is a Tuesday, 22:13 UTC.
    refusal = guards.check(WANTED, NOW)
    assert refusal is not None
    assert (refusal.guard, refusal.reason) == ("calendar", "nothing is done in the freeze Tue 22:00-23:00")
    assert Guards(GuardOptions(freezes=["Wed"])).check(WANTED, NOW) is None


def test_a_freeze_that_is_no_time_is_refused_in_the_config() -> None:
    with pytest.raises(msgspec.ValidationError, match="times are written"):
        msgspec.convert({"freezes": ["someday"]}, GuardOptions)


def test_a_guest_whose_tag_forbids_it_is_left_alone() -> None:
    refusal = Guards(FREE).check(replace(WANTED, opt_out="plb_ignore_vm"), NOW)
    assert refusal is not None
    assert (refusal.guard, refusal.reason) == ("opt-out", "the guest's tag plb_ignore_vm forbids it")


@settings(derandomize=True, deadline=None, max_examples=examples(100))
@given(st.integers(1, 5), st.lists(st.integers(0, 2000), min_size=1, max_size=60))
def test_never_more_than_the_budget_and_its_filling_in_any_span(count: int, gaps: list[int]) -> None:
    buckets, budget = Buckets(Tracked()), Budget("cluster", count, HOUR)
    now_s, spent = 0, list[int]()
    for gap in gaps:
        now_s += gap
        if not buckets.refusal(budget, "", at(now_s)):
            buckets.spend(budget, "", at(now_s))
            spent.append(now_s)
    for first, start in enumerate(spent):
        for number, end in enumerate(spent[first:], 1):
            assert number <= count + count * (end - start) / 3600 + 1e-6
