"""Many conditions about one kind at once: those that compare a field with a number are one comparison of matrices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from virtpilot.model import Kind
from virtpilot.rules.language.expression import Columns, Condition, Masks, Numbers
from virtpilot.rules.language.typed import Part
from virtpilot.rules.signals.columns import SINGLE, masks

# Whether a value below a number, the same, and above it stands so to it.
_SIGNS: Final = {
    "<": (True, False, False), "<=": (True, True, False), "==": (False, True, False),
    "!=": (True, False, True), ">=": (False, True, True), ">": (False, False, True),
}  # fmt: skip


class Fields(Columns, Protocol):
    """Columns of which several fields can be had at once."""

    def several(self, measurement: str, names: tuple[str, ...]) -> Numbers:
        """Return fields of each subject, or of its host, a row a field; NaN where one is missing."""


class _Group(NamedTuple):
    """Comparisons of one measurement's fields: their places, the fields, the numbers, and what each sign allows."""

    places: NDArray[np.int64]
    measurement: str
    names: tuple[str, ...]
    numbers: Numbers
    below: NDArray[np.bool_]
    same: NDArray[np.bool_]
    above: NDArray[np.bool_]


class Panel:
    """Conditions by their places in the given order."""

    def __init__(self, kind: Kind, conditions: Sequence[Condition]) -> None:
        self.kind = kind
        self.conditions = tuple(conditions)
        self.asks = any(one.reads.signals for one in self.conditions)
        of_others = any(isinstance(a.members, Kind) for one in self.conditions for a in one.reads.aggregates.values())
        self.alone = kind is not Kind.CLUSTER and not self.asks and not of_others
        """Whether all that it says of a subject comes from that one's own samples, and its host's."""
        found: dict[str, list[tuple[int, str, str, float]]] = {}
        for place, condition in enumerate(self.conditions):
            plain = _plain(condition.part)
            if plain is not None:
                (measurement, name), sign, number = plain
                found.setdefault(measurement, []).append((place, name, sign, number))
        self._groups = [_group(measurement, own) for measurement, own in found.items()]
        grouped = {place for own in found.values() for place, *_ in own}
        self._others = [(place, one) for place, one in enumerate(self.conditions) if place not in grouped]

    def look(self, columns: Fields, count: int, unknown: Callable[[Condition], bool] = lambda _one: False) -> Masks:
        """Return of which subjects each condition is true and of which false, a row a condition.

        What is said to be `unknown` of everybody is not looked at.
        """
        true, false = (np.zeros((len(self.conditions), count), np.bool_) for _ in range(2))
        with np.errstate(all="ignore"):
            for group in self._groups:
                true[group.places], false[group.places] = _compared(group, columns)
            for place, condition in self._others:
                if unknown(condition):
                    continue
                true[place], false[place] = masks(condition, columns, count)
        return true, false


def _plain(part: Part) -> tuple[tuple[str, str], str, float] | None:
    """Return the field, the sign and the number of a comparison of such, None for anything else."""
    if part.sign not in _SIGNS:
        return None
    left, right = part.parts
    if right.literal is None or not isinstance(left.source, tuple) or left.source[0] in SINGLE:
        return None
    return left.source, part.sign, right.literal.value


def _group(measurement: str, own: Sequence[tuple[int, str, str, float]]) -> _Group:
    allowed = np.array([_SIGNS[sign] for _place, _name, sign, _number in own], np.bool_)
    return _Group(
        np.array([place for place, *_ in own], np.int64),
        measurement,
        tuple([name for _place, name, _sign, _number in own]),
        np.array([[number] for *_, number in own], np.float64),
        *(allowed[:, at, None] for at in range(3)),
    )


def _compared(group: _Group, columns: Fields) -> Masks:
    values = columns.several(group.measurement, group.names)
    known = np.isfinite(values)
    below, above = values < group.numbers, values > group.numbers
    true = (below & group.below) | (above & group.above) | ~(below | above) & group.same
    return true & known, ~true & known
