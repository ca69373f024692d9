"""The order of operations: published examples, what each policy promises, and what no policy may do."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from random import Random
from statistics import fmean

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.thoroughness import examples
from virtpilot.planner.scheduling import Operation, Run, Schedule, SchedulingPolicy, Stopping, Turn

SHORTEST, REMAINING, AGEING, DEADLINE = (
    SchedulingPolicy.SHORTEST_JOB,
    SchedulingPolicy.SHORTEST_REMAINING,
    SchedulingPolicy.AGEING,
    SchedulingPolicy.DEADLINE,
)


def operations(*times: tuple[float, float], stopping: Stopping = Stopping.PAUSE) -> list[Operation]:
    """Operations P1, P2, … that arrive and take so long."""
    return [
        Operation(id=f"P{number}", arrived_s=arrived, takes_s=takes, stopping=stopping)
        for number, (arrived, takes) in enumerate(times, 1)
    ]


def means(runs: Iterable[Run]) -> tuple[float, float]:
    """Return the mean waiting time and the mean turnaround time."""
    runs = list(runs)
    return fmean(run.waited_s for run in runs), fmean(run.turnaround_s for run in runs)


def play(policy: SchedulingPolicy, waiting: Iterable[Operation]) -> dict[str, Run]:
    return Schedule(policy=policy).foresee(waiting, [], 0.0)


# Silberschatz, Galvin and Gagne, Operating System Concepts, chapter on CPU scheduling: bursts in milliseconds there.
ALL_AT_ONCE = operations((0, 6), (0, 8), (0, 7), (0, 3))
ONE_BY_ONE = operations((0, 8), (1, 4), (2, 9), (3, 5))


def test_shortest_job_first_on_the_textbooks_example_waits_7_on_average() -> None:
    runs = play(SHORTEST, ALL_AT_ONCE)
    assert sorted(runs, key=lambda name: runs[name].begun_s) == ["P4", "P1", "P3", "P2"]
    assert means(runs.values()) == (7.0, 13.0)


def test_shortest_remaining_time_first_on_the_textbooks_example_waits_6_5_where_shortest_job_first_waits_7_75() -> None:
    assert means(play(REMAINING, ONE_BY_ONE).values()) == (6.5, 13.0)
    assert means(play(SHORTEST, ONE_BY_ONE).values()) == (7.75, 14.25)
    ends = {name: run.ended_s for name, run in play(REMAINING, ONE_BY_ONE).items()}
    assert ends == {"P2": 5, "P4": 10, "P1": 17, "P3": 26}


def test_earliest_deadline_first_meets_deadlines_that_other_orders_miss() -> None:
    waiting = [
        Operation(id="a", arrived_s=0, takes_s=4, deadline_s=12),
        Operation(id="b", arrived_s=0, takes_s=5, deadline_s=5),
        Operation(id="c", arrived_s=0, takes_s=2),
    ]
    runs = play(DEADLINE, waiting)
    assert {name: run.ended_s for name, run in runs.items()} == {"b": 5, "a": 9, "c": 11}
    assert play(SHORTEST, waiting)["b"].ended_s > 5


def test_ageing_lets_the_lowly_overtake_those_who_came_late() -> None:
    old = Operation(id="old", arrived_s=0, takes_s=10, priority=10)
    busy = Operation(id="busy", arrived_s=0, takes_s=100, priority=100)
    soon = Operation(id="soon", arrived_s=80, takes_s=10, priority=20)
    late = Operation(id="late", arrived_s=95, takes_s=10, priority=15)
    runs = Schedule(policy=AGEING, ageing_s=10.0).foresee([old, busy, soon, late], [], 0.0)
    # at 100 s: old has 10 + 100/10, soon 20 + 20/10, late 15 + 5/10
    assert sorted(runs, key=lambda name: runs[name].begun_s) == ["busy", "soon", "old", "late"]


@pytest.mark.parametrize(
    ("stopping", "done_s", "stopped"),
    [
        (Stopping.PAUSE, 4.0, True),  # 5 s against 6 s left
        (Stopping.PAUSE, 6.0, False),  # 5 s against 4 s left
        (Stopping.RESTART, 0.5, True),  # 5 s and 0.5 s lost against 9.5 s left
        (Stopping.RESTART, 4.0, False),  # 5 s and 4 s lost against 6 s left
        (Stopping.NEVER, 0.0, False),
    ],
)
def test_what_runs_is_stopped_only_where_that_pays(stopping: Stopping, done_s: float, stopped: bool) -> None:
    running = Operation(id="long", arrived_s=0, takes_s=10, done_s=done_s, stopping=stopping)
    short = Operation(id="short", arrived_s=4, takes_s=5)
    turn = Schedule(policy=REMAINING).turn([short], [running])
    assert turn == Turn(stop={"long": "short"} if stopped else {}, waiting={"short": "cluster"})
    assert Schedule(policy=SHORTEST).turn([short], [running]).stop == {}


def test_an_operation_takes_all_of_its_places_and_others_go_on_beside_it() -> None:
    schedule = Schedule(policy=SHORTEST, places={"in": 2, "cluster": 3})

    def move(name: str, takes_s: float, source: str, target: str) -> Operation:
        places = frozenset({f"out {source}", f"in {target}", "cluster"})
        return Operation(id=name, arrived_s=0, takes_s=takes_s, places=places)

    waiting = [move("w", 1, "a", "c"), move("x", 2, "a", "c"), move("y", 3, "b", "c"), move("z", 4, "d", "e")]
    turn = schedule.turn(waiting, [])
    # x waits for a place out of a, free in 1 s, and is to have the second one into c then: y would take it for 3 s
    assert turn == Turn(begin=("w",), waiting={"x": "out a", "y": "in c", "z": "cluster"})
    after = schedule.turn(waiting[1:], [])
    assert after.begin == ("x", "y", "z")


def test_what_is_over_in_time_may_go_before_its_turn() -> None:
    """A wait for one place, here a guest in a long backup, leaves no other unused."""
    schedule = Schedule(policy=AGEING)
    backup = Operation(id="backup", arrived_s=0, takes_s=600, places=frozenset({"guest x"}))
    first = Operation(id="first", arrived_s=1, takes_s=60, priority=90, places=frozenset({"guest x", "cluster"}))
    small, long = (
        Operation(id=name, arrived_s=2, takes_s=takes_s, priority=10, places=frozenset({"cluster"}))
        for name, takes_s in (("small", 500), ("long", 700))
    )
    assert schedule.turn([first, small], [backup]) == Turn(begin=("small",), waiting={"first": "guest x"})
    assert schedule.turn([first, long], [backup]).waiting == {"first": "guest x", "long": "cluster"}
    never = msgspec.structs.replace(backup, takes_s=60, done_s=60)  # takes longer than predicted: may end at any moment
    assert schedule.turn([first, small], [never]).waiting == {"first": "guest x", "small": "cluster"}


def test_a_stream_of_small_operations_does_not_starve_one_that_needs_two_places() -> None:
    """A and b are never free together by themselves; by ageing the large one is held a place in time."""
    small = [
        Operation(id=f"s{index:03}", arrived_s=index, takes_s=2, priority=60, places=frozenset({"ab"[index % 2]}))
        for index in range(200)
    ]
    large = Operation(id="large", arrived_s=3, takes_s=2, priority=50, places=frozenset("ab"))
    runs = Schedule(policy=AGEING, ageing_s=1.0).foresee([*small, large], [], 0.0)
    assert runs["large"].waited_s <= (60 - 50) * 1.0 + 2 + 2


def test_what_waits_for_a_place_that_there_is_not_never_ends_and_holds_up_nobody_else() -> None:
    schedule = Schedule(policy=SHORTEST, places={"nowhere": 0})
    lost = Operation(id="lost", arrived_s=0, takes_s=1, places=frozenset({"nowhere"}))
    fine = Operation(id="fine", arrived_s=0, takes_s=5, places=frozenset({"here"}))
    assert schedule.foresee([lost, fine], [], 0.0).keys() == {"fine"}


TIMES = st.integers(0, 60).map(float)
TAKES = st.integers(1, 30).map(float)


@st.composite
def queues(draw: st.DrawFn, at_once: bool = False, most: int = 12) -> list[Operation]:
    return [
        Operation(
            id=f"o{index:02}",
            arrived_s=0.0 if at_once else draw(TIMES),
            takes_s=draw(TAKES),
            priority=draw(st.integers(0, 100)),
            deadline_s=draw(st.one_of(st.none(), TIMES)),
            stopping=Stopping.PAUSE,
        )
        for index in range(draw(st.integers(1, most)))
    ]


@given(queue=queues(at_once=True, most=6))
@settings(max_examples=examples(100), deadline=None)
def test_shortest_job_first_has_the_least_mean_waiting_of_all_orders(queue: list[Operation]) -> None:
    best = min(
        fmean(itertools.accumulate((operation.takes_s for operation in order[:-1]), initial=0.0))
        for order in itertools.permutations(queue)
    )
    assert means(play(SHORTEST, queue).values())[0] == pytest.approx(best)


@given(queue=queues())
@settings(max_examples=examples(200), deadline=None)
def test_shortest_remaining_time_is_never_worse_in_mean_completion(queue: list[Operation]) -> None:
    shortest = means(play(REMAINING, queue).values())[1]
    for policy in (SHORTEST, AGEING, DEADLINE):
        assert shortest <= means(play(policy, queue).values())[1] + 1e-9


@given(queue=queues(), ageing_s=st.sampled_from([0.1, 0.5, 2.0]))
@settings(max_examples=examples(200), deadline=None)
def test_by_ageing_nothing_waits_longer_than_the_bound(queue: list[Operation], ageing_s: float) -> None:
    """Nobody who came later than the bound goes before; so the wait is at most the work that came until then."""
    schedule = Schedule(policy=AGEING, ageing_s=ageing_s)
    runs = schedule.foresee(queue, [], 0.0)
    for operation in queue:
        until_s = operation.arrived_s + schedule.overtaken_within_s(operation)
        own = runs[operation.id]
        ahead = [one for one in queue if one.id != operation.id and runs[one.id].begun_s < own.begun_s]
        assert all(one.arrived_s <= until_s or runs[one.id].begun_s < operation.arrived_s for one in ahead)
        work_s = math.fsum(one.takes_s for one in queue if one.id != operation.id and one.arrived_s <= until_s)
        assert own.waited_s <= work_s + 1e-9


@given(queue=queues(), policy=st.sampled_from(SchedulingPolicy))
@settings(max_examples=examples(200), deadline=None)
def test_all_end_each_once_and_the_server_never_idles_while_something_waits(
    queue: list[Operation], policy: SchedulingPolicy
) -> None:
    runs = play(policy, queue)
    assert runs.keys() == {operation.id for operation in queue}
    assert all(run.waited_s >= -1e-9 and run.begun_s >= run.arrived_s for run in runs.values())
    # one server: the busy time is the work, whatever the order
    end_s = 0.0
    for operation in sorted(queue, key=lambda operation: operation.arrived_s):
        end_s = max(end_s, operation.arrived_s) + operation.takes_s
    assert max(run.ended_s for run in runs.values()) == pytest.approx(end_s)


@st.composite
def crowds(draw: st.DrawFn) -> tuple[Schedule, list[Operation], list[Operation]]:
    """Operations on several places, some of them running already within what there is."""
    names = ["a", "b", "c", "d"]
    limits = {name: draw(st.integers(1, 3)) for name in names}
    policy = draw(st.sampled_from(SchedulingPolicy))
    schedule = Schedule(policy=policy, places=limits)
    waiting, running, left = [], [], dict(limits)
    for index in range(draw(st.integers(0, 12))):
        places = frozenset(draw(st.sets(st.sampled_from(names), min_size=1, max_size=3)))
        takes_s = draw(TAKES)
        operation = Operation(
            id=f"o{index:02}",
            arrived_s=draw(TIMES),
            takes_s=takes_s,
            done_s=draw(st.floats(0, takes_s)),
            priority=draw(st.integers(0, 100)),
            places=places,
            stopping=draw(st.sampled_from(Stopping)),
        )
        if draw(st.booleans()) and all(left[place] for place in places):
            running.append(operation)
            for place in places:
                left[place] -= 1
        else:
            waiting.append(operation)
    return schedule, waiting, running


@given(crowd=crowds(), order=st.randoms(use_true_random=False))
@settings(max_examples=examples(200), deadline=None)
def test_no_place_is_taken_twice_and_only_what_can_be_stopped_is(
    crowd: tuple[Schedule, list[Operation], list[Operation]], order: Random
) -> None:
    schedule, waiting, running = crowd
    turn = schedule.turn(waiting, running)
    by_id = {operation.id: operation for operation in (*waiting, *running)}
    for place, limit in schedule.places.items():
        taken = [one for one in (*(run.id for run in running), *turn.begin) if place in by_id[one].places]
        assert len(taken) <= limit
    assert set(turn.begin) | turn.waiting.keys() == {operation.id for operation in waiting}
    assert turn.stop.keys() <= {operation.id for operation in running}
    assert all(by_id[victim].stopping is not Stopping.NEVER for victim in turn.stop)
    assert not turn.stop or schedule.policy is REMAINING
    shuffled = list(waiting)
    order.shuffle(shuffled)
    assert schedule.turn(shuffled, list(reversed(running))) == turn
