"""How guests are moved: the formulas, what is chosen by them, and what holds whatever the rates are."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtpilot.action import Stuck, Way
from virtpilot.planner.moving import Hopeless, MoveLoad, MovePlan, MovingOptions, forecast, plan_move, precopy, slowed

GB, MB = 1e9, 1e6
GIGABIT = 125 * MB


def plan(memory: float, dirty: float | None, link: float | None = GIGABIT, **more: object) -> MovePlan | Hopeless:
    load = MoveLoad(memory_bytes=memory, dirty_bytes_s=dirty, source_link_bytes_s=link, target_link_bytes_s=link)
    return plan_move(load, MovingOptions(**more))  # type: ignore[arg-type]  # whatever a test sets


def way(found: MovePlan | Hopeless) -> Way:
    assert isinstance(found, MovePlan), found
    return found.way


def test_the_rounds_are_a_geometric_series() -> None:
    """8 GB at 100 MB/s with 25 MB/s changed: x = 1/4, the fourth round is short enough."""
    found = precopy(8 * GB, 25 * MB, 100 * MB, 0.5)
    assert found is not None
    assert found.rounds == 4
    assert found.time_s == pytest.approx(80 * (1 - 0.25**5) / (1 - 0.25) + 1)
    assert found.pause_s == pytest.approx(80 * 0.25**4 + 0.05)


def test_a_guest_that_rests_is_sent_once() -> None:
    found = way(plan(8 * GB, 0.0))
    assert found.predicted_s == pytest.approx(81)
    assert found.predicted_pause_s == pytest.approx(0.05)
    assert (found.bandwidth_bytes_s, found.connections, found.downtime_s) == (100 * MB, 0, 0.05)
    assert found.within_s == pytest.approx(4 * 81)


def test_one_that_changes_much_gets_a_longer_pause_before_anything_worse() -> None:
    quiet, busy = way(plan(8 * GB, 10 * MB)), way(plan(8 * GB, 79 * MB))
    assert quiet.downtime_s < busy.downtime_s <= 0.5


def test_one_that_changes_more_than_is_sent_is_slowed_down() -> None:
    found = plan(8 * GB, 110 * MB)
    assert isinstance(found, MovePlan)
    assert "slowed down by 60%" in found.reason
    assert found.way.predicted_s > 2 * 8 * GB / (100 * MB) * 5


@pytest.mark.parametrize(("dirty", "limit"), [(300 * MB, 0.8), (110 * MB, 0.0), (110 * MB, 0.5)])
def test_one_that_would_have_to_be_slowed_down_too_far_is_not_moved(dirty: float, limit: float) -> None:
    found = plan(8 * GB, dirty, slow_down_max_ratio=limit)
    assert isinstance(found, Hopeless)
    assert "would not converge: 8000 MB at 100 MB/s" in found.reason


def test_unless_post_copy_is_wanted() -> None:
    found = way(plan(8 * GB, 300 * MB, when_stuck=Stuck.POST_COPY))
    assert (found.when_stuck, found.connections) == (Stuck.POST_COPY, 0)


def test_several_connections_where_one_cannot_fill_the_link() -> None:
    assert way(plan(8 * GB, 0.0, 12.5 * GB)).connections == 10
    assert way(plan(8 * GB, 0.0, 12.5 * GB, when_stuck=Stuck.POST_COPY)).connections == 0


def test_the_slower_link_counts_and_is_shared() -> None:
    load = MoveLoad(memory_bytes=GB, source_link_bytes_s=10 * GB, target_link_bytes_s=GIGABIT, sharing=1)
    assert way(plan_move(load, MovingOptions())).bandwidth_bytes_s == 50 * MB
    assert way(plan_move(MoveLoad(memory_bytes=GB), MovingOptions())).bandwidth_bytes_s == 100 * MB
    fixed = MovingOptions(link_bytes_per_second=GB, link_ratio=0.5)
    assert way(plan_move(load, fixed)).bandwidth_bytes_s == 250 * MB


rates = st.floats(1e3, 1e11)


@given(memory=st.floats(0, 1e13), dirty=rates | st.none(), link=rates | st.none(), sharing=st.integers(0, 5))
def test_every_plan_can_be_carried_out(memory: float, dirty: float | None, link: float | None, sharing: int) -> None:
    for options in (MovingOptions(), MovingOptions(when_stuck=Stuck.POST_COPY)):
        load = MoveLoad(memory_bytes=memory, dirty_bytes_s=dirty, source_link_bytes_s=link, sharing=sharing)
        found = plan_move(load, options)
        if isinstance(found, Hopeless):
            assert options.when_stuck is Stuck.ABORT
            continue
        chosen = found.way
        assert 0 < chosen.downtime_s <= options.pause_max_s
        assert chosen.within_s >= 60
        assert chosen.predicted_s <= chosen.within_s
        assert chosen.bandwidth_bytes_s >= 0
        assert chosen.connections in range(17)
        assert math.isfinite(chosen.predicted_s)
        assert not (chosen.connections and chosen.when_stuck is Stuck.POST_COPY)


@given(memory=st.floats(1e6, 1e12), rate=st.floats(1e6, 1e10), share=st.floats(0, 5), more=st.floats(1, 3))
def test_a_guest_that_changes_more_never_takes_less_time(memory: float, rate: float, share: float, more: float) -> None:
    options = MovingOptions(slow_down_max_ratio=0.0)
    one, other = (forecast(memory, share * by * rate, rate, options) for by in (1.0, more))
    if one is None:
        assert other is None
    elif other is not None and other.pause_s == pytest.approx(one.pause_s, rel=0.5):
        assert other.time_s >= one.time_s * 0.999 or other.rounds < one.rounds


@given(memory=st.floats(1e6, 1e12), rate=st.floats(1e6, 1e10), share=st.floats(0.8, 50))
def test_slowed_down_it_ends_within_the_pause(memory: float, rate: float, share: float) -> None:
    found = slowed(memory, share * rate, rate, 0.5)
    if found is not None:
        assert found.pause_s <= 0.55 + 1e-9
        assert found.slowed_ratio >= 1 - 1 / (2 * share) - 1e-6
