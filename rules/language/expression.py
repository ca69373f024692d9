"""Expressions: a small grammar, a unit-checked tree, and closures over whole columns.

A condition is evaluated for many subjects at once and in three values: true, false, or unknown where an input is
missing (Kleene's logic), so that missing data neither fires nor clears.
"""

from __future__ import annotations

import difflib
import operator
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol, cast

import lark
import numpy as np
from numpy.typing import NDArray

from virtpilot.fields import FIELDS, Unit, names
from virtpilot.model import Kind
from virtpilot.rules.language.units import QUANTITY, Quantity, quantity

Numbers = NDArray[np.float64]
Masks = tuple[NDArray[np.bool_], NDArray[np.bool_]]
RowValues = Mapping[str, float]

MAX_LENGTH: Final = 2_000
MAX_NODES: Final = 200

_GRAMMAR: Final = rf"""
?start: either
?either: both ("or" both)*
?both: negated ("and" negated)*
?negated: "not" negated -> negation
        | comparison
?comparison: sum [COMPARE sum]
?sum: product (ADD product)*
?product: signed (MULTIPLY signed)*
?signed: "-" signed -> minus
       | atom
?atom: QUANTITY -> quantity
     | STRING -> text
     | "current" -> current
     | "host" "." NAME -> host_field
     | "tags" "." NAME -> tag
     | NAME -> field
     | "(" either ")"
COMPARE: "<=" | ">=" | "==" | "!=" | "<" | ">"
ADD: "+" | "-"
MULTIPLY: "*" | "/"
NAME: /(?!(?:and|or|not|current|host|tags)\b)[A-Za-z_][A-Za-z0-9_]*/
STRING: /"[^"\\\n]*"/
QUANTITY: /{QUANTITY}/
%import common.WS
%ignore WS
"""
_PARSER: Final = lark.Lark(_GRAMMAR, parser="lalr", propagate_positions=True, maybe_placeholders=False)

_COMPARE: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq, "!=": operator.ne,
}  # fmt: skip


_ARITHMETIC: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": np.divide,
}  # fmt: skip


class ExpressionError(Exception):
    """A mistake in an expression; `column` counts from 0 within its text."""

    def __init__(self, column: int, message: str) -> None:
        self.column = column
        self.message = message
        super().__init__(message)


class Columns(Protocol):
    """The inputs of many subjects: one row each."""

    def field(self, measurement: str, name: str) -> Numbers:
        """Return a field of each subject, or of each subject's host; NaN where it is missing."""

    def tag(self, name: str) -> NDArray[np.object_]:
        """Return a tag of each subject, "" where it has none."""


_Value = Callable[[Columns, float], Any]
_Truth = Callable[[Columns], Masks]


class _Node:
    """A typed part of an expression: a number with a unit, a text, or a truth."""

    def __init__(self, kind: str, unit: Unit | None, value: _Value | None = None, truth: _Truth | None = None) -> None:
        self.kind = kind
        self.unit = unit
        self.value = cast("_Value", value)
        self.truth = cast("_Truth", truth)
        self.literal: Quantity | None = None


class Condition:
    """A compiled condition; `fields` names what it reads as (measurement, field)."""

    def __init__(self, text: str, on: Kind, fields: frozenset[tuple[str, str]], truth: _Truth) -> None:
        self.text = text
        self.on = on
        self.fields = fields
        self.evaluate = truth

    def __repr__(self) -> str:
        return f"Condition({self.text!r})"


class Formula:
    """A compiled number for one subject, with `current` as its variable."""

    def __init__(self, text: str, on: Kind, fields: frozenset[tuple[str, str]], value: _Value) -> None:
        self.text = text
        self.on = on
        self.fields = fields
        self._value = value

    def value(self, row: RowValues, current: float) -> float | None:
        """Return the number for one subject's values; None where an input is missing."""
        with np.errstate(all="ignore"):
            result = float(self._value(_OneRow(row), current))
        return result if np.isfinite(result) else None


class _OneRow:
    """A single subject's own values as columns of one row."""

    def __init__(self, row: RowValues) -> None:
        self._row = row

    def field(self, measurement: str, name: str) -> Numbers:
        key = name if measurement != "host" else f"host.{name}"
        return np.float64(self._row.get(key, np.nan))  # type: ignore[return-value]  # a scalar serves as a column of one

    def tag(self, name: str) -> NDArray[np.object_]:
        raise ExpressionError(0, f"the tag {name} is no number")


def condition(text: str, on: Kind) -> Condition:
    """Compile a condition about subjects of a kind; raises ExpressionError."""
    node, fields = _compile(text, on, allow_current=False)
    if node.kind != "truth":
        raise ExpressionError(0, "a condition is needed, such as `cpu_steal_ratio > 10%`, not a value")
    return Condition(text, on, fields, node.truth)


