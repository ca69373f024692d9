"""What a window is without a look at its points is what a look would find; and it spares looks."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.rules_signals.reference import START_NS, ruleset
from tests.thoroughness import examples
from virtpilot.clock import seconds
from virtpilot.model import Kind, Sample
from virtpilot.rules.language.typed import Window
from virtpilot.rules.signals.evaluator import Evaluator
from virtpilot.rules.signals.table import Where
from virtpilot.rules.signals.windows import Track

GUESTS = ("a", "b", "c", "d")
FIELDS = ("cpu_steal_ratio", "cpu_usage_ratio")
TEXTS = [f"{name}({field}, {span}) > 0" for name in ("max", "min", "avg") for field in FIELDS for span in ("1m", "40m")]
RULES = ruleset(
    "virtpilot: 1\nrules:\n" + "".join(f"  - {{name: r{n}, on: vm, when: '{t}'}}\n" for n, t in enumerate(TEXTS))
)


def windows_of(evaluator: Evaluator) -> list[Window]:
    every = [window for track in evaluator.world.windows.about(Kind.VM) for own in track.values for window in own]
    return sorted(every, key=lambda window: window.text)


def guest(name: str, at_s: float, **fields: float) -> Sample:
    return Sample("vm", {"cluster": "c", "host": "h", "vm": name, "name": name}, dict(fields), START_NS + seconds(at_s))


def read(evaluator: Evaluator, rows: list[int]) -> dict[str, list[float]]:
    with np.errstate(all="ignore"):
        windows = evaluator.world.windows
        return {one.text: windows.value(one, np.array(rows)).tolist() for one in windows_of(evaluator)}


@settings(derandomize=True, deadline=None, max_examples=examples(20, least=12))
@given(st.integers(0, 2**32), st.sampled_from([10, 15, 100]), st.sampled_from([0.02, 0.3, 0.9]))
def test_what_is_certain_is_what_a_look_finds(seed: int, every_s: int, lacks: float) -> None:
    chance, evaluator, at_s = random.Random(seed), Evaluator(RULES), 0.0
    for number in range(80):
        at_s += every_s * chance.choice([1] * 29 + [10]) + chance.choice([0, 0, 0.01, -0.01])
        news = [
            guest(one, at_s, **{name: chance.choice([0.1, 1 / 3, 0.5, chance.random(), -0.0, 1e60]) for name in FIELDS
                                if chance.random() >= lacks}, memory_used_ratio=0.5)
            for one in GUESTS if chance.random() < 0.95
        ]  # fmt: skip
        evaluator.feed(news, f"m{number}")
        if chance.random() < 0.01:
            snapshot, evaluator = evaluator.snapshot(), Evaluator(RULES)
            evaluator.restore(snapshot)
        rows = [row for row in evaluator.world.tables[Kind.VM].row_of.values() if chance.random() < 0.7]
        if chance.random() < 0.5 and rows:
            found = read(evaluator, rows)
            for track in evaluator.world.windows.about(Kind.VM):
                track.stale[:, rows] = True
            assert str(read(evaluator, rows)) == str(found)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of each look at points, counted."""
    found: list[int] = []
    points = Track.look

    def look(self: Track, series: int, where: Where, times: NDArray[np.int64]) -> None:
        found.append(len(times))
        points(self, series, where, times)

    monkeypatch.setattr(Track, "look", look)
    return found


def test_who_was_the_greatest_spares_looks_while_it_is_in_the_window(looks: list[int]) -> None:
    evaluator = Evaluator(
        ruleset("virtpilot: 1\nrules:\n  - {name: r, on: vm, when: 'max(cpu_steal_ratio, 40m) > 95%'}\n")
    )
    found = []
    for number in range(600):
        evaluator.feed([guest("a", 10 * number, cpu_steal_ratio=0.9 if number == 200 else number % 7 / 10)], "m")
        ((value,),) = read(evaluator, [0]).values()
        found.append(value)
    assert found[300:440] == pytest.approx([0.9] * 140)
    assert found[-1] == pytest.approx(0.6)
    assert sum(looks[200:]) < 20 <= len(looks)


def test_where_there_is_no_point_nobody_looks_again(looks: list[int]) -> None:
    evaluator = Evaluator(
        ruleset("virtpilot: 1\nrules:\n  - {name: r, on: vm, when: 'avg(cpu_steal_ratio, 1m) > 95%'}\n")
    )
    for number in range(40):
        evaluator.feed([guest("a", 10 * number, cpu_usage_ratio=0.5)], "m")
        assert str(read(evaluator, [0])) == "{'avg(cpu_steal_ratio, 1m)': [nan]}"
    before = len(looks)
    assert before < 10
    for number in range(40, 50):
        evaluator.feed([guest("a", 10 * number, cpu_steal_ratio=0.5)], "m")
        read(evaluator, [0])
    assert len(looks) == before + 10
    assert read(evaluator, [0]) == {"avg(cpu_steal_ratio, 1m)": [0.5]}
