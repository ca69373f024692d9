"""The typed parts of an expression: what each is, what it reads, and closures that work on whole columns.

NumPy is imported where columns are worked on: a check of rules, which works on none, does not wait for it.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

import msgspec

from virtpilot.fields import Unit
from virtpilot.model import Kind
from virtpilot.rules.language.devices import Device, Of
from virtpilot.rules.language.units import Quantity, quantity

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Numbers: TypeAlias = "NDArray[np.float64]"
Masks: TypeAlias = "tuple[NDArray[np.bool_], NDArray[np.bool_]]"


class Columns(Protocol):
    """The inputs of many subjects: one row each."""

    def field(self, measurement: str, name: str) -> Numbers:
        """Return a field of each subject, or of each subject's host; NaN where it is missing."""

    def tag(self, name: str) -> NDArray[np.object_]:
        """Return a tag of each subject, "" where it has none."""

    def single_tag(self, device: Device, name: str) -> NDArray[np.object_]:
        """Return a tag of each subject's one device, such as its job; "" where it has none."""

    def signal(self, rule: str, within_ns: int) -> Numbers:
        """Tell (1, 0) whether a rule's signal fires on each subject, its host or the cluster, or did within a span."""

    def window(self, window: Window) -> Numbers:
        """Return what a window says of each subject just now, NaN where that is not known."""

    def aggregate(self, aggregate: Aggregate) -> Numbers:
        """Return what is said of the others around each subject, NaN where that is not known."""


Value = Callable[[Columns, float], Any]
Truth = Callable[[Columns], Masks]


class Window:
    """A function over the recent history of a number or a condition; equal texts about one kind are one window.

    `on` is whose history it is: a host's where the series reads nothing else, also in a rule about its guests.
    """

    def __init__(self, text: str, on: Of, function: str, merge: str, spans: Sequence[int], series: Value) -> None:
        self.text = text
        self.on = on
        self.key = (on, text)
        """What tells it from every other window, whoever reads it."""
        self.function = function
        self.merge = merge
        """How samples within one step of a long window become one: mean, min, max or last."""
        self.span_ns = spans[-1]
        self.ahead_ns = spans[0]
        self.series = series
        self.over: Part | None = None
        """What the series is made of."""
        self.series_text = ""
        self.what = "gauge"
        """What the series is: gauge, counter or truth."""


class Aggregate:
    """A function over the guests of a host, or over all hosts or guests, taken at each tick.

    Of a subject's own devices it is taken with each of the subject's samples; `word` is what rules call them.
    """

    def __init__(self, text: str, function: str, members: Of, scope: Kind, word: str = "") -> None:
        self.text = text
        self.function = function
        self.members = members
        self.scope = scope
        """Whose members: a guest's (devices), a host's, or the cluster's."""
        self.word = word
        self.reads = Reads()
        """What it reads of its members."""
        self.value: Value | None = None
        self.where: Truth | None = None
        self.chosen: Part | None = None
        """Which members are meant, as `where` tells: by its parts."""

    @property
    def key(self) -> tuple[Kind, str]:
        """What tells it from every other aggregate."""
        return (self.scope, self.text)


class Reads(msgspec.Struct):
    """What an expression reads: fields and windows of its subject and its host; `every` one, those of others too."""

    fields: set[tuple[str, str]] = msgspec.field(default_factory=set)
    every: set[tuple[str, str]] = msgspec.field(default_factory=set)
    windows: dict[tuple[Of, str], Window] = msgspec.field(default_factory=dict)
    every_window: dict[tuple[Of, str], Window] = msgspec.field(default_factory=dict)
    aggregates: dict[tuple[Kind, str], Aggregate] = msgspec.field(default_factory=dict)
    tags: set[str] = msgspec.field(default_factory=set)
    signals: dict[str, int] = msgspec.field(default_factory=dict)
    """The span (ns) that each rule's signal is looked for in, 0 for just now."""
    asked: set[str] = msgspec.field(default_factory=set)
    """The rules whose signals are asked of the subject itself, not of its members."""
    refers: list[tuple[str, Kind, int]] = msgspec.field(default_factory=list)
    """Each mention of a signal: the rule, about whom it is asked, where in the text."""

    def beneath(self, other: Reads) -> None:
        """Add what a part reads that is about others, or over time: its fields are not the subject's own."""
        self.every |= other.every
        self.every_window |= other.every_window
        self.refers += other.refers
        self.recall(other.signals)

    def add(self, other: Reads) -> None:
        """Add what another part about the same subjects reads."""
        self.fields |= other.fields
        self.windows |= other.windows
        self.aggregates |= other.aggregates
        self.beneath(other)

    def recall(self, signals: Mapping[str, int]) -> None:
        """Note that signals are looked for, each within a span."""
        for name, within_ns in signals.items():
            self.signals[name] = max(within_ns, self.signals.get(name, 0))


Input: TypeAlias = "tuple[str, str] | Window | Aggregate"


class Part:
    """A typed part of an expression: a number with a unit, a text, or a truth."""

    def __init__(self, kind: str, unit: Unit | None = None) -> None:
        self.kind = kind
        self.unit = unit
        self.value: Value = _none
        self.truth: Truth = _nothing
        self.literal: Quantity | None = None
        self.most: float | None = None
        """What a sum of ratio fields cannot exceed; a share of something else has no such bound."""
        self.counter = False
        self.sign = ""
        """What joins `parts`: a sign, `and`, `or`, `not`."""
        self.owner = ""
        """The measurement of the subject that it is about."""
        self.parts: tuple[Part, ...] = ()
        self.source: Input | None = None
        """Where a number comes from, if it is no more than an input."""


