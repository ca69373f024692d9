"""Which rules can fire on some rows at all: found for all rules at once from the rows' least and greatest values.

A rule whose condition is `cpu_steal_ratio > 10% and …` fires on none of the rows when none of them has more than 10%.
Most rules fire nowhere most of the time, and these are told apart here without looking at each rule; of those that are
left `scout` tells on which rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from virtpilot.rules.language.records import NoData, Rule
from virtpilot.rules.language.typed import Numbers, Part

_TURNED: Final = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "==": "=="}
_BY_LEAST: Final = frozenset({"<", "<=", "=="})
_BY_MOST: Final = frozenset({">", ">=", "=="})
_NONE: Final[Numbers] = np.zeros(0)
_SLACK: Final = 1e-6


class Extremes(Protocol):
    """What is asked of columns."""

    def least(self, measurement: str, names: tuple[str, ...]) -> Numbers:
        """Return the least value of each field, NaN where all are missing."""

    def most(self, measurement: str, names: tuple[str, ...]) -> Numbers:
        """Return the greatest value of each field, NaN where all are missing."""


class _Bound(NamedTuple):
    """What some row must satisfy before a rule can fire: an input against a number."""

    source: tuple[str, str]
    sign: str
    number: float


class _Group(NamedTuple):
    """Bounds of one sign on fields of one measurement: the rules by their places, and the numbers, relaxed."""

    measurement: str
    sign: str
    names: tuple[str, ...]
    places: NDArray[np.int64]
    lowest: Numbers
    highest: Numbers


class Gate:
    """Knows the rules by their places in the given order; `margin` is by how much of itself a threshold is relaxed."""

    def __init__(self, rules: Sequence[Rule], margin: float = 0.0) -> None:
        self._count = len(rules)
        found: dict[tuple[str, str], list[tuple[_Bound, int]]] = {}
        for place, rule in enumerate(rules):
            for bound in _needs(rule):
                found.setdefault((bound.source[0], bound.sign), []).append((bound, place))
        # A little more, for rounding.
        self._groups = [_group(bounds, margin * (1 + _SLACK)) for bounds in found.values()]

    def open(self, columns: Extremes) -> NDArray[np.bool_]:
        """Tell of each rule whether it may fire on some row: where not, it fires on none."""
        may = np.ones(self._count, np.bool_)
        for group in self._groups:
            if not may[group.places].any():
                continue
            # Of one side alone where that is enough.
            least = columns.least(group.measurement, group.names) if group.sign in _BY_LEAST else _NONE
            most = columns.most(group.measurement, group.names) if group.sign in _BY_MOST else _NONE
            may[group.places[~_reached(group, least, most)]] = False
        return may


def _group(bounds: Sequence[tuple[_Bound, int]], margin: float) -> _Group:
    first = bounds[0][0]
    numbers = np.array([bound.number for bound, _ in bounds], np.float64)
    return _Group(
        first.source[0],
        first.sign,
        tuple([bound.source[1] for bound, _ in bounds]),
        np.array([place for _, place in bounds], np.int64),
        numbers - margin * np.abs(numbers),
        numbers + margin * np.abs(numbers),
    )


def _reached(group: _Group, least: Numbers, most: Numbers) -> NDArray[np.bool_]:
    """Tell for each number whether some value between least and most stands so to it."""
    match group.sign:
        case ">":
            return most > group.lowest
        case ">=":
            return most >= group.lowest
        case "<":
            return least < group.highest
        case "<=":
            return least <= group.highest
    return (least <= group.highest) & (most >= group.lowest)


def _needs(rule: Rule) -> Iterable[_Bound]:
    """Return what must hold of some row before a rule fires; of missing data it may fire too where it says so."""
    return () if rule.no_data is NoData.FIRE else _bounds(rule.when.part)


def _bounds(part: Part) -> Iterator[_Bound]:
    if part.sign == "and":
        for inner in part.parts:
            yield from _bounds(inner)
    elif part.sign in _TURNED and len(part.parts) == 2:
        left, right = part.parts
        for sign, value, other in ((part.sign, left, right), (_TURNED[part.sign], right, left)):
            if isinstance(value.source, tuple) and other.literal is not None:
                yield _Bound(value.source, sign, other.literal.value)
