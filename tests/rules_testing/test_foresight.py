"""Frames that are seen at once leave nothing out: the same records and the same coverage as step by step."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from tests.rules_testing.shipped import shipped
from tests.thoroughness import THOROUGH, examples
from virtpilot.clock import SECOND
from virtpilot.model import Sample, Signal
from virtpilot.pipeline import rule_tests
from virtpilot.pipeline.rehearsal import Rehearsal
from virtpilot.rules.language import RuleSet
from virtpilot.rules.testing.coverage import Coverage
from virtpilot.rules.testing.records import RuleTest

# How long the made-up tests last at most: longer than what can be known of most windows.
LONGEST_M = 20 if THOROUGH else 9
REPEATABLE = settings(derandomize=True, deadline=None, max_examples=examples(10, least=5))
# One of each kind that the language has; the cluster's apart, for there each tick is a sample.
ALONE = """
virtpilot: 1
rules:
  - {name: plain, on: vm, when: cpu_steal_ratio > 20%, for: 30s, clear: cpu_steal_ratio < 5%, clear_for: 1m, mode: act,
     cooldown: 2m, priority: 60, remedies: [{set: {cpu_shares: current * 2}, lease: 3m, expect:
     cpu_steal_ratio < 15% within 1m}, {migrate: {to: best}}]}
  - {name: held-back, on: vm, when: cpu_usage_ratio > 30%, mode: act, remedies: [{set: {cpu_shares: current / 2},
     lease: 2m, expect: 'max(vms.cpu_steal_ratio) < 25% and min(cpu_usage_ratio, 1m) < 90% within 3m'}]}
  - {name: past, on: vm, when: 'avg(cpu_steal_ratio, 1m) > 20%', mode: act, remedies: [{migrate: {to: best}}]}
  - {name: trend, on: vm, when: 'forecast(cpu_usage_ratio, 1m) > 50% or p90(cpu_steal_ratio, 5m) >= 25%'}
  - {name: long, on: vm, when: 'avg(cpu_usage_ratio, 2h) > 30% and stddev(cpu_usage_ratio, 1h) > 20%', for: 2m}
  - {name: rising, on: vm, when: 'rate(cgroup_io_read_bytes_total, 2h) > 10B/s', no_data: clear}
  - {name: of-host, on: vm, when: 'cpu_steal_ratio > 5% and avg(host.cpu_usage_ratio, 1m) > 50%'}
  - {name: crowded, on: host, when: 'sum(vms.cpu_usage_ratio) > 60% and max(vms.cpu_steal_ratio) > 5%', for: 1m}
  - {name: above, on: vm, when: cpu_usage_ratio > avg(hosts.cpu_usage_ratio), where: tags.tier == "gold"}
  - {name: slow-disk, on: vm, when: max(disks.read_latency_seconds) > 200ms, for: 20s, no_data: fire}
  - {name: disk-errors, on: vm, when: 'any(disks where avg(write_latency_seconds, 1m) > 150ms)'}
  - {name: both-disks, on: vm, when: 'flaps(count(disks where read_latency_seconds > 300ms), 5m) > 1'}
  - {name: moving, on: vm, when: job.running_count == 1 and job.throttle_ratio > 30% and job.operation == "out"}
  - {name: own, on: vm, when: 'cpu_steal_ratio > override(steal, 20%)', during: '00:01-00:04'}
"""
ASKING = """
  - {name: hot, on: host, when: cpu_usage_ratio > 80%, clear_for: 20s, no_data: fire}
  - {name: kept, on: vm, when: cpu_steal_ratio > 5%, unless: hot, for: 20s}
  - {name: several, on: host, when: {at least 2 of vms within 2m: plain}}
"""
CLUSTER = """
  - {name: uneven, on: cluster, when: 'max(hosts.cpu_usage_ratio) - min(hosts.cpu_usage_ratio) > 30%', for: 1m}
  - {name: mean, on: cluster, when: 'avg(avg(vms.cpu_steal_ratio), 5m) > 15%', clear_for: 1m}
  - {name: slow-guests, on: cluster, when: 'count(vms where any(disks where read_latency_seconds > 200ms)) > 1'}
