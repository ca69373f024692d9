"""Dividing a host among its guests: by examples, and by the properties that every division has."""

from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.thoroughness import examples
from virtpilot.action import AllocationPolicy
from virtpilot.errors import CannotDivide
from virtpilot.planner.allocation import Claim, divide

# Four guests on a host of 12 cores: a busy small one, a busy large one, an idle large one, one that wants little.
HOUSE = (
    Claim(guest="batch", used=4.0, lacked=4.0, size=4, weight=1),
    Claim(guest="db", used=4.0, lacked=0.0, size=8, weight=4),
    Claim(guest="idle", used=0.0, lacked=0.0, size=8, weight=1),
    Claim(guest="web", used=1.0, lacked=1.0, size=4, weight=2),
)


@pytest.mark.parametrize(
    ("policy", "parts"),
    [
        # 12 in proportion to 8 : 4 : 0 : 2
        (AllocationPolicy.DEMAND, {"batch": 12 * 8 / 14, "db": 12 * 4 / 14, "idle": 0, "web": 12 * 2 / 14}),
        # 12 in proportion to 4 : 4 : 0 : 1
        (AllocationPolicy.UTILISATION, {"batch": 12 * 4 / 9, "db": 12 * 4 / 9, "idle": 0, "web": 12 / 9}),
        # 12 in proportion to 4 : 8 : 8 : 4
        (AllocationPolicy.CAPACITY, {"batch": 2, "db": 4, "idle": 4, "web": 2}),
        # web and db have what they demand, 2 and 4; batch demands 8 and gets the other 6; idle demands nothing
        (AllocationPolicy.MAX_MIN, {"batch": 6, "db": 4, "idle": 0, "web": 2}),
    ],
)
def test_each_policy_divides_by_its_own_measure(policy: AllocationPolicy, parts: dict[str, float]) -> None:
    assert divide(policy, HOUSE, 12.0) == pytest.approx(parts, abs=1e-9)


def test_max_min_with_unequal_weights_is_the_textbooks() -> None:
    """Demands 4, 2, 10, 4 with weights 2.5, 4, 0.5, 1 and 16 to give: 4, 2, 6, 4."""
    demands, weights = (4.0, 2.0, 10.0, 4.0), (2.5, 4.0, 0.5, 1.0)
    claims = [
        Claim(guest=name, used=demand, weight=weight)
        for name, demand, weight in zip("abcd", demands, weights, strict=True)
    ]
    assert divide(AllocationPolicy.MAX_MIN, claims, 16.0) == pytest.approx({"a": 4, "b": 2, "c": 6, "d": 4})


def test_a_floor_and_a_cap_are_kept_and_the_others_share_what_that_changes() -> None:
    claims = (
        Claim(guest="a", used=8, cap=3),
        Claim(guest="b", used=1, floor=2),
        Claim(guest="c", used=3),
    )
    # a is capped at 3, b lifted to 2: the other 3 are c's
    assert divide(AllocationPolicy.DEMAND, claims, 10.0, reserve=2.0) == pytest.approx({"a": 3, "b": 2, "c": 3})


def test_what_no_busy_guest_has_room_for_goes_to_the_idle_ones() -> None:
    claims = (Claim(guest="a", used=4, cap=2), Claim(guest="b", used=0, cap=9), Claim(guest="c", used=0, cap=1))
    assert divide(AllocationPolicy.DEMAND, claims, 8.0) == pytest.approx({"a": 2, "b": 5, "c": 1})


def test_max_min_gives_what_nobody_demands_by_weight() -> None:
    claims = (Claim(guest="a", used=1, weight=1), Claim(guest="b", used=1, weight=3))
    assert divide(AllocationPolicy.MAX_MIN, claims, 8.0) == pytest.approx({"a": 2, "b": 6})


@pytest.mark.parametrize(
    ("claims", "capacity", "reserve", "reason"),
    [
        ((Claim(guest="a", used=1, floor=3), Claim(guest="b", used=1, floor=3)), 8.0, 3.0, "floors of 2 guests are 6"),
        ((Claim(guest="a", used=math.nan),), 8.0, 0.0, "the claim of a is not measured"),
        ((Claim(guest="a", used=-1),), 8.0, 0.0, "the claim of a is not measured"),
        ((Claim(guest="a", used=1, floor=2, cap=1),), 8.0, 0.0, r"the cap of a \(1\) is below its floor \(2\)"),
        ((Claim(guest="a", used=1, cap=math.nan),), 8.0, 0.0, "the cap of a"),
        ((Claim(guest="a", used=1), Claim(guest="a", used=1)), 8.0, 0.0, "a guest claims twice"),
        ((Claim(guest="a", used=1),), math.inf, 0.0, "nothing that can be divided"),
        ((Claim(guest="a", used=1),), 8.0, -1.0, "nothing that can be divided"),
    ],
)
def test_what_cannot_be_divided_is_refused_with_the_reason(
    claims: tuple[Claim, ...], capacity: float, reserve: float, reason: str
) -> None:
    with pytest.raises(CannotDivide, match=reason):
        divide(AllocationPolicy.DEMAND, claims, capacity, reserve)


