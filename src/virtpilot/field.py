"""What is declared of a field: its name, unit, type, meaning and source; the tables are made of these."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec


class Unit(StrEnum):
    """What a field's number counts."""

    RATIO = "ratio"
    BYTES = "bytes"
    SECONDS = "seconds"
    COUNT = "count"
    PER_SECOND = "per_second"
    BYTES_PER_SECOND = "bytes_per_second"


class Type(StrEnum):
    """How a field behaves over time."""

    GAUGE = "gauge"
    COUNTER = "counter"


class Field(msgspec.Struct, frozen=True):
    """One field of a measurement: what it means and where it comes from."""

    measurement: str
    name: str
    unit: Unit
    type: Type
    meaning: str
    source: str


def rows(measurement: str, *given: tuple[str, Unit, Type, str, str]) -> list[Field]:
    """Return the fields of one measurement."""
    return [Field(measurement, *row) for row in given]


# How a name's end tells the unit, the longest first; what none of them fits counts things.
_ENDS: Final = {
    "_bytes_per_second": Unit.BYTES_PER_SECOND,
    "_per_second": Unit.PER_SECOND,
    "_bytes": Unit.BYTES,
    "_seconds": Unit.SECONDS,
    "_ratio": Unit.RATIO,
}


def named(measurement: str, source: str, *given: tuple[str, str, str]) -> list[Field]:
    """Return fields whose names tell unit and type: (name, meaning, what the source calls it)."""
    return [
        Field(
            measurement,
            name,
            _unit(name.removesuffix("_total")),
            Type.COUNTER if name.endswith("_total") else Type.GAUGE,
            meaning,
            f"{source} {theirs}".strip(),
        )
        for name, meaning, theirs in given
    ]


def _unit(name: str) -> Unit:
    return next((unit for end, unit in _ENDS.items() if name.endswith(end)), Unit.COUNT)
