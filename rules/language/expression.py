"""Expressions: compiled conditions and formulas over whole columns.

A condition is evaluated for many subjects at once and in three values: true, false, or unknown where an input is
missing (Kleene's logic), so that missing data neither fires nor clears.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from virtpilot.fields import Unit
from virtpilot.model import Kind
from virtpilot.rules.language.compiler import Compiler
from virtpilot.rules.language.devices import Device
from virtpilot.rules.language.grammar import MAX_DEPTH, MAX_LENGTH, MAX_NODES, tree_of
from virtpilot.rules.language.syntax import ExpressionError
from virtpilot.rules.language.typed import Aggregate, Columns, Masks, Numbers, Part, Reads, Value, Window

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "MAX_DEPTH",
    "MAX_LENGTH",
    "MAX_NODES",
    "Aggregate",
    "Columns",
    "Condition",
    "ExpressionError",
    "Formula",
    "Masks",
    "Numbers",
    "RowValues",
    "Window",
    "condition",
    "formula",
    "tree_of",
]

RowValues = Mapping[str, float]


class Condition:
    """A compiled condition; `fields` names all that it reads as (measurement, field), `reads` tells in what way."""

    def __init__(self, text: str, on: Kind, reads: Reads, part: Part) -> None:
        self.text = text
        self.on = on
        self.reads = reads
        self.fields = frozenset(reads.every)
        self.part = part
        self.evaluate = part.truth

    def __repr__(self) -> str:
        return f"Condition({self.text!r})"


class Formula:
    """A compiled number for one subject, with `current` as its variable."""

    def __init__(
        self, text: str, on: Kind, fields: frozenset[tuple[str, str]], unit: Unit | None, value: Value
    ) -> None:
        self.text = text
        self.on = on
        self.fields = fields
        self.unit = unit
        self._value = value

    def value(self, row: RowValues, current: float) -> float | None:
        """Return the number for one subject's values; None where an input is missing."""
        result = float(self._value(_OneRow(row), float(current)))
        return result if math.isfinite(result) else None


class _OneRow:
    """A single subject's own values as columns of one row."""

    def __init__(self, row: RowValues) -> None:
        self._row = row

    def field(self, measurement: str, name: str) -> Numbers:
        key = name if measurement != "host" else f"host.{name}"
        return float(self._row.get(key, math.nan))  # type: ignore[return-value]  # a number serves as a column of one

    def tag(self, name: str) -> NDArray[np.object_]:
        raise ExpressionError(0, f"the tag {name} is no number")

    def single_tag(self, device: Device, name: str) -> NDArray[np.object_]:
        raise ExpressionError(0, f"the tag {name} of {device} is no number")

    def signal(self, rule: str, within_ns: int) -> Numbers:  # noqa: ARG002 - the protocol's
        raise ExpressionError(0, f"signals.{rule} is no number")

    def window(self, window: Window) -> Numbers:
        raise ExpressionError(0, f"{window.text} is not known of one row")

    def aggregate(self, aggregate: Aggregate) -> Numbers:
        raise ExpressionError(0, f"{aggregate.text} is not known of one row")


def condition(text: str, on: Kind) -> Condition:
    """Compile a condition about subjects of a kind; raises ExpressionError."""
    compiler = Compiler(text, on)
    part = compiler.part(tree_of(text))
    if part.kind != "truth":
        raise ExpressionError(0, "a condition is needed, such as `cpu_steal_ratio > 10%`, not a value")
    return Condition(text, on, compiler.reads, part)


def formula(text: str, on: Kind, unit: Unit = Unit.COUNT) -> Formula:
    """Compile a number that may use `current`, which counts in `unit`; raises ExpressionError."""
    compiler = Compiler(text, on, current=unit)
    part = compiler.part(tree_of(text))
    if part.kind != "number":
        raise ExpressionError(0, "a number is needed, such as `current * 2`")
    return Formula(text, on, frozenset(compiler.reads.every), part.unit, part.value)
