"""What can be seen of a film's conditions at little cost: from the least and greatest value that each input ever has.

Most rules fire nowhere in a film, and what they compare lies on one side all along, or is missing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import numpy as np

from virtpilot.model import Kind
from virtpilot.rules.language.devices import NO_JOB, Of
from virtpilot.rules.language.functions import quantile
from virtpilot.rules.language.records import NoData, Rule
from virtpilot.rules.language.typed import COMPARE, Aggregate, Input, Part, Window, unknown
from virtpilot.rules.signals.columns import SINGLE

if TYPE_CHECKING:
    from virtpilot.rules.signals.film.film import Film

Range = tuple[float, float]
_ANY: Final[Range] = (-np.inf, np.inf)
_WITHIN: Final = frozenset({"avg", "min", "max"})
_OF_CHANGES: Final = frozenset({"flaps", "delta", "rate"})
# Long windows keep 24 bits of a number, and means are rounded.
_SLACK: Final = 1e-6
_OPPOSITE: Final = {"<": ">=", "<=": ">", ">": "<=", ">=": "<", "==": "!=", "!=": "=="}


class Outlook:
    """What each input of a kind's subjects is at least and at most, in the whole of a film."""

    def __init__(self, film: Film, kind: Of) -> None:
        self._film = film
        self._kind = kind
        self._extremes: dict[Of, tuple[list[float], list[float], list[bool]]] = {}
        self._ranges: dict[object, Range | None] = {}

    def fires(self, rule: Rule) -> bool:
        """Tell whether a rule may fire on somebody at some moment: where not, it fires on nobody."""
        return rule.no_data is NoData.FIRE or not never(rule.when.part, self.range)

    def unknown(self, part: Part) -> bool:
        """Tell whether a condition is easily seen to be unknown at every moment."""
        return unknown(part, lambda source: self.range(source) is None)

    def settled(self, part: Part) -> bool | None:
        """Return what a comparison of a field with a number says of everybody all along; None where that differs."""
        if part.sign not in COMPARE:
            return None
        left, right = part.parts
        if right.literal is None or not isinstance(left.source, tuple) or not self._whole(left.source):
            return None
        if never(part, self.range):
            return False
        range_ = self.range(left.source)
        number = right.literal.value
        return True if range_ and _apart(_OPPOSITE[part.sign], range_, (number, number)) else None

    def range(self, source: Input) -> Range | None:
        """Return between what an input always lies, None where it is missing all along."""
        key = source if isinstance(source, tuple) else id(source)
        if key not in self._ranges:
            self._ranges[key] = self._range(source)
        return self._ranges[key]

    def _range(self, source: Input) -> Range | None:
        if isinstance(source, Aggregate):
            return _ANY
        if isinstance(source, Window):
            return self._of_window(source)
        measurement, name = source
        if measurement in SINGLE:
            return _ANY if name == NO_JOB or SINGLE[measurement] in self._film.reels else None
        kind = self._kind if measurement == self._kind.value else Kind.HOST
        least, most, _whole = self._of_fields(kind)
        place = self._film.world.tables[kind].column[name]
        return None if np.isnan(least[place]) else (least[place], most[place])

    def _whole(self, source: tuple[str, str]) -> bool:
        """Tell whether everybody has a field of their own at every moment."""
        if source[0] != self._kind.value:
            return False
        return self._of_fields(self._kind)[2][self._film.world.tables[self._kind].column[source[1]]]

    def _of_fields(self, kind: Of) -> tuple[list[float], list[float], list[bool]]:
        if kind not in self._extremes:
            values = self._film.reels[kind].values
            values = values.reshape(len(values), -1)
            least: list[float] = np.fmin.reduce(values, axis=1, initial=np.nan).tolist()
            most: list[float] = np.fmax.reduce(values, axis=1, initial=np.nan).tolist()
            whole: list[bool] = np.asarray(np.isfinite(values).all(axis=1)).tolist()
            self._extremes[kind] = (least, most, whole)
        return self._extremes[kind]

    def _of_window(self, window: Window) -> Range | None:
        reel, (track, first) = self._film.reels.get(window.on), self._film.world.windows.track(window)
        if reel is None or not len(reel.rows):
            return None
        past = self._film.past(track)
        if past.young or not len(values := past.all_of(first)):
            return None
        least, most = float(values.min()), float(values.max())
        if window.function in _OF_CHANGES and least == most:
            return 0.0, 0.0
        if window.function not in _WITHIN and quantile(window.function) is None:
            return _ANY
        slack = _SLACK * max(abs(least), abs(most))
        return least - slack, most + slack


def never(part: Part, range_of: Callable[[Input], Range | None]) -> bool:
    """Tell whether a condition is easily seen to be true of nobody, given between what each input lies."""
    if part.sign == "and":
        return any(never(one, range_of) for one in part.parts)
    if part.sign == "or":
        return all(never(one, range_of) for one in part.parts)
    if part.sign not in COMPARE:
        return False
    left, right = (_range_of(one, range_of) for one in part.parts)
    return left is None or right is None or _apart(part.sign, left, right)


def _range_of(part: Part, range_of: Callable[[Input], Range | None]) -> Range | None:
    if part.literal is not None:
        return part.literal.value, part.literal.value
    if part.source is not None:
        return range_of(part.source)
    return None if unknown(part, lambda source: range_of(source) is None) else _ANY


def _apart(sign: str, left: Range, right: Range) -> bool:
    """Tell whether no value of one range stands so to any of the other."""
    match sign:
        case ">":
            return left[1] <= right[0]
        case ">=":
            return left[1] < right[0]
        case "<":
            return left[0] >= right[1]
        case "<=":
            return left[0] > right[1]
        case "==":
            return left[1] < right[0] or left[0] > right[1]
    return left == right and left[0] == left[1]
