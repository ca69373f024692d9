"""What stands beside a rule's condition: times, tags that override, texts for people."""

from __future__ import annotations

import json

import pytest

from tests.rules_signals.reference import CLEARING, FIRING, INACTIVE, PENDING, START_NS, changes, host, ruleset, vm
from virtpilot.clock import SECOND
from virtpilot.libvirt_tags import read_tags
from virtpilot.model import Sample, Signal
from virtpilot.rules.language.wording import shown
from virtpilot.rules.signals.evaluator import Evaluator


def rule(text: str) -> Evaluator:
    return Evaluator(ruleset(f"virtpilot: 1\nrules:\n  - {{name: r, {text}}}\n"))


def tagged(time_s: float, steal: float, **tags: str) -> Sample:
    one = vm("g", time_s, steal)
    return Sample(one.measurement, {**one.tags, **tags}, one.fields, one.time_ns)


def test_out_of_its_time_a_rule_rests() -> None:
    # The stream begins on a Tuesday at 22:13:20 UTC.
    evaluator = rule(
        "on: vm, when: cpu_steal_ratio > 20%, during: 'Tue 23:13-23:15 Europe/Berlin', for: 20s, clear_for: 20s"
    )
    told = [c for number in range(14) for c in changes(evaluator.feed([vm("g", 10 * number, 0.3)], "m"))]
    assert [(old, new, (at - START_NS) // SECOND) for _r, _w, old, new, at in told] == [
        (INACTIVE, PENDING, 0),
        (PENDING, FIRING, 20),
        (FIRING, INACTIVE, 100),
    ]


def test_not_during_is_the_opposite_and_clearing_does_not_wait() -> None:
    evaluator = rule("on: vm, when: cpu_steal_ratio > 20%, not_during: '22:15-22:16', clear_for: 10m")
    told = []
    for number, level in enumerate([0.3, 0.1, 0.1, *[0.3] * 15]):
        told += changes(evaluator.feed([vm("g", 10 * number, level)], "m"))
    assert [(new, (at - START_NS) // SECOND) for *_r, _old, new, at in told] == [
        (FIRING, 0),
        (CLEARING, 10),
        (FIRING, 30),
        (INACTIVE, 100),
        (FIRING, 160),
    ]


@pytest.mark.parametrize(
    ("tags", "fires"),
    [
        ({}, True),
        ({"virtpilot_cpu_steal_max": "30%"}, False),
        ({"virtpilot_cpu_steal_max": "0.3"}, False),
        ({"virtpilot_cpu_steal_max": "5%"}, True),
        ({"virtpilot_cpu_steal_max": "30"}, True),
        ({"virtpilot_cpu_steal_max": "30MiB"}, True),
        ({"virtpilot_cpu_steal_max": "much"}, True),
        ({"virtpilot_cpu_steal_max": ""}, True),
    ],
)
def test_a_tag_overrides_a_threshold_if_it_makes_sense(tags: dict[str, str], fires: bool) -> None:
    evaluator = rule("on: vm, when: 'cpu_steal_ratio > override(cpu_steal_max, 10%)'")
    assert [state for *_rest, state, _at in changes(evaluator.feed([tagged(0, 0.2, **tags)], "m"))] == [FIRING] * fires


def one(evaluator: Evaluator, *samples: Sample) -> Signal:
    (signal,) = [found for sample in samples for found in evaluator.feed([sample], "m")]
    return signal


def test_texts_are_filled_in_with_what_the_signal_knows() -> None:
    evaluator = rule(
        "on: vm, when: 'cpu_steal_ratio > 20% and host.cpu_usage_ratio > 50%', severity: critical, annotations: {"
        "a: '{{ name }} ({{id}}, a {{ kind }}) on {{ host }}: {{ cpu_steal_ratio }} {{value}}', "
        "b: '{{ rule }} {{ severity }} {{ tags.tier }} {{ tags.none }} {{ host.cpu_usage_ratio }}', c: 'plain {x}'}"
    )
    signal = one(evaluator, host("h1", 0, 0.9), tagged(0, 0.25, tier="{{ name }}"))
    assert signal.annotations == {
        "a": "name-g (g, a vm) on h1: 25 % 25 %",
        "b": "r critical {{ name }} unknown 90 %",
        "c": "plain {x}",
    }
    assert json.loads(json.dumps(signal.annotations)) == signal.annotations


def test_what_is_missing_reads_unknown() -> None:
    evaluator = rule("on: vm, when: 'cpu_steal_ratio > 20% or cpu_usage_ratio > 1%', annotations: {a: '{{ value }}'}")
    assert one(evaluator, vm("g", 0, None, 0.5)).annotations == {"a": "unknown"}


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.1234, "ratio", "12.3 %"),
        (3 * 2**30, "bytes", "3 GiB"),
        (-1.5 * 2**20, "bytes_per_second", "-1.5 MiB/s"),
        (12.0, "bytes", "12 B"),
        (0.25, "seconds", "250 ms"),
        (90.0, "seconds", "90 s"),
        (4.0, "count", "4"),
        (2.5, "per_second", "2.5 /s"),
    ],
)
def test_values_for_people(value: float, unit: str, text: str) -> None:
    assert shown(value, unit) == text


NAMESPACE = 'xmlns:vp="https://virtpilot.dev/tags/1"'


@pytest.mark.parametrize(
    ("xml", "tags"),
    [
        (
            f'<vp:tags {NAMESPACE} tier="a" rack="r" virtpilot_cpu_steal_max="5%"/>',
            {"tier": "a", "virtpilot_cpu_steal_max": "5%"},
        ),
        (
            f"<vp:tags {NAMESPACE}>plb_affinity_web;plb_anti_affinity_db, plb_ignore_vm other</vp:tags>",
            {"plb_affinity_web": "true", "plb_anti_affinity_db": "true", "plb_ignore_vm": "true"},
        ),
        (f'<vp:tags {NAMESPACE} plb_ignore_vm="no">plb_ignore_vm</vp:tags>', {"plb_ignore_vm": "no"}),
        (f"<vp:tags {NAMESPACE}>plb_a-b plb_{'x' * 70} virtpilot_free</vp:tags>", {}),
    ],
)
def test_tags_that_speak_to_virtpilot_need_no_leave(xml: str, tags: dict[str, str]) -> None:
    assert read_tags(xml, frozenset({"tier"})) == tags


def test_a_rule_rests_on_guests_whose_metadata_speaks_of_maintenance() -> None:
    rules = ruleset(
        "virtpilot: 1\nrules:\n  - {name: r, on: vm, when: cpu_steal_ratio > 10%, unless: maintenance, clear_for: 1m}\n"
    )
    assert [rule.name for rule in rules.rules] == ["r", "maintenance"]
    evaluator = Evaluator(rules)
    worked_on, other = vm("a", 0, 0.5), vm("b", 0, 0.5)
    worked_on.tags["virtpilot_maintenance"] = "true"
    told = {(one.rule, one.subject.id) for one in evaluator.feed([worked_on, other], "h1/1")}
    assert told == {("maintenance", "a"), ("r", "b")}
