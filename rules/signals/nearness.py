"""Which guests are near a threshold: a rule's condition would hold if each of its thresholds were a little relaxed.

Taken now and then over all guests in columns, apart from the path that samples take.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from virtpilot.model import Kind
from virtpilot.rules.language.records import Rule
from virtpilot.rules.language.typed import COMPARE, Aggregate, Columns, Masks, Part, Window
from virtpilot.rules.signals.columns import RowColumns, masks
from virtpilot.rules.signals.gate import Gate
from virtpilot.rules.signals.scout import against_number
from virtpilot.rules.signals.world import World

_UPWARDS: Final = frozenset({">", ">="})
_DOWNWARDS: Final = frozenset({"<", "<="})
_NOWHERE: Final[NDArray[np.int64]] = np.zeros(0, np.int64)
_EVERYWHERE: Final[NDArray[np.bool_]] = np.ones(1, np.bool_)


class Nearness:
    """Tells who is near a threshold of some of these rules; `margin` is a share of each threshold."""

    def __init__(self, rules: Iterable[Rule], margin: float) -> None:
        self._rules = [rule for rule in rules if rule.on is Kind.VM]
        self._margin = margin
        # Most rules are near nowhere, which is told of all of them at once.
        self._gate = Gate(self._rules, margin)

    def near(self, world: World, rows: NDArray[np.int64] | None = None) -> set[str]:
        """Return the ids of the guests near a threshold of a rule about guests: of all, or of those in some rows."""
        table = world.tables[Kind.VM]
        rows = table.taken() if rows is None else rows
        if not len(rows):
            return set()
        columns = world.columns(Kind.VM, rows)
        found = np.zeros(len(rows), np.bool_)
        with np.errstate(all="ignore"):
            for place in np.flatnonzero(self._gate.open(columns)).tolist():
                rule = self._rules[place]
                close = _close(rule.when.part, columns, self._margin, len(rows))
                if rule.where is not None and len(close):
                    some = columns if len(close) == len(rows) else columns.only(close)
                    close = close[masks(rule.where, some, len(close))[0]]
                found[close] = True
        return set(table.ids(rows[found]))


def _close(part: Part, columns: RowColumns, margin: float, count: int) -> NDArray[np.int64]:
    """Return the places where a condition would hold.

    What is dear is worked out only where what else it asks, and what windows can be at most, leave it open.
    """
    parts = part.parts if part.sign == "and" else (part,)
    dear = [one for one in parts if _is_dear(one)]
    true: NDArray[np.bool_] = np.ones(1, np.bool_)
    for one in parts:
        may = _may_hold(one, columns, margin) if one in dear else relaxed(one, columns, margin)[0]
        true = true & may
        if not true.any():
            return _NOWHERE
    places = np.flatnonzero(np.broadcast_to(true, count))
    for one in dear:
        if len(places):
            some = columns if len(places) == count else columns.only(places)
            places = places[np.broadcast_to(relaxed(one, some, margin)[0], len(places))]
    return places


def _is_dear(part: Part) -> bool:
    """Tell whether a part reads a window, or devices and others."""
    return isinstance(part.source, Window | Aggregate) or any(map(_is_dear, part.parts))


def _may_hold(part: Part, columns: RowColumns, margin: float) -> NDArray[np.bool_]:
    """Return where a relaxed comparison may hold by what is known of its window without a look at it."""
    window, sign, number = against_number(part) or (None, "", 0.0)
    if not isinstance(window, Window) or sign not in _UPWARDS | _DOWNWARDS:
        return _EVERYWHERE
    bound = columns.bound(window, upper=sign in _UPWARDS)
    return _compared(sign, bound, np.array([number]), np.array([margin * abs(number)]))


def relaxed(part: Part, columns: Columns, margin: float) -> Masks:
    """Return where a condition is true and where it is false, each threshold relaxed by `margin` of itself.

    What is negated is made stricter, so that the whole is the wider. A threshold of zero, texts and inequality stay.
    """
    match part.sign:
        case "not":
            return relaxed(part.parts[0], columns, -margin)[::-1]
        case "and" | "or":
            return _joined(part, columns, margin)
    if part.sign not in COMPARE or part.parts[0].kind != "number":
        return part.truth(columns)
    left, right = (_numbers(one, columns) for one in part.parts)
    slack = margin * np.abs(left if part.parts[0].literal is not None else right)
    true = _compared(part.sign, left, right, slack)
    known = np.isfinite(left) & np.isfinite(right)
    return true & known, ~true & known


def _joined(part: Part, columns: Columns, margin: float) -> Masks:
    true, false = relaxed(part.parts[0], columns, margin)
    for one in part.parts[1:]:
        more_true, more_false = relaxed(one, columns, margin)
        if part.sign == "and":
            true, false = true & more_true, false | more_false
        else:
            true, false = true | more_true, false & more_false
    return true, false


def _numbers(part: Part, columns: Columns) -> NDArray[np.float64]:
    return np.atleast_1d(np.asarray(part.value(columns, np.nan), np.float64))


def _compared(
    sign: str, left: NDArray[np.float64], right: NDArray[np.float64], slack: NDArray[np.float64]
) -> NDArray[np.bool_]:
    if sign in _UPWARDS:
        return np.asarray(COMPARE[sign](left, right - slack))
    if sign in _DOWNWARDS:
        return np.asarray(COMPARE[sign](left, right + slack))
    if sign == "==":
        return np.asarray(np.abs(left - right) <= np.maximum(slack, 0.0))
    return np.asarray(left != right)