"""
OTHER = {"name": "other", "on": "vm", "when": "cpu_usage_ratio > 80%", "mode": "observe"}
PLAIN = """
virtpilot: 1
tests:
  - name: any
    hosts: {{h: {{}}}}
    guests: {{g: {{host: h, series: {told}}}}}
    expect: [{{signal: r, of: g, at: 5m, is: firing}}]
"""
_level = st.sampled_from(["0", "0.1", "0.25", "0.3333333", "0.9", "0.05", "0.2"])
_much = st.sampled_from(["", "x1", "x3", "x7", "x20"])
_item = st.one_of(
    st.builds("{}{}".format, _level, _much),
    st.builds("{}{}".format, _level, _much),
    st.builds("{}+0.01x{}".format, _level, st.integers(1, 9)),
    st.just("_"),
)
_series = st.lists(_item, min_size=1, max_size=5).map(" ".join)
_counter = st.lists(
    st.builds("{}+{}x{}".format, st.integers(0, 900), st.integers(0, 900), st.integers(1, 20)), min_size=1
)
_latency = st.lists(st.builds("0.{}{}".format, st.integers(0, 4), _much), min_size=1, max_size=5).map(" ".join)


@st.composite
def _tests(draw: st.DrawFn) -> str:
    lines = [
        "virtpilot: 1",
        "tests:",
        "  - name: any",
        f"    every: {draw(st.sampled_from(['10s', '30s', '1m', '5m']))}",
    ]
    lines += ["    hosts:"]
    lines += [f"      {name}: {{series: {{cpu_usage_ratio: {draw(_series)}}}}}" for name in ("h1", "h2")]
    lines += ["    guests:"]
    for name, host, tier in (("g1", "h1", "gold"), ("g2", "h1", "x"), ("g3", "h2", "gold")):
        told = [f"cpu_steal_ratio: {draw(_series)}", f"cpu_usage_ratio: {draw(_series)}"]
        told += [f"cgroup_io_read_bytes_total: {' '.join(draw(_counter))}"]
        lines += [f"      {name}:", f"        host: {host}", f"        tags: {{tier: {tier}, steal: '0.2'}}"]
        lines += [f"        series: {{{', '.join(told)}}}"]
        if draw(st.booleans()):
            lines += [f"        disks: {{vda: {{read_latency_seconds: {draw(_latency)}, write_latency_seconds: 0.2}},"]
            lines += [f"                vdb: {{read_latency_seconds: {draw(_latency)}}}}}"]
        if draw(st.booleans()):
            lines += ["        job: {operation: out, running_count: 0x3 1, throttle_ratio: 0 0.4x6 0}"]
    lines += ["    answers: [{to: set, of: g1, after: 5s, then: {cpu_steal_ratio: 0.01}}]"]
    lines += [f"    expect: [{{signal: plain, of: g1, at: {draw(st.integers(2, LONGEST_M))}m, is: firing}}]"]
    return "\n".join(lines)


def _load(folder: Path, rules: str, tests: str) -> tuple[RuleTest, RuleSet]:
    (folder / "any.yaml").write_text(rules)
    (folder / "any.test.yaml").write_text(tests)
    (file, loaded) = rule_tests.load_all([folder / "any.test.yaml"])[0]
    return file.tests[0], loaded


def _seen(coverage: Coverage) -> dict[str, list[tuple[str, int, int]]]:
    return {name: [(one.key, one.true, one.false) for one in own] for name, own in coverage.clauses.items()}


def _assert_alike(test: RuleTest, rules: RuleSet) -> None:
    # Looked at closely, each frame is stepped through.
    ahead, stepwise = Coverage(rules.rules), Coverage(rules.rules, closely=True)
    played = [rule_tests.Scene(test, rules).play(coverage).records for coverage in (ahead, stepwise)]
    assert played[0] == played[1]
    assert _seen(ahead) == _seen(stepwise)


@pytest.mark.parametrize("rules", [ALONE, ALONE + ASKING, ALONE + CLUSTER], ids=["alone", "asking", "cluster"])
def test_whatever_is_measured(rules: str, tmp_path: Path) -> None:
    @REPEATABLE
    @given(_tests())
    def hold(tests: str) -> None:
        _assert_alike(*_load(tmp_path, rules, tests))

    hold()


@pytest.mark.parametrize("steal", ["0.9 0.2x9", "0.2 0.9 0.2x9"])
def test_what_is_past_by_the_time_a_window_is_looked_at_counts_once(steal: str, tmp_path: Path) -> None:
    """Another rule changes with the first frame, before the window's is looked at."""
    rules = """
virtpilot: 1
rules:
  - {name: plain, on: vm, when: cpu_steal_ratio > 50%}
  - {name: past, on: vm, when: 'avg(cpu_steal_ratio, 3m) > 34%'}
"""
    tests = f"""
virtpilot: 1
tests:
  - name: any
    every: 30s
    hosts: {{h: {{}}}}
    guests: {{g: {{host: h, series: {{cpu_steal_ratio: {steal}}}}}}}
    expect: [{{signal: plain, of: g, at: 4m, is: firing}}]
"""
    _assert_alike(*_load(tmp_path, rules, tests))