AMOUNTS = st.one_of(st.just(0.0), st.floats(1e-3, 1e3), st.integers(0, 64).map(float))


@st.composite
def claims_and_room(draw: st.DrawFn) -> tuple[list[Claim], float, float]:
    """Claims that can be met, with what there is to divide."""
    count = draw(st.integers(1, 12))
    claims = []
    for index in range(count):
        floor = draw(st.one_of(st.just(0.0), st.floats(0.01, 5)))
        claims.append(
            Claim(
                guest=f"g{index:02}",
                used=draw(AMOUNTS),
                lacked=draw(AMOUNTS),
                size=draw(st.integers(1, 64)),
                weight=draw(st.sampled_from([0.0, 0.5, 1.0, 4.0, 100.0])),
                floor=floor,
                cap=floor + draw(st.one_of(st.just(math.inf), AMOUNTS)),
            )
        )
    floors = math.fsum(claim.floor for claim in claims)
    reserve = draw(st.one_of(st.just(0.0), st.floats(0, 10)))
    return claims, floors * (1 + 1e-9) + reserve + draw(AMOUNTS), reserve


POLICIES = st.sampled_from(AllocationPolicy)


@given(policy=POLICIES, house=claims_and_room())
@settings(max_examples=examples(200), deadline=None)
def test_no_more_is_divided_than_there_is_and_nothing_is_left_that_somebody_could_have(
    policy: AllocationPolicy, house: tuple[list[Claim], float, float]
) -> None:
    claims, capacity, reserve = house
    parts = divide(policy, claims, capacity, reserve)
    room = capacity - reserve
    assert math.fsum(parts.values()) <= room
    for claim in claims:
        assert claim.floor <= parts[claim.guest] <= claim.cap
    full = all(parts[claim.guest] >= claim.cap * (1 - 1e-9) for claim in claims)
    assert full or math.fsum(parts.values()) == pytest.approx(room, rel=1e-6, abs=1e-9)


@given(policy=POLICIES, house=claims_and_room(), order=st.randoms(use_true_random=False))
@settings(max_examples=examples(200), deadline=None)
def test_the_same_claims_give_the_same_division_in_whatever_order(
    policy: AllocationPolicy, house: tuple[list[Claim], float, float], order: Random
) -> None:
    claims, capacity, reserve = house
    shuffled = list(claims)
    order.shuffle(shuffled)
    assert divide(policy, shuffled, capacity, reserve) == divide(policy, claims, capacity, reserve)


@given(house=claims_and_room())
@settings(max_examples=examples(200), deadline=None)
def test_by_max_min_a_guest_gains_only_by_the_loss_of_one_that_has_no_more_than_it(
    house: tuple[list[Claim], float, float],
) -> None:
    """Whoever is above its floor has no larger level (part by weight) than one with a demand that is not met."""
    claims, capacity, reserve = house
    parts = divide(AllocationPolicy.MAX_MIN, claims, capacity, reserve)
    for poor in claims:
        if poor.weight == 0 or parts[poor.guest] >= min(poor.cap, poor.demand) * (1 - 1e-9) - 1e-9:
            continue
        level = parts[poor.guest] / poor.weight
        for rich in claims:
            if parts[rich.guest] > rich.floor * (1 + 1e-9) + 1e-9:
                assert rich.weight > 0
                assert parts[rich.guest] / rich.weight <= level * (1 + 1e-6) + 1e-9


@given(policy=POLICIES, house=claims_and_room())
@settings(max_examples=examples(200), deadline=None)
def test_parts_between_floor_and_cap_are_in_proportion_to_their_weights(
    policy: AllocationPolicy, house: tuple[list[Claim], float, float]
) -> None:
    claims, capacity, reserve = house
    weight_of = {
        AllocationPolicy.DEMAND: lambda claim: claim.demand,
        AllocationPolicy.UTILISATION: lambda claim: claim.used,
        AllocationPolicy.CAPACITY: lambda claim: claim.size,
    }.get(policy)
    if weight_of is None:
        return
    parts = divide(policy, claims, capacity, reserve)
    between = [
        parts[claim.guest] / weight_of(claim)
        for claim in claims
        if weight_of(claim) > 0 and claim.floor * (1 + 1e-9) + 1e-9 < parts[claim.guest] < claim.cap * (1 - 1e-9)
    ]
    assert all(level == pytest.approx(between[0], rel=1e-6) for level in between)