def _none(_columns: Columns, _current: float) -> Any:
    raise TypeError("a condition has no number")


def _nothing(_columns: Columns) -> Masks:
    raise TypeError("a number is not true or false")


def number(unit: Unit | None, value: Value) -> Part:
    """Return a part that is a number."""
    part = Part("number", unit)
    part.value = value
    return part


def text(value: Value) -> Part:
    """Return a part that is a text."""
    part = Part("text")
    part.value = value
    return part


def truth(sign: str, parts: Sequence[Part], evaluate: Truth) -> Part:
    """Return a part that is true, false or unknown."""
    part = Part("truth")
    part.sign, part.parts, part.truth = sign, tuple(parts), evaluate
    return part


COMPARE: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq, "!=": operator.ne,
}  # fmt: skip


def _quotient(left: Any, right: Any) -> Any:
    """Return a quotient; by zero it is missing, as an input would be."""
    if isinstance(left, float) and isinstance(right, float):
        return math.nan if right == 0 else left / right
    import numpy as np

    return np.divide(left, np.where(np.equal(right, 0), np.nan, right))


_ARITHMETIC: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": _quotient,
}  # fmt: skip


def arithmetic(sign: str, left: Part, right: Part, unit: Unit | None) -> Part:
    """Return a sum, difference, product or quotient."""
    apply = _ARITHMETIC[sign]
    part = number(unit, lambda columns, current: apply(left.value(columns, current), right.value(columns, current)))
    part.sign, part.parts = sign, (left, right)
    if sign == "+":
        part.counter = left.counter and right.counter
        if left.most is not None and right.most is not None:
            part.most = left.most + right.most
    return part


def compared(sign: str, left: Part, right: Part) -> Part:
    """Return a comparison of numbers: unknown where one of them is."""
    compare, fixed = COMPARE[sign], right.literal is not None

    def evaluate(columns: Columns) -> Masks:
        import numpy as np

        a = _column(left.value(columns, np.nan))
        b = _column(right.value(columns, np.nan))
        true = compare(a, b)
        # What stands in the text is a number.
        known = np.isfinite(a) if fixed else np.isfinite(a) & np.isfinite(b)
        return true & known, ~true & known

    return truth(sign, (left, right), evaluate)


def _column(value: Any) -> Numbers:
    """Return a number of each row, or one for all of them, as a column."""
    import numpy as np

    if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype == np.float64:
        return value
    return np.atleast_1d(np.asarray(value, dtype=np.float64))


def some(count: Part) -> Part:
    """Return whether a count is of any at all."""
    none = number(None, lambda _columns, _current: 0.0)
    none.literal = Quantity(0.0, None)
    return compared(">", count, none)


def same_text(sign: str, left: Part, right: Part) -> Part:
    """Return a comparison of texts."""

    def evaluate(columns: Columns) -> Masks:
        import numpy as np

        same = np.atleast_1d(np.asarray(left.value(columns, np.nan) == right.value(columns, np.nan), dtype=np.bool_))
        return (same, ~same) if sign == "==" else (~same, same)

    return truth(sign, (left, right), evaluate)


def logic(sign: str, parts: Sequence[Part]) -> Part:
    """Return `and` or `or` over parts, in Kleene's three values."""
    all_of = sign == "and"

    def evaluate(columns: Columns) -> Masks:
        true, false = parts[0].truth(columns)
        for part in parts[1:]:
            more_true, more_false = part.truth(columns)
            true, false = (true & more_true, false | more_false) if all_of else (true | more_true, false & more_false)
        return true, false

    return truth(sign, parts, evaluate)


def negation(inner: Part) -> Part:
    """Return the opposite of a truth."""
    return truth("not", (inner,), lambda columns: inner.truth(columns)[::-1])


def overridden(texts: NDArray[np.object_], default: Quantity) -> Numbers:
    """Return the number that each text says; the default where it says none, one of another unit, or no ratio."""
    import numpy as np

    known = {text: _override(text, default) for text in set(texts.tolist())}
    return np.array([known[text] for text in texts.tolist()], np.float64)


def _override(text: str, default: Quantity) -> float:
    try:
        found = quantity(text)
    except ValueError:
        return default.value
    wrong = found.unit not in {None, default.unit} or (default.unit is Unit.RATIO and found.value > 1)
    return default.value if wrong else found.value


def unknown(part: Part, missing: Callable[[Input], bool]) -> bool:
    """Tell whether a part can be seen to be unknown of all subjects, given which inputs all of them lack."""
    if part.sign in COMPARE or part.sign in _ARITHMETIC:
        return any(unknown(one, missing) for one in part.parts)
    if part.sign in {"and", "or", "not"}:
        return all(unknown(one, missing) for one in part.parts)
    return part.source is not None and missing(part.source)


def as_number(part: Part) -> Value:
    """Return a part's number; of a truth 1, 0 or NaN where it is unknown."""
    if part.kind != "truth":
        return part.value

    def value(columns: Columns, _current: float) -> Numbers:
        import numpy as np

        true, false = part.truth(columns)
        return np.where(true, 1.0, np.where(false, 0.0, np.nan))

    return value
