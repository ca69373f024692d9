"""Where a bound decides a comparison it is told as a look at all points would tell it."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rules_signals.reference import START_NS, ruleset
from tests.thoroughness import examples
from virtpilot.clock import seconds
from virtpilot.model import Kind, Sample
from virtpilot.rules.language.expression import condition
from virtpilot.rules.signals.columns import RowColumns, masks
from virtpilot.rules.signals.evaluator import Evaluator
from virtpilot.rules.signals.sure import told

GUESTS = [f"g{number}" for number in range(12)]
SIGNS = ("<", "<=", ">", ">=")
TEXTS = [f"forecast(memory_usable_bytes, 10m, {span}) {sign} 100" for span in ("2m", "30m") for sign in SIGNS]
RULES = ruleset(
    "virtpilot: 1\nrules:\n" + "".join(f"  - {{name: r{n}, on: vm, when: '{t}'}}\n" for n, t in enumerate(TEXTS))
)
CONDITIONS = [
    condition(text, Kind.VM)
    for text in (*TEXTS, "100 > forecast(memory_usable_bytes, 10m, 2m)", "memory_usable_bytes > 50")
]


def fed(evaluator: Evaluator, at_s: float, values: dict[str, float | None]) -> None:
    time_ns = START_NS + seconds(at_s)
    samples = [
        Sample("vm", {"cluster": "c", "host": "h", "vm": name, "name": name},
               {"state_code": 1.0} | ({} if value is None else {"memory_usable_bytes": value}), time_ns)
        for name, value in values.items()
    ]  # fmt: skip
    evaluator.feed(samples, f"m{at_s}")


def columns_of(evaluator: Evaluator) -> RowColumns:
    return evaluator.world.columns(Kind.VM, evaluator.world.tables[Kind.VM].taken())


@settings(derandomize=True, deadline=None, max_examples=examples(25, least=15))
@given(st.integers(0, 2**32), st.sampled_from([5, 30]))
def test_it_is_what_a_look_tells(seed: int, every_s: int) -> None:
    """Of guests whose forecasts are far from the number, close to it, on it, or not known."""
    chance, evaluator, at_s = random.Random(seed), Evaluator(RULES), 0.0
    steady = {name: chance.choice([100.0, 100.0000001, 99.9, 5.0, 4000.0]) for name in GUESTS}
    for _ in range(40):
        at_s += every_s * chance.choice([1] * 19 + [12])
        alike = chance.random() < 0.8
        fed(evaluator, at_s, {
            name: chance.choice([steady[name]] * 8 + [chance.random() * 300, None if chance.random() < 0.3 else 100.0])
            for name in GUESTS if alike or chance.random() < 0.8
        })  # fmt: skip
        with np.errstate(all="ignore"):
            if chance.random() < 0.3:
                asked = chance.choice(CONDITIONS)
                columns = columns_of(evaluator)
                count = len(evaluator.world.tables[Kind.VM].taken())
                found = told(evaluator.world, asked, columns, count)
                expected = masks(asked, columns_of(evaluator), count)
                assert [one.tolist() for one in found] == [one.tolist() for one in expected], asked.text


@pytest.mark.parametrize("text", TEXTS)
def test_what_is_far_is_not_looked_at(text: str) -> None:
    evaluator, far = Evaluator(RULES), dict[str, float | None](zip(GUESTS, [5.0, 5e6] * 6, strict=True))
    for number in range(200):
        fed(evaluator, 10.0 * number, far)
    asked = condition(text, Kind.VM)
    ((window, track),) = [
        (one, track) for track in evaluator.world.windows.about(Kind.VM)
        for own in track.values for one in own if one.text in asked.text
    ]  # fmt: skip
    place = track.place(window)
    track.stale[place, :] = True
    with np.errstate(all="ignore"):
        true, false = told(evaluator.world, asked, columns_of(evaluator), len(GUESTS))
    assert (true ^ false).all()
    assert true.tolist() == [("<" in text) == (value == 5.0) for value in far.values()]
    assert track.stale[place, : len(GUESTS)].any(), "some need no look"
