"""Which rules can fire on some rows at all: found for all rules at once from the rows' least and greatest values.

A rule whose condition is `cpu_steal_ratio > 10% and …` fires on none of the rows when none of them has more than 10%.
Most rules fire nowhere most of the time, and these are told apart here without looking at each rule.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from virtpilot.rules.language.records import NoData, Rule
from virtpilot.rules.language.typed import Columns, Numbers, Part, Window

_TURNED: Final = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "==": "=="}
_Source = tuple[str, str] | Window


class _Bound(NamedTuple):
    """What some row must satisfy before a rule can fire: an input against a number."""

    source: _Source
    sign: str
    number: float


class _Group(NamedTuple):
    """All bounds on one input of one sign: the rules by their places, and their numbers."""

    source: _Source
    sign: str
    places: NDArray[np.int64]
    numbers: Numbers


class Gate:
    """Knows the rules by their places in the given order."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._count = len(rules)
        found: dict[tuple[object, str], list[tuple[_Source, int, float]]] = {}
        for place, rule in enumerate(rules):
            for bound in _needs(rule):
                key = bound.source.key if isinstance(bound.source, Window) else bound.source
                found.setdefault((key, bound.sign), []).append((bound.source, place, bound.number))
        self._groups = [
            _Group(
                entries[0][0],
                sign,
                np.array([place for _source, place, _number in entries], np.int64),
                np.array([number for _source, _place, number in entries], np.float64),
            )
            for (_key, sign), entries in found.items()
        ]
        # Fields are there, windows have to be worked out: they are looked at where the fields leave a rule open.
        self._groups.sort(key=lambda group: isinstance(group.source, Window))

    def open(self, columns: Columns) -> list[bool]:
        """Tell of each rule whether it may fire on some row: where not, it fires on none."""
        may = np.ones(self._count, np.bool_)
        extremes: dict[int, tuple[float, float]] = {}
        for group in self._groups:
            if not may[group.places].any():
                continue
            known = extremes.get(id(group.source))
            if known is None:
                values = _read(columns, group.source)
                # Both leave NaN out; of nothing but NaN they are NaN, which compares with nothing.
                known = float(np.fmin.reduce(values, initial=np.nan)), float(np.fmax.reduce(values, initial=np.nan))
                extremes[id(group.source)] = known
            may[group.places] &= _reached(group.sign, group.numbers, *known)
        found: list[bool] = may.tolist()
        return found


def _read(columns: Columns, source: _Source) -> Numbers:
    return columns.window(source) if isinstance(source, Window) else columns.field(*source)


def _reached(sign: str, numbers: Numbers, least: float, most: float) -> NDArray[np.bool_]:
    """Tell for each number whether some value between least and most stands so to it."""
    match sign:
        case ">":
            return most > numbers
        case ">=":
            return most >= numbers
        case "<":
            return least < numbers
        case "<=":
            return least <= numbers
    return (least <= numbers) & (most >= numbers)


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
            if isinstance(value.source, tuple | Window) and other.literal is not None:
                yield _Bound(value.source, sign, other.literal.value)
