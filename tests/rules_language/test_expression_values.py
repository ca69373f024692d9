"""What expressions mean: units, missing inputs, and a direct interpreter beside the compiled columns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.thoroughness import examples
from virtpilot.model import Kind
from virtpilot.rules.language.devices import Device
from virtpilot.rules.language.expression import Aggregate, Numbers, Window, condition, formula

REPEATABLE = settings(derandomize=True, deadline=None, max_examples=examples(300))
FIELDS = ["cpu_usage_ratio", "cpu_steal_ratio", "memory_used_ratio", "host.cpu_usage_ratio"]
TAGS = ["tier", "rack-row", "name"]
Row = Mapping[str, float | str]
# ("or", a, b), (">", a, b), ("+", a, b), ("field", name), ("number", text, value) …
Tree = tuple[Any, ...]


class Rows:
    """The columns of some rows, straight from dicts."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows

    def field(self, measurement: str, name: str) -> Numbers:
        key = f"host.{name}" if measurement == "host" else name
        return np.array([row.get(key, math.nan) for row in self.rows], np.float64)

    def tag(self, name: str) -> NDArray[np.object_]:
        return np.array([row.get(f"tags.{name}", "") for row in self.rows], np.object_)

    def signal(self, rule: str, within_ns: int) -> Numbers:
        raise AssertionError(rule, within_ns)

    def window(self, window: Window) -> Numbers:
        raise AssertionError(window.text)

    def single_tag(self, device: Device, name: str) -> np.ndarray[tuple[int], np.dtype[np.object_]]:
        raise AssertionError((device, name))

    def aggregate(self, aggregate: Aggregate) -> Numbers:
        raise AssertionError(aggregate.text)


def evaluate(text: str, row: Row) -> bool | None:
    true, false = condition(text, Kind.VM).evaluate(Rows([row]))
    assert not (true & false).any()
    return True if true[0] else False if false[0] else None


_numbers = st.one_of(
    st.integers(0, 99).map(lambda n: ("number", f"{n}%", n / 100)),
    st.sampled_from([("number", "0.5", 0.5), ("number", "1", 1.0), ("number", "0", 0.0)]),
    st.sampled_from(FIELDS).map(lambda name: ("field", name)),
)
_values: st.SearchStrategy[Tree] = st.recursive(
    _numbers,
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(["+", "-", "*", "/"]), inner, inner), st.tuples(st.just("neg"), inner)
    ),
    max_leaves=4,
)
_leaves: st.SearchStrategy[Tree] = st.one_of(
    st.tuples(st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), _values, _values),
    st.tuples(st.sampled_from(["same", "other"]), st.sampled_from(TAGS), st.sampled_from(["", "gold", "and"])),
)
_truths: st.SearchStrategy[Tree] = st.recursive(
    _leaves,
    lambda inner: st.one_of(st.tuples(st.sampled_from(["and", "or"]), inner, inner), st.tuples(st.just("not"), inner)),
    max_leaves=5,
)
_rows: st.SearchStrategy[Row] = st.fixed_dictionaries(
    {},
    optional={
        **{name: st.sampled_from([0.0, 0.25, 0.5, 0.99, 1.0]) for name in FIELDS},
        **{f"tags.{name}": st.sampled_from(["gold", "and", "x"]) for name in TAGS},
    },
)


def written(tree: Tree) -> str:
    match tree:
        case ("number", text, _):
            return str(text)
        case ("field", name):
            return str(name)
        case ("same" | "other" as kind, tag, text):
            return f'tags.{tag} {"==" if kind == "same" else "!="} "{text}"'
        case ("neg", inner):
            return f"-({written(inner)})"
        case ("not", inner):
            return f"not ({written(inner)})"
        case (sign, left, right):
            return f"({written(left)}) {sign} ({written(right)})"
    raise AssertionError(tree)


def number(tree: Tree, row: Row) -> float | None:
    """None where an input is missing or something is divided by zero."""
    match tree:
        case ("number", _, value):
            return float(value)
        case ("field", name):
            found = row.get(name)
            return found if isinstance(found, float) else None
        case ("neg", inner):
            value = number(inner, row)
            return None if value is None else -value
        case (sign, left, right):
            a, b = number(left, row), number(right, row)
            if a is None or b is None or (sign == "/" and b == 0):
                return None
            return a + b if sign == "+" else a - b if sign == "-" else a * b if sign == "*" else a / b
    raise AssertionError(tree)


