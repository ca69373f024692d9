"""A window is never beyond its bound, whatever came and whenever it was worked out; a bound can close a comparison."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rules_signals.reference import START_NS, ruleset
from tests.thoroughness import examples
from virtpilot.clock import SECOND, seconds
from virtpilot.model import Kind, Sample
from virtpilot.rules.language.records import RuleSet
from virtpilot.rules.language.typed import Window
from virtpilot.rules.signals.evaluator import Evaluator
from virtpilot.rules.signals.scout import asked

GUESTS = ("a", "b", "c")
GAUGE = ("avg", "min", "max", "p90")
TEXTS = [
    *(f"{one}(cpu_steal_ratio, {span}) {sign} 50%" for one in GAUGE for span in ("1m", "40m") for sign in "<>"),
    *(f"flaps({of}, {span}) > 3" for of in ("state_code", "cpu_steal_ratio > 50%") for span in ("1m", "40m")),
    "avg(cpu_steal_ratio > 50%, 1m) > 50%",
    *(f"forecast(cpu_steal_ratio, 5m, {span}) {sign} 50%" for span in ("1m", "40m") for sign in "<>"),
    *(f"{one}(major_faults_total, {span}) > 5" for one in ("rate", "delta") for span in ("1m", "40m")),
]


def rules_of(texts: list[str]) -> RuleSet:
    return ruleset(
        "virtpilot: 1\nrules:\n"
        + "".join(f"  - {{name: r{at}, on: vm, when: '{text}'}}\n" for at, text in enumerate(texts))
    )


def sample(chance: random.Random, guest: str, counter: dict[str, int], time_ns: int) -> Sample:
    """Return what a guest says: now and then it lacks a field, a counter stands still, grows or begins again."""
    counter[guest] = max(counter[guest] + chance.choice([0, 0, 1, 7, -(10**6), -3]), chance.choice([0] * 9 + [-2]))
    fields: dict[str, int | float] = {
        "cpu_steal_ratio": chance.choice([0.0, 0.1, 1 / 3, 0.5000001, 0.9]),
        "state_code": chance.choice([1, 1, 1, 5]),
        "major_faults_total": counter[guest],
    }
    for name in [name for name in fields if chance.random() < 0.1]:
        del fields[name]
    return Sample("vm", {"cluster": "c", "host": "h1", "vm": guest, "name": guest}, fields, time_ns)


def both(evaluator: Evaluator, window: Window, row: int, *, upper: bool) -> tuple[float, float]:
    """Return a window's bound, and its value."""
    windows, rows = evaluator.world.windows, np.array([row])
    with np.errstate(all="ignore"):
        return float(windows.bound(window, rows, upper=upper)[0]), float(windows.value(window, rows)[0])


@settings(derandomize=True, deadline=None, max_examples=examples(30, least=10))
@given(st.integers(0, 2**32), st.sampled_from([10, 15, 100]), st.sampled_from("<>"))
def test_no_window_is_beyond_its_bound(seed: int, every_s: int, sign: str) -> None:
    # Of one sign alone: what the others' rules look at would renew the bounds.
    rules = rules_of([text for text in TEXTS if f") {sign}" in text])
    chance, evaluator, counter = random.Random(seed), Evaluator(rules), dict.fromkeys(GUESTS, 100)
    bounded = sorted({(one.key, upper): (one, upper) for rule in rules.rules for one, upper in asked(rule)}.items())
    time_ns = START_NS
    for _ in range(60):
        time_ns += seconds(every_s) * chance.choice([1] * 19 + [30])
        evaluator.feed([sample(chance, one, counter, time_ns) for one in GUESTS if chance.random() < 0.9], "m")
        if chance.random() < 0.02:
            evaluator.move(seconds(1000))
            time_ns += 1000 * SECOND
        for _key, (window, upper) in bounded:
            for row in evaluator.world.tables[Kind.VM].row_of.values():
                if chance.random() < 0.2:
                    bound, found = both(evaluator, window, row, upper=upper)
                    assert not (found > bound if upper else found < bound), (window.text, upper)


@pytest.mark.parametrize("text", [text for text in TEXTS if "<" not in text or "max" in text])
def test_of_what_stands_still_a_bound_tells_that_nothing_is_reached(text: str) -> None:
    evaluator = Evaluator(rules_of([text]))
    (rule,) = evaluator.world.bank._scouts.values()
    assert rule is not None
    steal = 0.9 if "<" in text else 0.1
    fields = {"cpu_steal_ratio": steal, "state_code": 1, "major_faults_total": 7}
    for number in range(400):
        at_ns = START_NS + seconds(10 * number)
        evaluator.feed([Sample("vm", {"cluster": "c", "host": "h1", "vm": "a", "name": "a"}, fields, at_ns)], "m")
    with np.errstate(all="ignore"):
        assert not rule(evaluator.world.columns(Kind.VM, np.array([0]))).any()
    # Nothing was worked out for it: the window is still as it was before the last sample.
    assert all(track.stale.any() for track in evaluator.world.windows._tracks.values())


def test_disks_that_stand_still_are_not_looked_at_closely() -> None:
    evaluator = Evaluator(rules_of(["any(disks where delta(errors_total, 10m) > 0)"]))
    (rule,) = evaluator.world.bank._scouts.values()
    (track,) = evaluator.world.windows._tracks.values()
    tags, seen = {"cluster": "c", "host": "h1", "vm": "a", "name": "a"}, []
    for number in range(80):
        at_ns = START_NS + seconds(10 * number)
        disk = Sample("vm_disk", {**tags, "disk": "vda"}, {"errors_total": 5 if number < 70 else 6}, at_ns)
        signals = evaluator.feed([disk, Sample("vm", tags, {"state_code": 1}, at_ns)], "m")
        seen += [(number, one.state) for one in signals]
        if number == 69:
            with np.errstate(all="ignore"):
                assert not rule(evaluator.world.columns(Kind.VM, np.array([0]))).any()
            assert track.stale.any()
    assert seen == [(70, "firing")]


def test_forecasts_of_as_many_messages_as_wait_for_one_another_are_bounded_together() -> None:
    rules = rules_of(["forecast(cpu_steal_ratio, 5m, 10m) > 90%"])
    chance, evaluator = random.Random(3), Evaluator(rules)
    ((window, upper),) = asked(rules.rules[0])
    hosts = {f"h{host:02}": [f"h{host:02}-{guest}" for guest in range(8)] for host in range(16)}
    for number in range(40):
        for place, (host, guests) in enumerate(hosts.items()):
            at_ns = START_NS + seconds(10 * number) + seconds(0.1) * place
            tags = {"cluster": "c", "host": host}
            fields = {one: {"cpu_steal_ratio": chance.uniform(0.1, 0.2)} for one in guests if chance.random() < 0.999}
            evaluator.feed([Sample("vm", {**tags, "vm": one, "name": one}, fields[one], at_ns) for one in fields], "m")
    windows, rows = evaluator.world.windows, np.arange(16 * 8)
    (track,) = windows._tracks.values()
    for one in track.bounds.values():
        one.forget(rows)  # as after 16 messages that were taken at once
    with np.errstate(all="ignore"):
        bound, found = windows.bound(window, slice(0, 16 * 8), upper=upper), windows.value(window, rows)
    known = np.isfinite(bound)
    assert np.isfinite(found).all()
    # A row whose past is like no other's of its host may have none.
    assert np.count_nonzero(known) > 100
    assert (found[known] <= bound[known]).all()
    assert np.allclose(found[known], bound[known], rtol=1e-4)
