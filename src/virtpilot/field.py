"""What is declared of a field: its name, unit, type, meaning and source; the tables are made of these."""

from __future__ import annotations

from enum import StrEnum

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
