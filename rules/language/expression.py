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
from virtpilot.rules.language.syntax import explain
from virtpilot.rules.language.units import QUANTITY, Quantity, added, multiplied, quantity

Numbers = NDArray[np.float64]
Masks = tuple[NDArray[np.bool_], NDArray[np.bool_]]
RowValues = Mapping[str, float]

MAX_LENGTH: Final = 2_000
MAX_NODES: Final = 200
MAX_DEPTH: Final = 50

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
     | TAG -> tag
     | NAME -> field
     | "(" either ")"
COMPARE: "<=" | ">=" | "==" | "!=" | "<" | ">"
ADD: "+" | "-"
MULTIPLY: "*" | "/"
TAG: /tags\.[A-Za-z_][A-Za-z0-9_]*(?:[.-][A-Za-z0-9_]+)*/
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


def _quotient(left: Any, right: Any) -> Any:
    """Return a quotient; by zero it is missing, as an input would be."""
    return np.divide(left, np.where(np.equal(right, 0), np.nan, right))


_ARITHMETIC: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": _quotient,
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
_Combine = Callable[[str, Unit | None, Unit | None], Unit | None]


class _Node:
    """A typed part of an expression: a number with a unit, a text, or a truth."""

    def __init__(self, kind: str, unit: Unit | None, value: _Value | None = None, truth: _Truth | None = None) -> None:
        self.kind = kind
        self.unit = unit
        self.value = cast("_Value", value)
        self.truth = cast("_Truth", truth)
        self.literal: Quantity | None = None
        self.most: float | None = None
        """What a sum of ratio fields cannot exceed; a share of something else has no such bound."""


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

    def __init__(
        self, text: str, on: Kind, fields: frozenset[tuple[str, str]], unit: Unit | None, value: _Value
    ) -> None:
        self.text = text
        self.on = on
        self.fields = fields
        self.unit = unit
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
    return Formula(text, on, fields, node.unit, node.value)


def tree_of(text: str) -> lark.Tree[lark.Token]:
    """Return the tree of an expression, bounded in size, its parts with their places; raises ExpressionError."""
    if len(text) > MAX_LENGTH:
        raise ExpressionError(0, f"longer than {MAX_LENGTH} characters")
    try:
        tree = _PARSER.parse(text)
    except lark.UnexpectedInput as error:
        raise ExpressionError(*explain(error, text)) from None
    _check_size(tree)
    return tree


def _compile(text: str, on: Kind, *, allow_current: bool) -> tuple[_Node, frozenset[tuple[str, str]]]:
    tree = tree_of(text)
    compiler = _Compiler(on, allow_current=allow_current)
    return compiler.node(tree), frozenset(compiler.fields)


def _check_size(tree: lark.Tree[lark.Token]) -> None:
    """Refuse what would exhaust the stack when it is compiled or evaluated."""
    found = 0
    waiting = [(tree, 1)]
    while waiting:
        part, depth = waiting.pop()
        found += 1
        if found > MAX_NODES:
            raise ExpressionError(0, f"more than {MAX_NODES} parts")
        if depth > MAX_DEPTH:
            raise ExpressionError(part.meta.start_pos, f"nested more than {MAX_DEPTH} deep")
        waiting += [(child, depth + 1) for child in part.children if isinstance(child, lark.Tree)]


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
        try:
            found = quantity(str(tree.children[0]))
        except ValueError as error:
            raise ExpressionError(tree.meta.start_pos, str(error)) from None
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
            raise ExpressionError(token.start_pos or 0, _unknown_field(name, measurement, current=self._allow_current))
        self.fields.add((measurement, name))
        node = _Node("number", declared.unit, lambda columns, _current: columns.field(measurement, name))
        node.most = 1.0 if declared.unit is Unit.RATIO else None
        return node

    def _tag(self, tree: lark.Tree[lark.Token]) -> _Node:
        name = str(tree.children[0]).removeprefix("tags.")
        if name == "cluster" or (name == "vm" and self._on is not Kind.VM):
            raise ExpressionError(tree.meta.start_pos, f"`tags.{name}` tells nothing apart on a {self._on}")
        return _Node("text", None, lambda columns, _current: columns.tag(name))

    def _minus(self, tree: lark.Tree[lark.Token]) -> _Node:
        (inner,) = self._nodes(tree)
        self._must(inner, "number", tree)
        return _Node("number", inner.unit, lambda columns, current: -inner.value(columns, current))

    def _sum(self, tree: lark.Tree[lark.Token]) -> _Node:
        return self._fold(tree, added)

    def _product(self, tree: lark.Tree[lark.Token]) -> _Node:
        return self._fold(tree, multiplied)

    def _fold(self, tree: lark.Tree[lark.Token], combine: _Combine) -> _Node:
        left = self.node(cast("lark.Tree[lark.Token]", tree.children[0]))
        self._must(left, "number", tree)
        for token, child in zip(tree.children[1::2], tree.children[2::2], strict=True):
            right = self.node(cast("lark.Tree[lark.Token]", child))
            self._must(right, "number", tree)
            try:
                unit = combine(str(token), left.unit, right.unit)
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
    node = _Node(
        "number", unit, lambda columns, current: apply(left.value(columns, current), right.value(columns, current))
    )
    if sign == "+" and left.most is not None and right.most is not None:
        node.most = left.most + right.most
    return node


def _unknown_field(name: str, measurement: str, *, current: bool) -> str:
    text = f"`{name[:80]}` is not a field of {measurement}"
    owners = sorted(owner for owner, field in FIELDS if field == name)
    if measurement == Kind.VM and "host" in owners:
        return f"{text}; the host's is `host.{name}`"
    if owners:
        return f"{text}: {', '.join(owners)} has it, out of reach here"
    known = [*names(measurement), *(["current"] if current else [])]
    near = difflib.get_close_matches(name[:80], known, 1)
    return f"{text}; did you mean `{near[0]}`?" if near else text


def _check_units(left: _Node, right: _Node, at: int) -> None:
    for value, other in ((left, right), (right, left)):
        literal = other.literal
        if value.most is None or literal is None or literal.value <= value.most:
            continue
        if literal.unit is None:
            number = f"{literal.value:g}"
            raise ExpressionError(at, f"a ratio is between 0 and 1: write {number}% for {number} percent")
        if literal.unit is Unit.RATIO:
            raise ExpressionError(at, f"this is never over {value.most:.0%}: a ratio is between 0 and 1")
    if left.unit is not None and right.unit is not None and left.unit is not right.unit:
        raise ExpressionError(at, f"cannot compare {left.unit} with {right.unit}")


def _compared(compare: Callable[[Any, Any], Any], left: _Node, right: _Node) -> _Truth:
    def truth(columns: Columns) -> Masks:
        a = np.atleast_1d(np.asarray(left.value(columns, np.nan), dtype=np.float64))
        b = np.atleast_1d(np.asarray(right.value(columns, np.nan), dtype=np.float64))
        true = compare(a, b)
        known = np.isfinite(a) & np.isfinite(b)
        return true & known, ~true & known

    return truth


def _same_text(left: _Node, right: _Node, *, equal: bool) -> _Truth:
    def truth(columns: Columns) -> Masks:
        same = np.atleast_1d(np.asarray(left.value(columns, np.nan) == right.value(columns, np.nan), dtype=np.bool_))
        return (same, ~same) if equal else (~same, same)

    return truth
