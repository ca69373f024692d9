"""Weighted max-min fairness: nothing is given twice, and nobody can gain but at the cost of a poorer one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.thoroughness import examples
from virtpilot.simulator.contention import share

Claim = tuple[float, float, int]
HOSTS = 4
claims = st.lists(
    st.tuples(
        st.sampled_from([0.0, 1.0, 2.0]) | st.floats(0, 64),
        st.sampled_from([1024.0, 1024.0, 2048.0]) | st.floats(2, 262144),
        st.integers(0, HOSTS - 1),
    ),
    max_size=30,
)
capacities = st.lists(st.floats(0.1, 64), min_size=HOSTS, max_size=HOSTS)
repeatable = settings(derandomize=True, deadline=None, max_examples=examples(300))


def shared(found: list[Claim], capacity: list[float]) -> list[float]:
    demand, weight, owner = (list(column) for column in zip(*found, strict=True)) if found else ([], [], [])
    given_ = share(np.array(demand), np.array(weight), np.array(owner, dtype=np.intp), np.array(capacity))
    return [float(value) for value in given_]


@pytest.mark.parametrize(
    ("demands", "weights", "expected"),
    [
        ([1, 1], [1024, 1024], [1, 1]),
        ([4, 4], [1024, 1024], [2, 2]),
        ([4, 4], [3072, 1024], [3, 1]),
        ([0.5, 4, 4], [1024, 1024, 1024], [0.5, 1.75, 1.75]),
        ([0.5, 4, 4], [2, 1024, 2048], [4 * 2 / 3074, 4 * 1024 / 3074, 4 * 2048 / 3074]),
        ([0, 9], [1024, 2], [0, 4]),
    ],
)
def test_four_cores_are_divided(demands: list[float], weights: list[float], expected: list[float]) -> None:
    found = [(demand, weight, 0) for demand, weight in zip(demands, weights, strict=True)]
    assert shared(found, [4.0, 1.0, 1.0, 1.0]) == pytest.approx(expected)


@repeatable
@given(claims, capacities)
def test_nothing_is_given_twice_nor_kept_back(found: list[Claim], capacity: list[float]) -> None:
    given_ = shared(found, capacity)
    for host in range(HOSTS):
        mine = [place for place, claim in enumerate(found) if claim[2] == host]
        total, wanted = sum(given_[place] for place in mine), sum(found[place][0] for place in mine)
        assert total == pytest.approx(min(wanted, capacity[host]), rel=1e-9, abs=1e-9)
    assert all(-1e-12 <= got <= claim[0] + 1e-9 for got, claim in zip(given_, found, strict=True))


@repeatable
@given(claims, capacities)
def test_nobody_can_gain_but_at_the_cost_of_one_with_less_per_weight(found: list[Claim], capacity: list[float]) -> None:
    """Whoever is short has as much per weight as anyone on the host, up to rounding."""
    given_ = shared(found, capacity)
    for place, (demand, weight, host) in enumerate(found):
        if given_[place] < demand - 1e-6:
            level = given_[place] / weight
            others = [given_[other] / claim[1] for other, claim in enumerate(found) if claim[2] == host]
            assert max(others) <= level * (1 + 1e-6) + 1e-9


@repeatable
@given(claims, capacities, st.randoms(use_true_random=False))
def test_the_order_of_the_claims_does_not_matter(found: list[Claim], capacity: list[float], random: object) -> None:
    order = list(range(len(found)))
    random.shuffle(order)  # type: ignore[attr-defined]
    mixed = shared([found[place] for place in order], capacity)
    straight = shared(found, capacity)
    assert mixed == pytest.approx([straight[place] for place in order], rel=1e-6, abs=1e-9)
