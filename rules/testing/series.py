"""The notation of series, as in promtool: what a field measures at each tick.

`0.3` a value · `0.3x4` it and four more like it · `0.1+0.05x4` it and four more, each 0.05 more than the one before ·
`_` no value at this tick · `_x4` at four ticks · `stale` no value from here on. Values may have units: `95%`, `64MiB`.
After its last item a series keeps its last value, so that what does not change is said once, unless that is `stale`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import msgspec

from virtpilot.fields import Unit
from virtpilot.rules.language.units import quantity

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_TICKS: Final = 100_000
MAX_LENGTH: Final = 20_000
_ITEM: Final = re.compile(r"\S+")
_NUMBER: Final = r"[0-9]+(?:\.[0-9]+)?(?:%|[A-Za-z]+(?:/s)?)??"
_VALUES: Final = re.compile(rf"(-?{_NUMBER})(?:([+-])({_NUMBER}))?(?:x([0-9]+))?")
_MISSING: Final = re.compile(r"_(?:x([0-9]+))?")


class SeriesError(Exception):
    """A mistake in a series; `column` counts from 0 within its text."""

    def __init__(self, column: int, message: str) -> None:
        self.column = column
        self.message = message
        super().__init__(message)


class Series(msgspec.Struct, frozen=True):
    """The values of a field, one a tick; None where there is none; `rest` is what comes after them."""

    values: tuple[float | None, ...]
    rest: float | None

    def at(self, tick: int) -> float | None:
        """Return the value at a tick counted from 0."""
        return self.values[tick] if tick < len(self.values) else self.rest

    def between(self, first: int, last: int) -> NDArray[np.float64]:
        """Return the values at several ticks, NaN where there is none."""
        import numpy as np

        own = self.values[first : last + 1]
        return np.array([*own, *[self.rest] * (last + 1 - first - len(own))], np.float64)


def series(text: str, unit: Unit | None = None) -> Series:
    """Read a series of a field whose unit is `unit`; raises SeriesError."""
    if len(text) > MAX_LENGTH:
        raise SeriesError(0, f"longer than {MAX_LENGTH} characters")
    values: list[float | None] = []
    rest: float | None = None
    for match in _ITEM.finditer(text):
        try:
            more = _expanded(match[0], unit, MAX_TICKS - len(values))
        except ValueError as error:
            raise SeriesError(match.start(), str(error)) from None
        values += more
        rest = None if match[0] == "stale" else rest if more[-1:] in ([], [None]) else more[-1]
    if not values:
        raise SeriesError(0, "a series has at least one item, such as `0.3x10`")
    return Series(tuple(values), rest)


def _expanded(item: str, unit: Unit | None, room: int) -> list[float | None]:
    if room < 1:
        raise ValueError(f"a series has {MAX_TICKS} ticks at most")
    if item == "stale":
        return [None]
    missing = _MISSING.fullmatch(item)
    if missing is not None:
        count = _count(missing[1] or "1", room)
        return [None] * count
    found = _VALUES.fullmatch(item)
    if found is None:
        raise ValueError(f"{item[:40]!r} is no item of a series: write 0.3, 0.3x4, 0.1+0.05x4, _, _x4 or stale")
    first = _value(found[1], unit)
    step = 0.0 if found[3] is None else _value(found[3], unit) * (-1 if found[2] == "-" else 1)
    more = 0 if found[4] is None else _count(found[4], room - 1)
    return list(_steps(first, step, more))


def _steps(first: float, step: float, more: int) -> Iterator[float]:
    """Yield values as a person would write them: 0.06, not what binary fractions add up to."""
    yield from (float(f"{first + step * number:.12g}") for number in range(more + 1))


def _count(text: str, room: int) -> int:
    if len(text) > 9 or int(text) > room:
        raise ValueError(f"a series has {MAX_TICKS} ticks at most")
    return int(text)


def _value(text: str, unit: Unit | None) -> float:
    found = quantity(text.removeprefix("-"))
    if found.unit is not None and unit is not None and found.unit is not unit:
        raise ValueError(f"{text!r} is {found.unit}, the field is {unit}")
    return -found.value if text.startswith("-") else found.value
