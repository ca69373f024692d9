"""Warnings of `virtpilot rules check`: what is hardly meant, and nothing that may be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.replay.recorded import host, written
from virtpilot.model import Kind
from virtpilot.pipeline.chatter import chatter
from virtpilot.pipeline.rulebook import LIBRARY
from virtpilot.rules.language import load
from virtpilot.rules.language.expression import condition
from virtpilot.rules.language.load import load_placed
from virtpilot.rules.language.reach import possible
from virtpilot.rules.testing.lint import lint

HERE = Path(__file__).parent / "lint"
GRID = np.linspace(0.0, 1.0, 21)

number = st.integers(0, 10).map(lambda tenth: f"{tenth * 10}%")
term = st.sampled_from(["cpu_usage_ratio", "cpu_steal_ratio"])
sign = st.sampled_from(["<", "<=", ">", ">=", "==", "!="])
compared = st.one_of(st.tuples(term, sign, number), st.tuples(number, sign, term)).map(" ".join)
texts = st.recursive(
    compared,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(lambda parts: f"({' '.join(parts)})"),
        inner.map(lambda one: f"not ({one})"),
    ),
    max_leaves=6,
)


class Grid:
    """Every pair of values of two fields."""

    def __init__(self) -> None:
        self._usage, self._steal = (axis.ravel() for axis in np.meshgrid(GRID, GRID))

    def field(self, measurement: str, name: str) -> NDArray[np.float64]:
        assert measurement == "vm"
        return self._usage if name == "cpu_usage_ratio" else self._steal


@settings(deadline=None)
@given(texts)
def test_what_can_hold_is_never_called_impossible(text: str) -> None:
    found = condition(text, Kind.VM)
    true, false = found.evaluate(Grid())  # type: ignore[arg-type]  # fields are all that these conditions read
    if true.any():
        assert possible(found)
    if false.any():
        assert possible(but=found)


@settings(deadline=None)
@given(st.lists(st.tuples(sign.filter(lambda one: one != "!="), number), min_size=1, max_size=4))
def test_one_field_between_bounds_is_judged_exactly(bounds: list[tuple[str, str]]) -> None:
    text = " and ".join(f"cpu_usage_ratio {sign} {number}" for sign, number in bounds)
    found = condition(text, Kind.VM)
    finer = np.linspace(0.0, 2.0, 2001)

    class Line:
        def field(self, measurement: str, name: str) -> NDArray[np.float64]:
            return np.round(finer, 6)

    true, _false = found.evaluate(Line())  # type: ignore[arg-type]
    assert possible(found) == bool(true.any())


@pytest.mark.parametrize(
    ("text", "can"),
    [
        ('tags.a == "x" and tags.a == "y"', False),
        ('tags.a == "x" and tags.b == "y"', True),
        ('tags.a != "x" and tags.a == "x"', True),
        ("avg(cpu_steal_ratio, 1m) > 20% and avg(cpu_steal_ratio,1m) < 10%", False),
        ("avg(cpu_steal_ratio, 1m) > 20% and avg(cpu_steal_ratio, 5m) < 10%", True),
        ("cpu_steal_ratio > host.cpu_usage_ratio and cpu_steal_ratio < host.cpu_usage_ratio", True),
        ("slope(cpu_usage_ratio, 5m) < -1", True),
    ],
)
def test_terms_are_told_apart(text: str, can: bool) -> None:
    assert possible(condition(text, Kind.VM)) is can


@pytest.mark.parametrize("name", ["hardly-meant", "counter"])
def test_each_warning_stands_at_its_rule(name: str) -> None:
    file = HERE / f"{name}.yaml"
    told = "".join(f"{warning}\n" for warning in lint(*load_placed([file]), [file])).replace(f"{HERE}/", "")
    assert told == file.with_suffix(".txt").read_text()


def test_the_shipped_rules_leave_nothing_to_warn_of() -> None:
    assert list(map(str, lint(*load_placed([LIBRARY]), [LIBRARY]))) == []


def test_thresholds_that_chatter_on_a_history_are_found(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(
        "virtpilot: 1\nrules:\n"
        "  - {name: nervous, on: host, when: cpu_usage_ratio > 50%}\n"
        "  - {name: patient, on: host, when: cpu_usage_ratio > 50%, clear: cpu_usage_ratio < 45%}\n"
    )
    wobble = [host("h1", at_s, 0.51 if at_s // 30 % 2 else 0.48) for at_s in range(0, 600, 10)]
    history = written(tmp_path / "history.lp", wobble)
    ((rule, told),) = chatter(load([file]), str(history))
    assert rule == "nervous"
    assert told.startswith("fired 10 times within an hour on h1 in this history")


@pytest.mark.parametrize(
    "file", sorted((HERE.parents[1] / "rules_language" / "good").glob("*.yaml")), ids=lambda f: f.stem
)
def test_whatever_the_language_has_is_looked_at_and_placed(file: Path) -> None:
    """Rules of templates, groups and included files too."""
    ruleset, places = load_placed([file])
    warnings = lint(ruleset, places, [file])
    assert all(warning.line > 0 and warning.file for warning in warnings)
    untested = {warning.message.split(": ")[1] for warning in warnings if "no test expects" in warning.message}
    assert untested == places.keys()