@pytest.mark.parametrize("end", ["50s", "95s"])
def test_nobody_falls_silent_between_what_was_measured_last_and_the_end(end: str, tmp_path: Path) -> None:
    rules = """
virtpilot: 1
rules:
  - {name: plain, on: vm, when: cpu_steal_ratio > 50%, no_data: fire}
"""
    tests = f"""
virtpilot: 1
tests:
  - name: any
    every: 50s
    hosts: {{h: {{}}}}
    guests: {{g: {{host: h, series: {{cpu_steal_ratio: 0 0 0}}}}}}
    expect: [{{signal: plain, of: g, at: {end}, is: inactive}}]
"""
    _assert_alike(*_load(tmp_path, rules, tests))


class Case(NamedTuple):
    """A rule beside `other`, what is measured every 10 s, and when its signal changes to what."""

    keys: str
    steal: str
    changes: str
    usage: str = "10%x5 90%"


# Each is about one reason for which a signal changes in the midst of frames that are alike.
CHANGES: Final = {
    "it rises": Case("{}", "0x4 30%x3", "50s firing"),
    "for is over": Case("{for: 1m}", "0x4 30%x20", "50s pending, 110s firing"),
    "it falls before for is over": Case("{for: 2m}", "0x4 30%x5 0x9", "50s pending, 110s inactive"),
    "what is not known does not count": Case("{for: 1m}", "30%x2 _x2 30%x9", "0s pending, 60s firing"),
    "after a gap for begins again": Case("{for: 2m}", "30%x2 _x9 30%x20", "0s pending, 240s firing"),
    "it ends": Case("{}", "30%x6 0x9", "0s firing, 70s inactive"),
    "it ends only below": Case("{clear: x < 5%}", "30%x6 10%x6 0x9", "0s firing, 140s inactive"),
    "clear_for is over": Case("{clear_for: 1m}", "30%x6 0x12", "0s firing, 70s clearing, 130s inactive"),
    "it comes back while it ends": Case("{clear_for: 1m}", "30%x6 0x2 30%x9", "0s firing, 70s clearing, 100s firing"),
    "it is between the two while it ends": Case(
        "{clear: x < 5%, clear_for: 1m}", "30%x6 0x2 10%x2 0x9",
        "0s firing, 70s clearing, 100s firing, 130s clearing, 190s inactive",
    ),
    "it is not known while it ends": Case(
        "{clear_for: 1m}", "30%x6 0x2 _x9 0x9", "0s firing, 70s clearing, 250s inactive",
    ),
    "its time begins": Case("{during: '00:01-00:04'}", "30%x20", "60s firing, 240s inactive"),
    "its time ends": Case("{not_during: '00:01-00:04'}", "30%x20", "0s firing, 60s inactive, 240s firing"),
    "its time ends before for is over": Case(
        "{for: 2m, not_during: '00:01-00:04'}", "30%x20", "0s pending, 60s inactive, 240s pending",
    ),
    "its time ends while it ends": Case(
        "{clear_for: 2m, not_during: '00:01-00:04'}", "30%x2 0x20", "0s firing, 30s clearing, 60s inactive",
    ),
    "what is missing clears": Case("{no_data: clear}", "30%x6 _x9", "0s firing, 70s inactive, 160s firing"),
    "what is missing fires": Case("{no_data: fire}", "0x6 _x9", "70s firing, 160s inactive"),
    "a window fills": Case("{when: 'avg(x, 1m) >= 20%'}", "0x9 30%x20", "140s firing"),
    "another signal holds it back": Case("{unless: other}", "30%x9", "0s firing, 60s inactive"),
    "no other signal holds it back any more": Case("{unless: other}", "0x11 30%", "120s firing", "90%x5 10%"),
    "another signal has given leave": Case("{where: signals.other}", "0x11 30%", "120s firing"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(CHANGES))
def test_a_signal_changes_at_its_frame(name: str, tmp_path: Path) -> None:
    case = CHANGES[name]
    rule = {"name": "r", "on": "vm", "when": "x > 20%", "mode": "observe", **YAML(typ="safe").load(case.keys)}
    text = re.sub(r"\bx\b", "cpu_steal_ratio", json.dumps({"virtpilot": 1, "rules": [rule, OTHER]}))
    told = json.dumps({"cpu_steal_ratio": case.steal, "cpu_usage_ratio": case.usage})
    test, rules = _load(tmp_path, text, PLAIN.format(told=told))
    played = rule_tests.Scene(test, rules).play(Coverage(rules.rules))
    found = [
        f"{(one.at_ns - test.start_ns) // SECOND}s {one.state}"
        for one in played.records
        if isinstance(one, Signal) and one.rule == "r"
    ]
    assert ", ".join(found) == case.changes
    _assert_alike(test, rules)


LIBRARY: Final = [(test, rules) for _name, test, rules in shipped()]


class Ahead(NamedTuple):
    """A shipped test played as it is in earnest: its records, what they cover, and in how many steps."""

    records: Sequence[object]
    seen: dict[str, list[tuple[str, int, int]]]
    steps: int


@cache
def ahead(number: int) -> Ahead:
    """Play a test of the library, once for all who look at it."""
    test, rules = LIBRARY[number]
    steps = 0
    measure = Rehearsal.measure_all

    def watched(rehearsal: Rehearsal, told: Mapping[str, Sequence[Sample]]) -> None:
        nonlocal steps
        steps += 1
        measure(rehearsal, told)

    coverage = Coverage(rules.rules)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Rehearsal, "measure_all", watched)
        records = rule_tests.Scene(test, rules).play(coverage).records
    return Ahead(records, _seen(coverage), steps)


@pytest.mark.parametrize("number", range(len(LIBRARY)), ids=[test.name for test, _rules in LIBRARY])
def test_the_tests_of_the_shipped_rules(number: int) -> None:
    test, rules = LIBRARY[number]
    stepwise = Coverage(rules.rules, closely=True)
    assert rule_tests.Scene(test, rules).play(stepwise).records == ahead(number).records
    assert _seen(stepwise) == ahead(number).seen


def test_most_frames_are_left_out() -> None:
    frames = sum(test.end_ns // test.every_ns + 1 for test, _rules in LIBRARY)
    assert sum(ahead(number).steps for number in range(len(LIBRARY))) < frames / 5
