"""Whether a condition holds of a subject after a moment: asked each second, worked out once a sample."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rules_signals.reference import START_NS, host, ruleset, vm
from tests.thoroughness import examples
from virtpilot.clock import seconds
from virtpilot.model import Kind, Sample
from virtpilot.rules.language.expression import Columns, Condition, Masks, condition
from virtpilot.rules.signals.evaluator import Evaluator

REPEATABLE = settings(derandomize=True, deadline=None, max_examples=examples(60))
TEXTS = [
    "cpu_steal_ratio > 20%",
    "cpu_steal_ratio < host.cpu_usage_ratio",
    "avg(cpu_steal_ratio, 25s) > 20%",
    "avg(host.cpu_usage_ratio, 25s) > 20%",
    'tags.tier == "gold"',
    "max(disks.read_latency_seconds) > 10ms",
    "count(vms where cpu_steal_ratio > 20%) > 0",
    "signals.many",
]
MANY = "  - {name: many, on: cluster, when: 'count(vms) > 1'}\n"


def at(time_s: float) -> int:
    return START_NS + seconds(time_s)


def asking() -> tuple[Evaluator, dict[str, Condition]]:
    """An evaluator with a rule for each text, and their conditions."""
    rules = ruleset(
        "virtpilot: 1\nrules:\n"
        + "".join(f"  - {{name: r{n}, on: vm, when: '{text}'}}\n" for n, text in enumerate(TEXTS))
        + MANY
    )
    return Evaluator(rules), {rule.when.text: rule.when for rule in rules.rules if rule.on is Kind.VM}


def disk(guest: str, time_s: float, latency: float) -> Sample:
    return Sample("vm_disk", {**vm(guest, time_s).tags, "disk": "vda"}, {"read_latency_seconds": latency}, at(time_s))


_values = st.sampled_from([None, 0.1, 0.3, 0.9])
_steps = st.one_of(
    st.tuples(st.just("host"), _values, st.just("")),
    st.tuples(st.just("vm"), _values, st.sampled_from(["", "gold"])),
    st.tuples(st.just("disk"), st.sampled_from([0.001, 0.1]), st.just("")),
    st.tuples(st.just("tick"), st.none(), st.just("")),
)


@REPEATABLE
@given(st.lists(st.tuples(_steps, st.sampled_from([0, 1, 10])), min_size=3, max_size=8))
def test_what_was_told_before_is_told_again_only_while_it_is_so(
    steps: list[tuple[tuple[str, float | None, str], int]],
) -> None:
    evaluator, conditions = asking()
    evaluator.feed([host("h1", 0, 0.2), vm("g", 0, 0.3), vm("other", 0, 0.1), disk("g", 0, 0.1)], "m")
    time_s = 1
    for (what, value, tier), later_s in steps:
        time_s += later_s
        if what == "host":
            evaluator.feed([host("h1", time_s, value)], "m")
        elif what == "vm":
            evaluator.feed([vm("g", time_s, value, tier=tier)], "m")
        elif what == "disk":
            evaluator.feed([disk("g", time_s, value or 0.0)], "m")
        else:
            evaluator.tick(at(time_s))
        fresh, _conditions = asking()
        fresh.restore(json.loads(json.dumps(evaluator.snapshot())))
        for text, one in conditions.items():
            if "vms" not in text:  # told at a tick, and not saved
                assert evaluator.holds(one, "g", 0) is fresh.holds(one, "g", 0), text


@pytest.mark.parametrize(
    ("text", "others"),
    [
        ("cpu_steal_ratio < host.cpu_usage_ratio", [host("h1", 5, 0.9)]),
        ("max(disks.read_latency_seconds) > 10ms", [disk("g", 5, 0.1)]),
        ("count(vms where cpu_steal_ratio > 20%) > 0", [host("h1", 5, 0.2), vm("other", 5, 0.9)]),
        ("signals.many", [host("h1", 5, 0.2)]),
    ],
)
def test_what_hangs_on_others_is_told_anew_though_the_subject_is_not_measured(text: str, others: list[Sample]) -> None:
    evaluator, conditions = asking()
    guests = [vm("g", 0, 0.2), *([] if text == "signals.many" else [vm("other", 0, 0.1)])]
    evaluator.feed([host("h1", 0, 0.1), *guests], "m")
    evaluator.tick(at(1))
    assert evaluator.holds(conditions[text], "g", 0) is not True
    evaluator.feed(others, "m")
    if text == "signals.many":
        evaluator.feed([vm("other", 5, 0.1)], "m")
    evaluator.tick(at(6))
    assert evaluator.holds(conditions[text], "g", 0) is True


def test_it_is_worked_out_once_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator, _conditions = asking()
    one = condition("cpu_steal_ratio > 20%", Kind.VM)
    asked: list[Columns] = []
    truth = one.evaluate

    def evaluate(columns: Columns) -> Masks:
        asked.append(columns)
        return truth(columns)

    monkeypatch.setattr(one, "evaluate", evaluate)
    for time_s, steal in ((0, 0.3), (10, 0.1)):
        evaluator.feed([host("h1", time_s, 0.1), vm("g", time_s, steal)], "m")
        assert {evaluator.holds(one, "g", 0) for _ in range(3)} == {steal > 0.2}
        assert evaluator.holds(one, "g", at(time_s)) is None
    assert len(asked) == 2