def formula(text: str, on: Kind) -> Formula:
    """Compile a number that may use `current`; raises ExpressionError."""
    node, fields = _compile(text, on, allow_current=True)
    if node.kind != "number":
        raise ExpressionError(0, "a number is needed, such as `current * 2`")
    return Formula(text, on, fields, node.value)


def _compile(text: str, on: Kind, *, allow_current: bool) -> tuple[_Node, frozenset[tuple[str, str]]]:
    if len(text) > MAX_LENGTH:
        raise ExpressionError(0, f"longer than {MAX_LENGTH} characters")
    try:
        tree = _PARSER.parse(text)
    except lark.UnexpectedInput as error:
        raise ExpressionError(*_syntax(error, text)) from None
    if sum(1 for _ in tree.iter_subtrees()) > MAX_NODES:
        raise ExpressionError(0, f"more than {MAX_NODES} parts")
    compiler = _Compiler(on, allow_current=allow_current)
    return compiler.node(tree), frozenset(compiler.fields)


def _syntax(error: lark.UnexpectedInput, text: str) -> tuple[int, str]:
    if isinstance(error, lark.UnexpectedCharacters):
        return error.pos_in_stream or 0, f"unexpected character {text[error.pos_in_stream or 0]!r}"
    token = getattr(error, "token", None)
    if token is None or token.type == "$END":
        return len(text), "the expression ends too early"
    if token.type == "LPAR":
        return token.start_pos, "functions are not known here"
    return token.start_pos, f"unexpected {str(token)!r}"


class _Compiler:
    """Turns a tree into nodes, checking units; collects the fields that are read."""

    def __init__(self, on: Kind, *, allow_current: bool) -> None:
        self.fields: set[tuple[str, str]] = set()
        self._on = on
        self._allow_current = allow_current

    def node(self, tree: lark.Tree[lark.Token]) -> _Node:
        made: _Node = getattr(self, f"_{tree.data}")(tree)
        return made

    def _nodes(self, tree: lark.Tree[lark.Token]) -> list[_Node]:
        return [self.node(child) for child in tree.children if isinstance(child, lark.Tree)]

    def _quantity(self, tree: lark.Tree[lark.Token]) -> _Node:
        found = quantity(str(tree.children[0]))
        node = _Node("number", found.unit, lambda _columns, _current: found.value)
        node.literal = found
        return node

    def _text(self, tree: lark.Tree[lark.Token]) -> _Node:
        text = str(tree.children[0])[1:-1]
        return _Node("text", None, lambda _columns, _current: text)

    def _current(self, tree: lark.Tree[lark.Token]) -> _Node:
        if not self._allow_current:
            raise ExpressionError(tree.meta.start_pos, "`current` is the knob's value: only in `set`")
        return _Node("number", Unit.COUNT, lambda _columns, current: current)

    def _field(self, tree: lark.Tree[lark.Token]) -> _Node:
        return self._read(self._on.value, tree)

    def _host_field(self, tree: lark.Tree[lark.Token]) -> _Node:
        if self._on is not Kind.VM:
            raise ExpressionError(tree.meta.start_pos, "`host.` is for rules on a vm")
        return self._read("host", tree)

    def _read(self, measurement: str, tree: lark.Tree[lark.Token]) -> _Node:
        token = cast("lark.Token", tree.children[0])
        name = str(token)
        declared = FIELDS.get((measurement, name))
        if declared is None:
            near = difflib.get_close_matches(name, names(measurement), 1)
            hint = f"; did you mean `{near[0]}`?" if near else ""
            raise ExpressionError(token.start_pos or 0, f"`{name}` is not a field of {measurement}{hint}")
        self.fields.add((measurement, name))
        return _Node("number", declared.unit, lambda columns, _current: columns.field(measurement, name))

    def _tag(self, tree: lark.Tree[lark.Token]) -> _Node:
        name = str(tree.children[0])
        return _Node("text", None, lambda columns, _current: columns.tag(name))

    def _minus(self, tree: lark.Tree[lark.Token]) -> _Node:
        (inner,) = self._nodes(tree)
        self._must(inner, "number", tree)
        return _Node("number", inner.unit, lambda columns, current: -inner.value(columns, current))

    def _sum(self, tree: lark.Tree[lark.Token]) -> _Node:
        return self._fold(tree, _added)

    def _product(self, tree: lark.Tree[lark.Token]) -> _Node:
        return self._fold(tree, _multiplied)

    def _fold(self, tree: lark.Tree[lark.Token], combine: Callable[[str, _Node, _Node], Unit | None]) -> _Node:
        left = self.node(cast("lark.Tree[lark.Token]", tree.children[0]))
        self._must(left, "number", tree)
        for token, child in zip(tree.children[1::2], tree.children[2::2], strict=True):
            right = self.node(cast("lark.Tree[lark.Token]", child))
            self._must(right, "number", tree)
            try:
                unit = combine(str(token), left, right)
            except ValueError as error:
                raise ExpressionError(cast("lark.Token", token).start_pos or 0, str(error)) from None
            left = _arithmetic(str(token), left, right, unit)
        return left

    def _comparison(self, tree: lark.Tree[lark.Token]) -> _Node:
        first, token, second = tree.children
        left, right = self.node(cast("Any", first)), self.node(cast("Any", second))
        sign, at = str(token), cast("lark.Token", token).start_pos or 0
        if left.kind == right.kind == "text":
            if sign not in {"==", "!="}:
                raise ExpressionError(at, f"texts are compared with == and !=, not {sign}")
            return _Node("truth", None, truth=_same_text(left, right, equal=sign == "=="))
        if "number" not in {left.kind} & {right.kind}:
            raise ExpressionError(at, f"cannot compare a {left.kind} with a {right.kind}")
        _check_units(left, right, at)
        return _Node("truth", None, truth=_compared(_COMPARE[sign], left, right))

    def _both(self, tree: lark.Tree[lark.Token]) -> _Node:
        return self._logic(tree, all_of=True)

    def _either(self, tree: lark.Tree[lark.Token]) -> _Node:
        return self._logic(tree, all_of=False)

    def _logic(self, tree: lark.Tree[lark.Token], *, all_of: bool) -> _Node:
        parts = self._nodes(tree)
        for part in parts:
            self._must(part, "truth", tree)

        def truth(columns: Columns) -> Masks:
            true, false = parts[0].truth(columns)
            for part in parts[1:]:
                more_true, more_false = part.truth(columns)
                true, false = (
                    (true & more_true, false | more_false) if all_of else (true | more_true, false & more_false)
                )
            return true, false

        return _Node("truth", None, truth=truth)

    def _negation(self, tree: lark.Tree[lark.Token]) -> _Node:
        (inner,) = self._nodes(tree)
        self._must(inner, "truth", tree)
        return _Node("truth", None, truth=lambda columns: inner.truth(columns)[::-1])

    def _must(self, node: _Node, kind: str, tree: lark.Tree[lark.Token]) -> None:
        if node.kind != kind:
            needed = "a condition" if kind == "truth" else "a number"
            raise ExpressionError(tree.meta.start_pos, f"{needed} is needed here, this is a {node.kind}")


