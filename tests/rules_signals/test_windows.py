"""Windows over a subject's past say what a plain reading of its samples says, bit by bit, whatever happens between."""

from __future__ import annotations

import itertools
import json
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.rules_signals.plain_windows import window_value
from tests.rules_signals.reference import START_NS, changes, host, ruleset, vm
from tests.thoroughness import examples
from virtpilot.clock import SECOND, seconds
from virtpilot.model import Kind, Sample
from virtpilot.rules.language.expression import Condition, condition
from virtpilot.rules.language.records import Rule, RuleSet
from virtpilot.rules.signals.evaluator import Evaluator
from virtpilot.rules.signals.history import STEPS, UNIT_NS, History, Series
from virtpilot.rules.signals.table import Where

REPEATABLE = settings(derandomize=True, deadline=None, max_examples=examples(40, least=10))
NUMBER = ["avg", "min", "max", "p1", "p50", "p95", "p99", "stddev", "count", "delta", "slope", "flaps", "forecast"]
WINDOWS = [
    *(f"{name}(cpu_steal_ratio, {span}) >= 0" for name in NUMBER for span in ("20s", "1m", "10m", "30m")),
    "forecast(cpu_steal_ratio, 1h, 1m) >= 0",
    "avg(cpu_steal_ratio > 20%, 1m) >= 0",
    "count(cpu_steal_ratio > 20%, 1m) >= 0",
    "flaps(cpu_steal_ratio > 20%, 1m) >= 0",
    "rate(major_faults_total, 1m) >= 0",
    "delta(major_faults_total, 10m) >= 0",
    "delta(major_faults_total, 30m) >= 0",
    "flaps(major_faults_total, 1m) >= 0",
]
COMPILED = [condition(text, Kind.VM) for text in WINDOWS]


def rules_of(texts: list[str]) -> RuleSet:
    return ruleset(
        "virtpilot: 1\nrules:\n"
        + "".join(f"  - {{name: r{n}, on: vm, when: '{text}'}}\n" for n, text in enumerate(texts))
    )


RULES = rules_of(WINDOWS)
Step = tuple[float, float, float]
_levels = st.sampled_from([0.1, 0.25, 0.3, 0.9, 1 / 3, math.nan])
_steps: st.SearchStrategy[list[Step]] = st.lists(
    st.tuples(
        st.sampled_from([10, 10, 10, 10.01, 9.99, 0.01, 1, 2, 25, 70, 400]), _levels, st.sampled_from([0, 1, 5, 7])
    ),
    min_size=1,
    max_size=30,
)


def stream(guest: str, steps: list[Step]) -> list[Sample]:
    time_s, faults, found = 0.0, 0.0, list[Sample]()
    for step_s, level, more in steps:
        time_s += step_s
        faults = more if more == 7 else faults + more
        one = vm(guest, time_s, None if math.isnan(level) else level)
        found.append(Sample("vm", one.tags, {**one.fields, "major_faults_total": faults}, one.time_ns))
    return found


def said(evaluator: Evaluator, asked: Condition, guest: str) -> float | None:
    (window,) = asked.reads.windows.values()
    return evaluator.inputs(asked, guest).get(window.text)


def plainly(asked: Condition, samples: list[Sample]) -> float | None:
    (window,) = asked.reads.windows.values()
    series = []
    for one in samples:
        value = one.fields.get("major_faults_total" if "faults" in window.text else "cpu_steal_ratio", math.nan)
        if window.what == "truth" and not math.isnan(value):
            value = float(value > 0.2)
        series.append((one.time_ns, float(value)))
    return window_value(window, series, samples[-1].time_ns)


@REPEATABLE
@given(_steps, _steps)
def test_they_say_what_a_plain_reading_says(first: list[Step], second: list[Step]) -> None:
    """Two guests at once, so that rings are of different sizes."""
    evaluator = Evaluator(RULES)
    streams = {"g1": stream("g1", first), "g2": stream("g2", second)}
    for pair in itertools.zip_longest(*streams.values()):
        evaluator.feed([one for one in pair if one is not None], "m")
        for asked in COMPILED:
            for guest, samples in streams.items():
                seen = (
                    samples[: 1 + next(n for n, one in enumerate(samples) if one is pair[guest == "g2"])]
                    if (pair[guest == "g2"] is not None)
                    else samples
                )
                assert said(evaluator, asked, guest) == plainly(asked, seen), asked.text


