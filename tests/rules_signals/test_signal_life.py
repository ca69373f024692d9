"""Single cases of a signal's life, each as an operator would tell it."""

from __future__ import annotations

import pytest

from tests.rules_signals.reference import (
    CLEARING,
    FIRING,
    INACTIVE,
    PENDING,
    RULES,
    START_NS,
    changes,
    host,
    ruleset,
    vm,
)
from virtpilot.clock import seconds
from virtpilot.model import Kind, Sample, Signal, SignalState
from virtpilot.rules.language.expression import condition
from virtpilot.rules.signals.evaluator import Evaluator
from virtpilot.rules.signals.tolerance import Tolerance

ALL = ruleset(RULES)
Told = list[tuple[float, SignalState]]


def at(time_s: float) -> int:
    return START_NS + seconds(time_s)


def life(rule: str, samples: list[Sample | float]) -> Told:
    """When one rule's signal became what; a number stands for a tick at that time."""
    evaluator = Evaluator(ALL)
    signals: list[Signal] = []
    for sample in samples:
        signals += evaluator.feed([sample], "m") if isinstance(sample, Sample) else evaluator.tick(at(sample))
    return [((one.at_ns - START_NS) / 1e9, one.state) for one in signals if one.rule == rule]


def every_10_s(*levels: float | None, start: float = 0) -> list[Sample | float]:
    return [vm("g", start + 10 * number, level) for number, level in enumerate(levels)]


def test_without_for_it_fires_and_clears_at_once() -> None:
    assert life("at-once", every_10_s(0.9, 0.9, 0.1)) == [(0, FIRING), (20, INACTIVE)]


def test_for_and_clear_for_are_waited_for() -> None:
    told = [(10, PENDING), (40, FIRING), (50, CLEARING), (70, INACTIVE)]
    assert life("waits", every_10_s(0.1, 0.9, 0.9, 0.9, 0.9, 0.1, 0.1, 0.1)) == told


def test_a_false_sample_ends_the_waiting() -> None:
    assert life("waits", every_10_s(0.9, 0.9, 0.9, 0.1, 0.9)) == [(0, PENDING), (30, INACTIVE), (40, PENDING)]


def test_one_that_does_not_clear_for_long_enough_fires_on() -> None:
    told = [(0, PENDING), (30, FIRING), (40, CLEARING), (50, FIRING)]
    assert life("waits", every_10_s(0.9, 0.9, 0.9, 0.9, 0.1, 0.9)) == told


def test_between_the_thresholds_it_stays() -> None:
    told = [(0, PENDING), (10, FIRING), (40, CLEARING), (70, INACTIVE)]
    assert life("hysteresis", every_10_s(0.9, 0.9, 0.3, 0.3, 0.1, 0.1, 0.1, 0.1)) == told


@pytest.mark.parametrize(
    "samples",
    [
        [vm("g", 0, 0.9), vm("g", 10, 0.9), vm("g", 30, 0.9)],  # a sample that never came
        every_10_s(0.9, 0.9, None, 0.9),  # a field that was not there
        every_10_s(0.9, 0.9, float("nan"), 0.9),
    ],
)
def test_for_survives_one_missing_sample(samples: list[Sample | float]) -> None:
    assert life("waits", samples) == [(0, PENDING), (30, FIRING)]


@pytest.mark.parametrize(
    "samples",
    [
        [vm("g", 0, 0.9), vm("g", 10, 0.9), vm("g", 50, 0.9), vm("g", 60, 0.9)],
        every_10_s(0.9, 0.9, None, None, None, None, 0.9),
    ],
)
def test_for_begins_again_after_a_long_gap(samples: list[Sample | float]) -> None:
    """Nothing says that the condition held meanwhile."""
    assert life("waits", samples) == [(0, PENDING)]


def test_two_samples_far_apart_are_no_proof_either() -> None:
    assert life("waits", [vm("g", 0, 0.9), vm("g", 600, 0.9)]) == [(0, PENDING)]


@pytest.mark.parametrize(
    ("rule", "silent", "absent"),
    [
        ("waits", [], []),
        ("clears", [(91, CLEARING), (112, INACTIVE)], [(30, CLEARING), (50, INACTIVE)]),
        ("fires", [], []),
    ],
)
def test_a_firing_signal_without_data(rule: str, silent: Told, absent: Told) -> None:
    """Whether samples do not come, or come without the field."""
    firing = every_10_s(0.9, 0.9, 0.9, 0.9)
    begun: Told = [(0, PENDING), (30 if rule == "waits" else 20, FIRING)]
    assert life(rule, [*firing, 80, 91, 100, 112, 120]) == begun + silent
    if rule != "waits":
        firing = every_10_s(0.9, 0.9, 0.9)
        assert life(rule, [*firing, *every_10_s(None, None, None, None, start=30)]) == begun + absent


def test_a_calm_signal_without_data_fires_where_the_rule_says_so() -> None:
    assert life("fires", [*every_10_s(0.1, 0.1), 71, 80, 91]) == [(71, PENDING), (91, FIRING)]
    assert life("fires", every_10_s(0.1, None, None, None)) == [(10, PENDING), (30, FIRING)]
    assert life("waits", [*every_10_s(0.1, 0.1), 71, 80, 1000]) == []


