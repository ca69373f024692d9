"""What the gate leaves out fires nowhere, whatever the rule and the values; of one comparison it leaves out all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rules_signals.reference import FIRING, changes, host, ruleset, vm
from tests.thoroughness import examples
from virtpilot.model import Kind
from virtpilot.rules.language.devices import Device
from virtpilot.rules.language.expression import Aggregate, Numbers, Window, condition
from virtpilot.rules.signals.evaluator import Evaluator
from virtpilot.rules.signals.gate import Gate

FIELDS = ("cpu_steal_ratio", "cpu_usage_ratio", "host.cpu_usage_ratio")
HEAD = "virtpilot: 1\nrules:\n"


class Given:
    """Columns of given values; a window says what its field does."""

    def __init__(self, values: dict[str, list[float]]) -> None:
        self._values = {name: np.array(column, np.float64) for name, column in values.items()}

    def field(self, measurement: str, name: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        return self._values[name if measurement == "vm" else f"{measurement}.{name}"]

    def window(self, window: Window) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        return self._values["cpu_steal_ratio"]

    def least(self, measurement: str, names: tuple[str, ...]) -> Numbers:
        return np.array([min(self._known(measurement, name)) for name in names])

    def most(self, measurement: str, names: tuple[str, ...]) -> Numbers:
        return np.array([max(self._known(measurement, name)) for name in names])

    def _known(self, measurement: str, name: str) -> list[float]:
        return [one for one in self.field(measurement, name).tolist() if not np.isnan(one)] or [np.nan]

    def tag(self, name: str) -> np.ndarray[tuple[int], np.dtype[np.object_]]:
        return np.array(["a"] * len(self._values["cpu_steal_ratio"]), np.object_)

    def signal(self, rule: str, within_ns: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        raise AssertionError

    def single_tag(self, device: Device, name: str) -> np.ndarray[tuple[int], np.dtype[np.object_]]:
        raise AssertionError((device, name))

    def aggregate(self, aggregate: Aggregate) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        raise AssertionError


numbers = st.sampled_from([0, 10, 20, 50, 90])
values = st.lists(st.tuples(*[st.sampled_from([np.nan, 0.0, 0.1, 0.2, 0.5, 0.9, 1.0])] * len(FIELDS)), max_size=4)
terms = st.builds(
    lambda field, sign, number, turned: f"{number}% {sign} {field}" if turned else f"{field} {sign} {number}%",
    st.sampled_from([*FIELDS, "max(cpu_steal_ratio, 1m)"]),
    st.sampled_from(["<", "<=", ">", ">=", "==", "!="]),
    numbers,
    st.booleans(),
)
texts = st.recursive(
    terms | st.just('tags.tier == "a"') | st.just("cpu_steal_ratio > cpu_usage_ratio"),
    lambda inner: (
        st.builds(lambda sign, a, b: f"({a}) {sign} ({b})", st.sampled_from(["and", "or"]), inner, inner)
        | inner.map(lambda text: f"not ({text})")
    ),
    max_leaves=5,
)


@settings(derandomize=True, deadline=None, max_examples=examples(400))
@given(st.lists(texts, min_size=1, max_size=4), values)
def test_no_rule_fires_behind_a_closed_gate(whens: list[str], rows: list[tuple[float, ...]]) -> None:
    rules = ruleset(HEAD + "".join(f"  - {{name: r{n}, on: vm, when: '{when}'}}\n" for n, when in enumerate(whens)))
    columns = Given({name: [row[at] for row in rows] for at, name in enumerate(FIELDS)})
    for rule, may in zip(rules.rules, Gate(rules.rules).open(columns), strict=True):
        fires, _calm = rule.when.evaluate(columns)
        assert may or not (fires.any() and rows), rule.when.text


@settings(derandomize=True, deadline=None, max_examples=examples(400))
@given(terms.filter(lambda text: not any(one in text for one in ("==", "!=", "max("))), values)
def test_of_a_single_comparison_of_a_field_it_knows_exactly(when: str, rows: list[tuple[float, ...]]) -> None:
    rules = ruleset(HEAD + f"  - {{name: r, on: vm, when: '{when}'}}\n")
    columns = Given({name: [row[at] for row in rows] for at, name in enumerate(FIELDS)})
    fires, _calm = condition(when, Kind.VM).evaluate(columns)
    assert Gate(rules.rules).open(columns).tolist() == [bool(fires.any()) and bool(rows)]


@pytest.mark.parametrize("no_data", ["fire", "hold", "clear"])
def test_a_rule_that_fires_without_data_does_so_though_nothing_reaches_its_number(no_data: str) -> None:
    rules = ruleset(HEAD + f"  - {{name: r, on: vm, when: cpu_steal_ratio > 50%, no_data: {no_data}}}\n")
    evaluator = Evaluator(rules)
    found = changes(evaluator.feed([host("h1", 0, 0.1), vm("g", 0, None, 0.5)], "m"))
    assert [change[3] for change in found] == ([FIRING] if no_data == "fire" else [])


def test_what_fires_is_looked_at_until_it_has_cleared() -> None:
    evaluator = Evaluator(ruleset(HEAD + "  - {name: r, on: vm, when: cpu_steal_ratio > 50%, clear_for: 15s}\n"))
    found = [
        change[3].value
        for time_s, level in ((0, 0.9), (10, 0.1), (20, 0.1), (30, 0.1), (40, 0.1), (50, 0.9))
        for change in changes(evaluator.feed([vm("g", time_s, level)], "m"))
    ]
    assert found == ["firing", "clearing", "inactive", "firing"]
