"""Other rules go on with what is known without a copy of it, and find what a restart with them would find."""

from __future__ import annotations

import json
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rules_signals.reference import START_NS, Event, changes, host, ruleset, streams, vm
from tests.thoroughness import examples
from virtpilot.clock import seconds
from virtpilot.model import Kind, Sample, Signal
from virtpilot.rules.language.expression import condition
from virtpilot.rules.signals.evaluator import Evaluator

REPEATABLE = settings(derandomize=True, deadline=None, max_examples=examples(40, least=10))
OLD = """\
virtpilot: 1
rules:
  - {name: starved, on: vm, when: cpu_steal_ratio > 20%, for: 10s, clear: cpu_steal_ratio < 15%, clear_for: 20s}
  - {name: past, on: vm, when: 'avg(cpu_steal_ratio, 1m) > 20% and max(host.cpu_usage_ratio, 1m) > 10%'}
  - {name: changes, on: vm, when: cpu_steal_ratio > 50%}
  - {name: goes, on: host, when: 'min(cpu_usage_ratio, 5m) > 50%', no_data: fire}
  - {name: several, on: host, when: {at least 2 of vms within 30s: starved}}
  - {name: full, on: vm, when: 'any(filesystems where max(used_ratio, 30s) > 80%)', for: 5s}
"""
NEW = OLD.replace(
    "changes, on: vm, when: cpu_steal_ratio > 50%", "changes, on: vm, when: cpu_steal_ratio > 40%"
).replace(
    "  - {name: goes, on: host, when: 'min(cpu_usage_ratio, 5m) > 50%', no_data: fire}\n",
    """\
  - {name: begins, on: vm, when: 'min(cpu_usage_ratio, 1m) >= 0'}
  - {name: recalls, on: host, when: {at least 1 of vms within 60s: past}}
""",
)
WANTED = [condition(text, Kind.VM) for text in ("avg(cpu_steal_ratio, 1m) > 0", "min(cpu_usage_ratio, 1m) > 0")]


def fed(evaluator: Evaluator, events: Iterable[Event]) -> list[list[Signal]]:
    return [
        evaluator.tick(event) if isinstance(event, int) else evaluator.feed([event, *filesystems(event)], "m")
        for event in events
    ]


def filesystems(sample: Sample) -> list[Sample]:
    """A guest's one, as full as it is busy."""
    used = sample.fields.get("cpu_usage_ratio")
    if sample.measurement != "vm" or used is None:
        return []
    return [Sample("vm_filesystem", {**sample.tags, "mountpoint": "/"}, {"used_ratio": used}, sample.time_ns)]


@REPEATABLE
@given(streams(), st.floats(0, 1), st.sampled_from([OLD, NEW]))
def test_what_is_taken_over_is_what_a_restart_would_restore(events: list[Event], share: float, rules: str) -> None:
    former, taken, restored = Evaluator(ruleset(OLD)), Evaluator(ruleset(rules)), Evaluator(ruleset(rules))
    first = int(len(events) * share)
    fed(former, events[:first])
    former._ended.clear()  # a restart does not know of these
    restored.restore(json.loads(json.dumps(former.snapshot())))
    restored._intake.now_ns = former._intake.now_ns
    taken.take_over(former)
    assert fed(taken, events[first:]) == fed(restored, events[first:])
    documents = [evaluator.snapshot() for evaluator in (taken, restored)]
    assert documents[0]["rules"] == documents[1]["rules"]
    assert documents[0]["tables"] == documents[1]["tables"]
    for guest in taken.known(Kind.VM):
        for asked in WANTED if rules is NEW else WANTED[:1]:
            assert taken.inputs(asked, guest) == restored.inputs(asked, guest)


def test_no_history_is_copied_and_a_new_one_begins_with_nothing() -> None:
    """Places of a ring that are taken hold no zeros of a number that nobody has read before."""
    former, taken = Evaluator(ruleset(OLD)), Evaluator(ruleset(NEW))
    for second in range(0, 100, 10):
        former.feed([host("h1", second, 0.9), vm("g", second, 0.1, 0.5)], "m")
    taken.take_over(former)
    key = (Kind.VM, seconds(60))
    old, new = (evaluator.world.windows._tracks[key] for evaluator in (former, taken))
    series = new.series.index(("cpu_steal_ratio", "mean"))
    assert np.shares_memory(old.history._value[old.series.index(new.series[series])], new.history._value[series])
    assert taken.inputs(WANTED[0], "g") == {WANTED[0].text.partition(" >")[0]: pytest.approx(0.1)}
    assert taken.inputs(WANTED[1], "g") == {}
    for second in range(100, 170, 10):
        taken.feed([vm("g", second, 0.1, 0.5)], "m")
    assert taken.inputs(WANTED[1], "g") == {WANTED[1].text.partition(" >")[0]: 0.5}


def test_ends_that_were_not_told_yet_are_told_after_two_reloads_at_once() -> None:
    first, second, third = (Evaluator(ruleset(rules)) for rules in (OLD, NEW, NEW))
    first.feed([vm("g", 0, 0.9)], "m")
    second.take_over(first)
    third.take_over(second)
    assert [one[:2] for one in changes(third.tick(START_NS + seconds(1)))] == [("changes", "g")]