def test_silence_fires_only_where_the_rule_applies() -> None:
    assert life("gold-fires", [vm("g", 0, 0.1), 71, 90, 120]) == []
    assert life("gold-fires", [vm("g", 0, 0.1, tier="gold"), 71, 90]) == [(71, PENDING), (90, FIRING)]


def test_where_that_stops_holding_ends_the_signal() -> None:
    assert life("gold", [vm("g", 0, 0.9, tier="gold"), vm("g", 10, 0.9, tier="gold"), vm("g", 20, 0.9)]) == [
        (0, PENDING),
        (10, FIRING),
        (20, INACTIVE),
    ]


def test_where_that_cannot_be_told_changes_nothing() -> None:
    assert life("big", [vm("g", 0, 0.9, 0.9), vm("g", 10, 0.9), vm("g", 20, 0.1)]) == [(0, FIRING)]
    assert life("big-clears", [vm("g", 0, 0.9, 0.9), vm("g", 10, 0.9)]) == [(0, FIRING), (10, INACTIVE)]


def test_a_guest_reads_its_host_as_last_measured() -> None:
    samples: list[Sample | float] = [vm("g", 0, 0.9), host("h1", 1, 0.9), *every_10_s(0.9, 0.9, 0.9, start=10)]
    assert life("with-host", samples) == [(10, PENDING), (30, FIRING)]
    assert life("with-host", [host("h1", 1, 0.1), *every_10_s(0.9, 0.9, 0.9, start=10)]) == []


def test_a_guest_that_moved_reads_its_new_host() -> None:
    samples: list[Sample | float] = [host("h1", 1, 0.9), host("h2", 1, 0.1)]
    samples += [*every_10_s(0.9, 0.9, 0.9, start=10), vm("g", 40, 0.9, on="h2")]
    assert life("with-host", samples) == [(10, PENDING), (30, FIRING), (40, INACTIVE)]


def test_a_host_in_the_place_of_one_that_has_gone_is_not_taken_for_it() -> None:
    evaluator = Evaluator(ALL, tolerance=Tolerance(forget_ns=seconds(100)))
    evaluator.feed([host("h1", 0, 0.9), vm("g", 60, 0.1)], "m")
    evaluator.tick(at(101))
    evaluator.feed([host("h9", 102, 0.5)], "m")
    row = evaluator.row(Kind.VM, "g")
    assert row is not None
    assert "host.cpu_usage_ratio" not in row.values
    assert evaluator.holds(condition("host.cpu_usage_ratio > 10%", Kind.VM), "g", 0) is None


def test_subjects_do_not_touch_each_other() -> None:
    evaluator = Evaluator(ALL)
    signals = evaluator.feed([vm(f"g{n}", 0, 0.9 if n % 3 else 0.1) for n in range(300)], "m")
    assert [one.subject.id for one in signals if one.rule == "at-once"] == [f"g{n}" for n in range(300) if n % 3]


def test_a_signal_tells_whom_when_why_and_by_which_message() -> None:
    evaluator = Evaluator(ALL)
    evaluator.feed([host("h1", 0, 0.9)], "h1/boot/6")
    signal = next(one for one in evaluator.feed([vm("g", 1, 0.9, tier="gold")], "h1/boot/7") if one.rule == "with-host")
    assert (signal.previous, signal.state, signal.at_ns, signal.cause) == (INACTIVE, PENDING, at(1), "h1/boot/7")
    assert (signal.subject.name, signal.subject.host, signal.subject.tags) == ("name-g", "h1", {"tier": "gold"})
    assert signal.inputs == {"cpu_steal_ratio": 0.9, "host.cpu_usage_ratio": 0.9}


def test_one_that_has_gone_ends_and_starts_afresh() -> None:
    samples: list[Sample | float] = [*every_10_s(0.9, 0.9, 0.9, 0.9), 3000, 3631, 3999]
    told = life("waits", [*samples, vm("g", 4000, 0.9)])
    assert told == [(0, PENDING), (30, FIRING), (3631, INACTIVE), (4000, PENDING)]


def test_a_clock_that_runs_far_ahead_neither_blinds_nor_fires() -> None:
    evaluator = Evaluator(ALL)
    evaluator.feed([vm("early", 10**8, 0.1)], "m")
    evaluator.tick(at(0))
    assert evaluator.row(Kind.VM, "early") is None
    assert evaluator.feed([vm("g", 10**8, 0.9)], "m") == []
    assert (evaluator.ahead, evaluator.row(Kind.VM, "g")) == (1, None)
    assert ("at-once", "g", INACTIVE, FIRING, at(1)) in changes(evaluator.feed([vm("g", 1, 0.9)], "m"))


