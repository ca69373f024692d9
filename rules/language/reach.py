"""Whether a condition can hold at all: intervals of the values that its comparisons allow, taken together.

It knows comparisons of one term (a field, a window, a tag) with a constant. What else there is may always be true and
may always be false, so that nothing is called impossible that is not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Final

import lark
import msgspec

from virtpilot.rules.language.expression import Condition, tree_of
from virtpilot.rules.language.units import quantity

Tree = lark.Tree[lark.Token]

MAX_WAYS: Final = 256
_OPPOSITE: Final = {"<": ">=", "<=": ">", ">": "<=", ">=": "<", "==": "!=", "!=": "=="}
_MIRROR: Final = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "==": "==", "!=": "!="}
# Terms that are 0 at least, whatever is measured.
_NOT_NEGATIVE: Final = frozenset({"field", "host_field", "members"})


class Interval(msgspec.Struct, frozen=True):
    """From `low` to `high`, the ends included or not."""

    low: float = -math.inf
    high: float = math.inf
    low_in: bool = True
    high_in: bool = True

    def cut(self, other: Interval) -> Interval:
        """Return what both allow."""
        low, low_in = max((self.low, not self.low_in), (other.low, not other.low_in))
        high, high_in = min((self.high, self.high_in), (other.high, other.high_in))
        return Interval(low, high, not low_in, high_in)

    @property
    def empty(self) -> bool:
        """Tell whether nothing is allowed."""
        return self.low > self.high or (self.low == self.high and not (self.low_in and self.high_in))


Texts = frozenset[str]
Way = Mapping[str, "Interval | Texts"]
Ways = list[Way]


def possible(*conditions: Condition, but: Condition | None = None) -> bool:
    """Tell whether all conditions can hold at once, and `but` fail; True where that is not known."""
    ways: Ways = [{}]
    for condition in conditions:
        ways = _both(ways, _ways(tree_of(condition.text), condition.text, wanted=True))
    if but is not None:
        ways = _both(ways, _ways(tree_of(but.text), but.text, wanted=False))
    return bool(ways)


def terms(condition: Condition) -> frozenset[str] | None:
    """Return the terms that a condition's comparisons are about; None where one is about more than a term."""
    found: set[str] = set()
    waiting = [tree_of(condition.text)]
    while waiting:
        tree = waiting.pop()
        if tree.data in {"negation", "both", "either"}:
            waiting += [child for child in tree.children if isinstance(child, lark.Tree)]
            continue
        ways = _compared(tree, condition.text, wanted=True) if tree.data == "comparison" else [{}]
        if not all(ways):
            return None
        found |= {term for way in ways for term in way}
    return frozenset(found)


def _ways(tree: Tree, text: str, *, wanted: bool) -> Ways:
    """Return the ways in which a tree can be true, or false."""
    children = [child for child in tree.children if isinstance(child, lark.Tree)]
    match tree.data:
        case "negation":
            return _ways(children[0], text, wanted=not wanted)
        case "both" | "either":
            found = [_ways(child, text, wanted=wanted) for child in children]
            return _each(found) if (tree.data == "both") is wanted else _any(found)
        case "comparison":
            return _compared(tree, text, wanted=wanted)
        case _:
            return [{}]


def _each(found: Iterable[Ways]) -> Ways:
    ways: Ways = [{}]
    for more in found:
        ways = _both(ways, more)
    return ways


def _any(found: Iterable[Ways]) -> Ways:
    ways = [way for some in found for way in some]
    return ways if len(ways) <= MAX_WAYS else [{}]


def _both(ways: Ways, more: Ways) -> Ways:
    if len(ways) * len(more) > MAX_WAYS:
        return [{}]
    return [way for one in ways for other in more if (way := _joined(one, other)) is not None]


def _joined(one: Way, other: Way) -> Way | None:
    """Return what two ways allow together, None where that is nothing."""
    found = dict(one)
    for term, allowed in other.items():
        left = _left(found.get(term), allowed)
        if left is None:
            return None
        found[term] = left
    return found


def _left(known: Interval | Texts | None, allowed: Interval | Texts) -> Interval | Texts | None:
    """Return what is allowed of a term on which something may be known already, None where that is nothing."""
    if isinstance(known, Interval) and isinstance(allowed, Interval):
        cut = known.cut(allowed)
        return None if cut.empty else cut
    if isinstance(known, frozenset) and isinstance(allowed, frozenset):
        return (known & allowed) or None
    return allowed


def _compared(tree: Tree, text: str, *, wanted: bool) -> Ways:
    left, sign, right = tree.children
    if not isinstance(left, lark.Tree) or not isinstance(right, lark.Tree):
        return [{}]
    compare = str(sign) if wanted else _OPPOSITE[str(sign)]
    if left.data in {"quantity", "text"}:
        left, right, compare = right, left, _MIRROR[compare]
    term = "".join(text[left.meta.start_pos : left.meta.end_pos].split())
    if right.data == "text" and left.data == "tag":
        # Of a tag that is not this there are countless others.
        return [{term: frozenset({str(right.children[0])})}] if compare == "==" else [{}]
    number = _number(right)
    if number is None or left.data in {"quantity", "text"}:
        return [{}]
    least = Interval(low=0.0) if left.data in _NOT_NEGATIVE else Interval()
    return [{term: way} for one in _intervals(compare, number) if not (way := one.cut(least)).empty]


def _number(tree: Tree) -> float | None:
    if tree.data == "minus" and isinstance(tree.children[0], lark.Tree):
        inner = _number(tree.children[0])
        return None if inner is None else -inner
    return quantity(str(tree.children[0])).value if tree.data == "quantity" else None


def _intervals(compare: str, number: float) -> list[Interval]:
    match compare:
        case "<":
            return [Interval(high=number, high_in=False)]
        case "<=":
            return [Interval(high=number)]
        case ">":
            return [Interval(low=number, low_in=False)]
        case ">=":
            return [Interval(low=number)]
        case "==":
            return [Interval(number, number)]
        case _:
            return [Interval(high=number, high_in=False), Interval(low=number, low_in=False)]
