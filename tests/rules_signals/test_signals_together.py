"""Rules that read other rules' signals: `unless`, `all`, `any`, `at least`, `recent`."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rules_signals.reference import FIRING, INACTIVE, PENDING, START_NS, changes, host, ruleset, vm
from tests.thoroughness import examples
from virtpilot.clock import SECOND, seconds
from virtpilot.model import Sample, Signal, SignalState
from virtpilot.rules.signals.evaluator import Evaluator

REPEATABLE = settings(derandomize=True, deadline=None, max_examples=examples(50))
# Those that read come before what they read: the order of the file must not matter.
RULES = ruleset(
    """
virtpilot: 1
rules:
  - {name: both, on: vm, when: {all: [starved, busy]}}
  - {name: either, on: vm, when: {any: [starved, busy]}, for: 10s}
  - {name: quiet, on: vm, when: cpu_steal_ratio > 20%, unless: [maintenance, hot]}
  - {name: lately, on: vm, when: 'recent(signals.starved, 30s) and not signals.starved'}
  - {name: starved, on: vm, when: cpu_steal_ratio > 20%}
  - {name: busy, on: vm, when: cpu_usage_ratio > 20%}
  - {name: maintenance, on: vm, when: tags.tier == "gold"}
  - {name: hot, on: host, when: cpu_usage_ratio > 50%}
  - {name: many, on: host, when: {at least 2 of vms within 30s: starved}}
  - {name: storm, on: cluster, when: {at least 1 of hosts: many}}
"""
)
Told = list[tuple[str, str, SignalState, float]]


def at(time_s: float) -> int:
    return START_NS + seconds(time_s)


def told(signals: list[Signal], *rules: str) -> Told:
    return [
        (rule, who, state, (time_ns - START_NS) / SECOND)
        for rule, who, _old, state, time_ns in changes(signals)
        if rule in rules
    ]


def fed(*samples: Sample) -> list[Signal]:
    evaluator = Evaluator(RULES)
    return [signal for sample in samples for signal in evaluator.feed([sample], "m")]


def test_signals_come_together_in_the_same_sample_whatever_their_order_in_the_file() -> None:
    signals = fed(vm("g", 0, 0.3, 0.1), vm("g", 10, 0.3, 0.3), vm("g", 20, 0.1, 0.3), vm("g", 30, 0.1, 0.1))
    assert told(signals, "both") == [("both", "g", FIRING, 10), ("both", "g", INACTIVE, 20)]
    assert told(signals, "either") == [
        ("either", "g", PENDING, 0),
        ("either", "g", FIRING, 10),
        ("either", "g", INACTIVE, 30),
    ]
    assert next(one for one in signals if one.rule == "both").inputs == {"signals.busy": 1.0, "signals.starved": 1.0}


def test_unless_ends_a_signal_and_holds_it_back() -> None:
    signals = fed(
        host("h1", 0, 0.1),
        vm("g", 0, 0.3),
        vm("g", 10, 0.3, tier="gold"),
        vm("g", 20, 0.3),
        host("h1", 30, 0.9),
        vm("g", 30, 0.3),
        host("h1", 40, 0.1),
        vm("g", 40, 0.3),
    )
    assert told(signals, "quiet") == [
        ("quiet", "g", FIRING, 0),
        ("quiet", "g", INACTIVE, 10),
        ("quiet", "g", FIRING, 20),
        ("quiet", "g", INACTIVE, 30),
        ("quiet", "g", FIRING, 40),
    ]


def test_a_host_that_is_not_known_leaves_open_whether_the_rule_applies() -> None:
    assert told(fed(vm("g", 0, 0.3)), "quiet") == []


def test_recent_looks_back_by_the_samples_own_times() -> None:
    steps = [(0, 0.3), (10, 0.1), (30, 0.1), (31, 0.1), (40, 0.3)]
    assert told(fed(*(vm("g", time_s, level) for time_s, level in steps)), "lately") == [
        ("lately", "g", FIRING, 10),
        ("lately", "g", INACTIVE, 40),
    ]
    # Last seen firing at 0 s: the sample that ends it at 10 s still counts as its end.
    late = fed(vm("g", 0, 0.3), vm("g", 10, 0.1), vm("g", 41, 0.1))
    assert told(late, "lately") == [("lately", "g", FIRING, 10), ("lately", "g", INACTIVE, 41)]


def test_many_at_once_are_counted_at_the_tick_and_told_up_to_the_cluster() -> None:
    evaluator = Evaluator(RULES)
    signals = []
    for time_s in (0, 10, 20, 60, 70):
        level = 0.3 if time_s == 0 else 0.1
        message = [host("h1", time_s, 0.1), vm("g1", time_s, level), vm("g2", time_s, level), host("h2", time_s, 0.1)]
        signals += evaluator.feed(message, "m")
        signals += evaluator.tick(at(time_s + 1))
    fired = next(one for one in signals if one.rule == "many")
    assert fired.inputs == {"count(vms where recent(signals.starved, 30s))": 2.0}
    assert told(signals, "many", "storm") == [
        ("many", "h1", FIRING, 10),
        ("storm", "c", FIRING, 11),
        ("many", "h1", INACTIVE, 70),
        ("storm", "c", INACTIVE, 71),
    ]


_samples = st.lists(
    st.tuples(
        st.sampled_from(["g1", "g2", "h1", "tick"]),
        st.sampled_from([0.1, 0.3, 0.9, None]),
        st.sampled_from([0.1, 0.3, None]),
        st.sampled_from(["gold", ""]),
    ),
    min_size=1,
    max_size=40,
)


def events(samples: list[tuple[str, float | None, float | None, str]]) -> list[Sample | int]:
    found: list[Sample | int] = []
    for number, (who, steal, usage, tier) in enumerate(samples):
        time_s = 5.0 * number
        if who == "tick":
            found.append(at(time_s))
        else:
            found.append(host("h1", time_s, steal) if who == "h1" else vm(who, time_s, steal, usage, tier=tier))
    return found


def run(evaluator: Evaluator, event: Sample | int) -> list[Signal]:
    return evaluator.tick(event) if isinstance(event, int) else evaluator.feed([event], "m")


@REPEATABLE
@given(_samples)
def test_they_say_what_their_parts_say(samples: list[tuple[str, float | None, float | None, str]]) -> None:
    evaluator = Evaluator(RULES)
    for event in events(samples):
        run(evaluator, event)
        if isinstance(event, int) or event.measurement == "host":
            continue
        now = {(rule.name, subject.id) for rule, subject in evaluator.firing()}
        guest = event.tags["vm"]
        fires = {name for name, who in now if who == guest}
        assert ("both" in fires) is ({"starved", "busy"} <= fires)
        assert "lately" not in fires or "starved" not in fires
        assert "quiet" not in fires or not ("maintenance" in fires or ("hot", "h1") in now)


@REPEATABLE
@given(_samples, st.integers(0, 40))
def test_a_restart_changes_nothing(samples: list[tuple[str, float | None, float | None, str]], cut: int) -> None:
    straight, restarted = Evaluator(RULES), Evaluator(RULES)
    last_tick = 0
    for number, event in enumerate(events(samples)):
        if number == cut and last_tick:
            document = json.loads(json.dumps(restarted.snapshot()))
            restarted = Evaluator(RULES)
            restarted.restore(document)
            # The first thing that a controller does after a restart is a tick.
            assert restarted.tick(last_tick + 1) == straight.tick(last_tick + 1)
        last_tick = event if isinstance(event, int) else last_tick
        assert run(restarted, event) == run(straight, event)