@REPEATABLE
@given(_steps, st.integers(0, 40))
def test_a_restart_keeps_every_bit(steps: list[Step], at: int) -> None:
    samples = stream("g1", steps)
    straight, restarted = Evaluator(RULES), Evaluator(RULES)
    for number, one in enumerate(samples):
        if number == at:
            document = json.loads(json.dumps(restarted.snapshot()))
            restarted = Evaluator(RULES)
            restarted.restore(document)
            assert json.loads(json.dumps(restarted.snapshot())) == document
        assert restarted.feed([one], "m") == straight.feed([one], "m")
    assert restarted.snapshot() == straight.snapshot()


def test_a_window_fires_over_a_peak_and_not_at_it() -> None:
    evaluator = Evaluator(
        ruleset("virtpilot: 1\nrules:\n  - {name: w, on: vm, when: 'avg(cpu_steal_ratio, 1m) > 55%'}\n")
    )
    levels = [0.1, 0.1, 0.95, 0.1, 0.95, 0.95, 0.95, 0.95, 0.1, 0.1, 0.1, 0.1]
    told = [
        change
        for number, level in enumerate(levels)
        for change in changes(evaluator.feed([vm("g", 10 * number, level)], "m"))
    ]
    # The minute that ends at 60 s is the first over 55 % (at 50 s it is 52.5 %).
    assert [(state.value, (at - START_NS) // SECOND) for *_rest, state, at in told] == [
        ("firing", 60),
        ("inactive", 100),
    ]


@pytest.mark.parametrize(
    ("last_s", "known"), [(0, False), (10, False), (20, False), (30, True), (60, True), (90, True)]
)
def test_a_window_half_empty_is_unknown(last_s: int, known: bool) -> None:
    evaluator = Evaluator(RULES)
    for time_s in range(0, last_s + 1, 10):
        evaluator.feed([vm("g", time_s, 0.1)], "m")
    assert (said(evaluator, condition("avg(cpu_steal_ratio, 1m) >= 0", Kind.VM), "g") is not None) is known


def test_a_field_that_is_gone_for_half_a_window_is_unknown() -> None:
    evaluator = Evaluator(RULES)
    found = {}
    for time_s in range(0, 150, 10):
        evaluator.feed([vm("g", time_s, 0.1 if time_s <= 60 else None, 0.2)], "m")
        found[time_s] = said(evaluator, condition("avg(cpu_steal_ratio, 1m) >= 0", Kind.VM), "g")
    assert [time_s for time_s, value in found.items() if value is not None] == [30, 40, 50, 60, 70, 80]


def test_a_hosts_window_is_shared_by_its_guests() -> None:
    rules = "virtpilot: 1\nrules:\n  - {name: h, on: vm, when: 'avg(host.cpu_usage_ratio, 1m) > 50%'}\n"
    evaluator = Evaluator(ruleset(rules + "  - {name: own, on: host, when: 'avg(cpu_usage_ratio, 1m) > 50%'}\n"))
    assert len(evaluator._world.windows) == 1
    told = []
    for number in range(5):
        told += changes(evaluator.feed([host("h1", 10 * number, 0.9), vm("g", 10 * number, 0.1)], "m"))
    assert [(rule, who) for rule, who, *_rest in told] == [("own", "h1"), ("h", "g")]
    asked = condition("avg(host.cpu_usage_ratio, 1m) > 50%", Kind.VM)
    assert evaluator.inputs(asked, "g") == {"avg(host.cpu_usage_ratio, 1m)": pytest.approx(0.9)}


def test_a_subject_that_went_takes_its_past_along() -> None:
    evaluator = Evaluator(RULES)
    asked = condition("avg(cpu_steal_ratio, 1m) >= 0", Kind.VM)
    for time_s in range(0, 70, 10):
        evaluator.feed([vm("g", time_s, 0.1)], "m")
    evaluator.tick(START_NS + seconds(4000))
    evaluator.feed([vm("other", 4001, 0.9)], "m")
    assert said(evaluator, asked, "other") is None


def test_memory_is_bounded_however_many_samples_come() -> None:
    history = History(seconds(3600), [Series("mean")], 4)
    before = history.nbytes
    for number in range(20_000):
        history.push(slice(0, 4), np.full(4, START_NS + number * SECOND), [np.full(4, float(number))])
    assert history.nbytes == before == 4 * (STEPS + 2) * 10
    times = np.full(4, START_NS + 19_999 * SECOND)
    ((where, _times, points),) = history.points(slice(0, 4), times, 0)
    assert where == slice(0, 4)
    assert points.weight is not None
    assert int(points.weight[points.valid].sum()) in range(4 * 3570, 4 * 3631)


def _pushed(history: History, time_ns: int, value: float) -> None:
    history.push(slice(0, 1), np.array([time_ns]), [np.array([value])])


def _seen(history: History, time_ns: int) -> list[float]:
    ((_where, _times, points),) = history.points(slice(0, 1), np.array([time_ns]), 0)
    return [float(one) for one in points.value[points.valid]]


@pytest.mark.parametrize("pause_s", [61, 400_000])
@pytest.mark.parametrize("set_back", [False, True])
def test_a_point_of_five_days_ago_is_none_of_today(pause_s: int, set_back: bool) -> None:
    """The place that it took is not taken again: all later samples fall into others, whatever the clock is set to."""
    history, wraps_ns, at_ns = History(seconds(60), [Series("max")], 1), 2**32 * UNIT_NS, START_NS
    _pushed(history, at_ns, 7.0)
    passed_ns = seconds(5.5)
    while passed_ns < wraps_ns:
        at_ns = START_NS + (seconds(5.5) if set_back else passed_ns)
        _pushed(history, at_ns, 1.0)
        passed_ns += seconds(pause_s)
        if set_back:
            history.move(-seconds(pause_s))
    at_ns += wraps_ns + seconds(10) - (passed_ns - seconds(pause_s))
    _pushed(history, at_ns, 2.0)
    assert _seen(history, at_ns)[-1] == 2.0
    assert 7.0 not in _seen(history, at_ns)
    assert 7.0 not in history.values(history.taken(np.array([0]), np.zeros(1, np.int64))[1::-1])[0]


def test_a_place_without_a_point_is_none_however_small_times_are_that_are_kept() -> None:
    wraps_ns = 2**32 * UNIT_NS
    history, begin_ns = History(seconds(60), [Series("max")], 1), (START_NS // wraps_ns + 1) * wraps_ns
    for after_s in (5, 20):
        history.push(np.array([0]), np.array([begin_ns + seconds(after_s)]), [np.array([float(after_s)])])
    _rows, _places, times = history.taken(np.array([0]), np.zeros(1, np.int64))
    assert sorted(times * UNIT_NS) == [begin_ns + seconds(5), begin_ns + seconds(20)]


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize(("span", "much"), [("1m", math.inf), ("1m", -math.inf), ("30m", 1e300), ("30m", -1e300)])
def test_what_is_too_much_for_a_window_is_absent(span: str, much: float, together: bool) -> None:
    """Alone in its step or with others, and after a restart."""
    evaluator, again = Evaluator(RULES), Evaluator(RULES)
    span_s = {"1m": 60, "30m": 1800}[span]
    first_s, apart_s = 0.6 * span_s, 0.1 if together else span_s / 90
    for at_s, level in ((0, 0.5), (first_s, 0.25), (first_s + apart_s, much), (first_s + 2 * apart_s, 0.25)):
        evaluator.feed([vm("g", at_s, level)], "m")
    again.restore(json.loads(json.dumps(evaluator.snapshot())))
    for name, known in (("max", 0.5), ("min", 0.25), ("avg", 1 / 3), ("p50", 0.25)):
        asked = condition(f"{name}(cpu_steal_ratio, {span}) >= 0", Kind.VM)
        for one in (evaluator, again):
            assert said(one, asked, "g") == pytest.approx(known), (name, one is again)


@REPEATABLE
@given(st.randoms(use_true_random=False))
def test_rows_side_by_side_are_no_others_than_rows_apart(chance: random.Random) -> None:
    """All at once, a few, one by one; of one time or of several: the same points to the bit."""
    at_once, apart = (History(seconds(60), [Series("mean"), Series("min"), Series("last")], 4) for _ in range(2))
    times = np.full(4, START_NS)
    for _ in range(12):
        times = times + [chance.choice([SECOND // 10, SECOND, 10 * SECOND])] * 4
        if chance.random() < 0.3:
            times = times + np.arange(4) * chance.choice([1, SECOND])
        values = [np.array([chance.choice([0.1, 1 / 3, math.nan]) for _ in range(4)]) for _ in range(3)]
        at_once.push(slice(0, 4), times, values)
        for row in np.array_split(chance.sample(range(4), 4), chance.randint(1, 4)):
            apart.push(np.array(row), times[row], [one[row] for one in values])
        for series in range(3):
            assert _points(at_once, slice(0, 4), times, series) == _points(apart, np.arange(4), times, series)


def _points(history: History, where: Where, times: NDArray[np.int64], series: int) -> list[list[tuple[int, float]]]:
    found: dict[int, list[tuple[int, float]]] = {}
    for some, _times, points in history.points(where, times, series):
        for at, row in enumerate(np.arange(4)[some].tolist()):
            valid = points.valid[:, at]
            found[row] = list(zip(points.time[valid, at].tolist(), points.value[valid, at].tolist(), strict=True))
    return [found[row] for row in range(4)]


@pytest.mark.parametrize("damage", [b"", b"\0" * 8, b"\xff" * 16])
def test_damaged_points_are_refused_whole(damage: bytes) -> None:
    evaluator = Evaluator(RULES)
    for time_s in (0, 10):
        evaluator.feed([vm("g", time_s, 0.1)], "m")
    document = json.loads(json.dumps(evaluator.snapshot()))
    for one in document["windows"]:
        one["times"] = damage.hex()
    with pytest.raises(Exception, match="signals: "):
        Evaluator(RULES).restore(document)


@pytest.fixture(scope="module")
def full() -> tuple[list[str], RuleSet, str]:
    """Windows with points in every place of their rings: their texts, their rules and what is saved of them."""
    texts = [f"{name}(cpu_steal_ratio, {span})" for name in NUMBER for span in ("1m", "30m")]
    rules = rules_of([f"{text} >= 0" for text in texts])
    evaluator, rng = Evaluator(rules), random.Random(5)
    for second in range(0, 2300, 10):
        evaluator.feed([vm("g", second, rng.random())], "m")
    return texts, rules, json.dumps(evaluator.snapshot())


@pytest.mark.parametrize("by_s", [-3600, 7.25])
def test_what_is_moved_to_another_time_says_the_same(full: tuple[list[str], RuleSet, str], by_s: float) -> None:
    """Before the next sample and after it."""
    texts, rules, saved = full
    conditions = [condition(f"{text} > 1", Kind.VM) for text in texts]
    still, moved = Evaluator(rules), Evaluator(rules)
    for evaluator in (still, moved):
        evaluator.restore(json.loads(saved))
        # and what is worked out of them is kept until the next sample
        for second in range(2300, 2400, 10):
            evaluator.feed([vm("g", second, second % 70 / 70)], "m")
    moved.move(seconds(by_s))
    told = [{**evaluator.inputs(one, "g")} for one in conditions for evaluator in (still, moved)]
    assert told[::2] == told[1::2]
    still.feed([vm("g", 2403, 0.5)], "m")
    moved.feed([vm("g", 2403 + by_s, 0.5)], "m")
    for one in conditions:
        assert moved.inputs(one, "g") == pytest.approx(still.inputs(one, "g"), rel=0.05), one
        assert moved.inputs(one, "g"), one


@given(st.integers(0, 2**32))
@settings(derandomize=True, deadline=None, max_examples=examples(15, least=8))
def test_samples_that_wait_are_there_whenever_somebody_reads(seed: int) -> None:
    """Messages of several hosts, some of them without a value, read and dumped in between."""
    chance = random.Random(seed)
    texts = ("avg(cpu_steal_ratio, 1m) > 50%", "min(memory_used_ratio, 5m) > 50%", "max(cpu_steal_ratio, 5m) > 50%")
    rules = tuple(
        Rule(name=f"r{at}", on=Kind.VM, when=condition(text, Kind.VM), digest=text) for at, text in enumerate(texts)
    )
    waits, not_ = Evaluator(RuleSet(rules)), Evaluator(RuleSet(rules))
    for step in range(60):
        fields = [name for name in ("cpu_steal_ratio", "memory_used_ratio") if chance.random() < 0.7]
        samples = [
            Sample("vm", {"host": host, "vm": host + guest}, {name: chance.random() for name in fields}, at_ns)
            for host in [chance.choice("abc")] for guest in "xyz"
            for at_ns in [START_NS + 2 * step * SECOND] if fields
        ]  # fmt: skip
        found = [[(one.rule, one.subject.id, one.state) for one in made.feed(samples, "c")] for made in (waits, not_)]
        assert found[0] == found[1]
        assert all(track.history for track in not_.world.windows.about(Kind.VM))  # with it nothing waits
        if chance.random() < 0.1:
            assert waits.snapshot() == not_.snapshot()
    assert waits.snapshot() == not_.snapshot()