def truth(tree: Tree, row: Row) -> bool | None:
    """Kleene's logic, as a table."""
    match tree:
        case ("not", inner):
            value = truth(inner, row)
            return None if value is None else not value
        case ("and" | "or" as word, left, right):
            found = [truth(left, row), truth(right, row)]
            decisive = word == "or"
            return decisive if decisive in found else None if None in found else not decisive
        case ("same" | "other" as kind, tag, text):
            return (row.get(f"tags.{tag}", "") == text) is (kind == "same")
        case (sign, left, right):
            a, b = number(left, row), number(right, row)
            if a is None or b is None:
                return None
            signs = {"<": a < b, "<=": a <= b, ">": a > b, ">=": a >= b, "==": a == b, "!=": a != b}
            return signs[sign]
    raise AssertionError(tree)


@REPEATABLE
@given(_truths, st.lists(_rows, min_size=1, max_size=8))
def test_columns_say_what_a_direct_interpreter_says(tree: Tree, rows: list[Row]) -> None:
    with np.errstate(all="ignore"):
        true, false = condition(written(tree), Kind.VM).evaluate(Rows(rows))
    true, false = np.broadcast_to(true, len(rows)), np.broadcast_to(false, len(rows))
    for at, row in enumerate(rows):
        found = True if true[at] else False if false[at] else None
        assert found is truth(tree, row), written(tree)


@REPEATABLE
@given(_values, _rows, st.integers(2, 4096))
def test_a_formula_says_what_a_direct_interpreter_says(tree: Tree, row: Row, current: int) -> None:
    compiled = formula(f"current * ({written(tree)})", Kind.VM)
    value = number(tree, row)
    numbers = {name: found for name, found in row.items() if isinstance(found, float)}
    assert compiled.value(numbers, float(current)) == (None if value is None else current * value)


@pytest.mark.parametrize(
    ("text", "row", "expected"),
    [
        ("cpu_steal_ratio > 10%", {"cpu_steal_ratio": 0.1}, False),
        ("cpu_steal_ratio >= 10%", {"cpu_steal_ratio": 0.1}, True),
        ("cpu_steal_ratio > 10%", {}, None),
        ("cpu_steal_ratio > 10%", {"cpu_steal_ratio": math.nan}, None),
        ("not cpu_steal_ratio > 10%", {}, None),
        ("cpu_steal_ratio > 10% or cpu_usage_ratio > 10%", {"cpu_usage_ratio": 0.5}, True),
        ("cpu_steal_ratio > 10% and cpu_usage_ratio > 10%", {"cpu_usage_ratio": 0.05}, False),
        ("cpu_steal_ratio > 10% and cpu_usage_ratio > 10%", {"cpu_usage_ratio": 0.5}, None),
        ("memory_rss_bytes / memory_max_bytes > 1", {"memory_rss_bytes": 1.0, "memory_max_bytes": 0.0}, None),
        ("1 / (memory_rss_bytes / memory_max_bytes) < 1", {"memory_rss_bytes": 1.0, "memory_max_bytes": 0.0}, None),
        ("1 - cpu_usage_ratio - 10% < 50%", {"cpu_usage_ratio": 0.45}, True),
        ("memory_rss_bytes > 2KiB + 1kB", {"memory_rss_bytes": 3048.0}, False),
        ("memory_rss_bytes > 2KiB + 1kB", {"memory_rss_bytes": 3049.0}, True),
        ("cpu_time_seconds_total > 1m30s", {"cpu_time_seconds_total": 91.0}, "mistake"),
        ("cpu_time_seconds_total > 1.5m", {"cpu_time_seconds_total": 91.0}, True),
        ('tags.tier != "batch" and cpu_usage_ratio > 0', {"cpu_usage_ratio": 1.0}, True),
        ("tags.tier == tags.rack-row and cpu_usage_ratio > 0", {"cpu_usage_ratio": 1.0}, True),
        ("cpu_usage_ratio>10%and(cpu_usage_ratio<20%)", {"cpu_usage_ratio": 0.15}, "mistake"),
        ("cpu_usage_ratio>10% and(cpu_usage_ratio<20%)", {"cpu_usage_ratio": 0.15}, True),
    ],
)
def test_values(text: str, row: Row, expected: bool | str | None) -> None:
    if expected == "mistake":
        with pytest.raises(Exception, match="not a number"):
            condition(text, Kind.VM)
    else:
        with np.errstate(all="ignore"):
            assert evaluate(text, row) is expected


def test_a_wide_condition_is_evaluated_without_exhausting_the_stack() -> None:
    wide = " + ".join(["cpu_usage_ratio"] * 90) + " > 1"
    assert evaluate(wide, {"cpu_usage_ratio": 0.5}) is True
    deep = "not " * 48 + "cpu_usage_ratio > 10%"
    assert evaluate(deep, {"cpu_usage_ratio": 0.5}) is True