def _arithmetic(sign: str, left: _Node, right: _Node, unit: Unit | None) -> _Node:
    apply = _ARITHMETIC[sign]
    return _Node(
        "number", unit, lambda columns, current: apply(left.value(columns, current), right.value(columns, current))
    )


def _plain(node: _Node) -> bool:
    return node.unit is None


def _added(sign: str, left: _Node, right: _Node) -> Unit | None:
    if left.unit is right.unit or _plain(right):
        return left.unit
    if _plain(left):
        return right.unit
    raise ValueError(f"{left.unit} {sign} {right.unit} has no meaning")


def _multiplied(sign: str, left: _Node, right: _Node) -> Unit | None:
    if _plain(right) or right.unit is Unit.RATIO:
        return left.unit
    if sign == "*":
        return right.unit if _plain(left) or left.unit is Unit.RATIO else left.unit
    return Unit.RATIO if left.unit is right.unit else None


def _check_units(left: _Node, right: _Node, at: int) -> None:
    for value, literal in ((left, right), (right, left)):
        if value.unit is Unit.RATIO and literal.literal and literal.unit is None and abs(literal.literal.value) > 1:
            number = literal.literal.value
            raise ExpressionError(at, f"a ratio is between 0 and 1: write {number:g}% for {number:g} percent")
    if left.unit is not None and right.unit is not None and left.unit is not right.unit:
        raise ExpressionError(at, f"cannot compare {left.unit} with {right.unit}")


def _compared(compare: Callable[[Any, Any], Any], left: _Node, right: _Node) -> _Truth:
    def truth(columns: Columns) -> Masks:
        a = np.atleast_1d(np.asarray(left.value(columns, np.nan), dtype=np.float64))
        b = np.atleast_1d(np.asarray(right.value(columns, np.nan), dtype=np.float64))
        true = compare(a, b)
        known = ~(np.isnan(a) | np.isnan(b))
        return true & known, ~true & known

    return truth


def _same_text(left: _Node, right: _Node, *, equal: bool) -> _Truth:
    def truth(columns: Columns) -> Masks:
        same = np.atleast_1d(np.asarray(left.value(columns, np.nan) == right.value(columns, np.nan), dtype=np.bool_))
        return (same, ~same) if equal else (~same, same)

    return truth