@pytest.mark.parametrize("time_ns", [0, -1, -(2**63)])
def test_a_time_before_all_times_is_late(time_ns: int) -> None:
    evaluator = Evaluator(ALL)
    assert evaluator.feed([Sample("vm", {"host": "h", "vm": "g"}, {"cpu_steal_ratio": 1.0}, time_ns)], "m") == []
    assert evaluator.late == 1


def test_what_is_no_host_and_no_guest_is_passed_over() -> None:
    evaluator = Evaluator(ALL)
    strange = [
        Sample("vm", {"host": "h1"}, {"cpu_steal_ratio": 0.9}, at(0)),
        Sample("vm", {"vm": "g"}, {"cpu_steal_ratio": 0.9}, at(0)),
        Sample("vm_disk", {"host": "h1", "vm": "g"}, {"cpu_steal_ratio": 0.9}, at(0)),
        Sample("host", {}, {"cpu_usage_ratio": 0.9}, at(0)),
        Sample("knob", {"vm": "g"}, {"value_count": 3}, at(0)),
    ]
    assert evaluator.feed(strange, "m") == []
    assert evaluator.latest(Kind.VM) == {}


def test_the_newest_value_of_a_knob_is_known_for_as_long_as_it_is_told() -> None:
    def knob(time_s: float, value: float) -> Sample:
        return Sample("knob", {"host": "h1", "vm": "g", "knob": "cpu_shares"}, {"value_count": value}, at(time_s))

    evaluator = Evaluator(ALL)
    evaluator.feed([knob(10, 1024), knob(5, 2)], "m")
    assert evaluator.knob("g", "cpu_shares") == (1024.0, at(10))
    evaluator.tick(at(3611))
    assert evaluator.knob("g", "cpu_shares") is None


def test_an_expectation_is_judged_by_newer_samples_only() -> None:
    evaluator = Evaluator(ALL)
    evaluator.feed([vm("g", 10, 0.1)], "m")
    calm = condition("cpu_steal_ratio < 20%", Kind.VM)
    assert evaluator.holds(calm, "g", at(9)) is True
    assert evaluator.holds(calm, "g", at(10)) is None
    assert evaluator.holds(calm, "other", 0) is None
    evaluator.feed([vm("g", 20, 0.9)], "m")
    assert evaluator.holds(calm, "g", at(10)) is False
    evaluator.feed([vm("g", 30)], "m")
    assert evaluator.holds(calm, "g", at(20)) is None


def test_memory_is_bounded_when_subjects_come_and_go() -> None:
    evaluator = Evaluator(ALL, tolerance=Tolerance(forget_ns=seconds(100)))
    for age in range(60):
        now_s = age * 200.0
        batch = [vm(f"g{age}-{number}", now_s, 0.9, on=f"h{age}") for number in range(50)]
        evaluator.feed([host(f"h{age}", now_s, 0.9), *batch], "m")
        evaluator.tick(at(now_s + 101))
    assert len(evaluator.latest(Kind.VM)) == 0
    assert list(evaluator.firing()) == []
    tables = evaluator._tables
    assert [len(tables[kind].subjects) for kind in (Kind.VM, Kind.HOST)] == [50, 1]
    machines = [evaluator._bank.machine(rule.name) for rule in ALL.rules]
    assert {len(machine.state) for machine in machines if machine is not None} == {64}
    assert sum(len(rule["states"]) for rule in evaluator.snapshot()["rules"]) == 0


def stateful(on: str, time_s: float, state: int) -> Sample:
    sample = vm("g", time_s, 0.9, on=on)
    return Sample(sample.measurement, sample.tags, {**sample.fields, "state_code": state}, sample.time_ns)


@pytest.mark.parametrize("alive", [1, 3])
def test_a_definition_left_on_another_host_does_not_move_the_guest_there(alive: int) -> None:
    evaluator = Evaluator(ALL)
    evaluator.feed([stateful("h2", 1, 5)], "m")
    for number in range(1, 6):
        evaluator.feed([stateful("h1", 10 * number, alive), stateful("h2", 10 * number + 1, 5)], "m")
        assert evaluator.latest(Kind.VM)["g"].subject.host == "h1"


def test_a_guest_that_was_moved_while_off_is_where_it_alone_is_told_of() -> None:
    evaluator = Evaluator(ALL)
    evaluator.feed([stateful("h1", 0, 5)], "m")
    hosts = []
    for number in range(1, 8):
        evaluator.feed([stateful("h2", 10 * number, 5)], "m")
        hosts.append(evaluator.latest(Kind.VM)["g"].subject.host)
    assert hosts == ["h1"] * 5 + ["h2"] * 2


def test_a_guest_that_ends_on_its_own_host_is_off() -> None:
    evaluator = Evaluator(ruleset("virtpilot: 1\nrules:\n  - {name: off, on: vm, when: state_code == 5}\n"))
    evaluator.feed([stateful("h1", 0, 1), stateful("h1", 10, 5)], "m")
    assert [(rule.name, subject.id) for rule, subject in evaluator.firing()] == [("off", "g")]
    assert evaluator.firing_counts() == {"off": 1}
    evaluator.feed([stateful("h1", 20, 1)], "m")
    assert evaluator.firing_counts() == {"off": 0}
