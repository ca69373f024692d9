"""A guest's values by its layout: the fields of all of its samples, in one go.

Nearly always all numbers are counts, the guest runs and no counter was reset. Then a function reads it that is written
for the layout, as a person would write it for one kind of guest: half of the time that any loop over the fields takes.
Anything else is read value by value.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from functools import lru_cache
from math import nan
from typing import Any, Final, NamedTuple

from virtpilot.collectors.layout import Layout, Stats, layout_of

Fields = dict[str, int | float]
Counters = tuple[Any, ...]

RUNNING: Final = 1
_MAX: Final = 2**64
_FLAG: Final = ".halted"  # what is true or false, and nothing else is: told as 1 or 0
MAX_WRITTEN: Final = 2000  # numbers: to write a function takes some 50 us for each


class Read(NamedTuple):
    """What was read: counters for the next time, rates (NaN where not known), the fields of the guest and its parts."""

    counters: Counters
    rates: tuple[float, ...]
    fields: list[Fields]


Whole = Callable[[Stats, Counters, float], Read | None]


@lru_cache(maxsize=128)
def reader_of(told: tuple[str, ...]) -> Reader:
    """Return what reads the guests that are told of under these names."""
    return Reader(layout_of(told))


class Reader:
    """Reads the guests of one layout."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._whole = _written(layout) if len(layout.numbers) <= MAX_WRITTEN else None

    def read(self, stats: Stats, before: Counters, elapsed_s: float) -> Read:
        """Return a guest's values; without rates where `elapsed_s` is 0, for then nothing comparable came before."""
        if elapsed_s and self._whole is not None:
            try:
                found = self._whole(stats, before, elapsed_s)
            except struct.error:  # a number is no count
                found = None
            if found is not None:
                return found
        return self.read_any(stats, before, elapsed_s)

    def read_any(self, stats: Stats, before: Counters, elapsed_s: float) -> Read:
        """Return the same of any guest; what is no number is absent, and so is a rate that is not known."""
        layout = self.layout
        numbers = [_count(stats[key], key.endswith(_FLAG)) for key in layout.numbers]
        counters = tuple([numbers[place] for place in layout.counters])
        grown = [now - former for now, former in zip(counters, before, strict=True)]
        rates = tuple([one / elapsed_s if elapsed_s and one >= 0 else nan for one in grown])
        values = (*numbers, *(numbers[place] * factor for place, factor in layout.scaled), *rates)
        fields = [
            {
                field: values[place]
                for field, place in zip(part.fields, part.places, strict=True)
                if values[place] == values[place]  # not NaN
            }
            for part in (layout.guest, *layout.parts)
        ]
        if fields[0].get("state_code") == RUNNING:
            for total, places in layout.totals.items():
                known = [rates[place] for place in places if rates[place] >= 0]
                if known:
                    fields[0][total] = sum(known)
        return Read(counters, rates, fields)


def number(value: object) -> int | float | None:
    """Return a number that can be one of libvirt's counts; anything else is absent."""
    if value.__class__ is int or value.__class__ is float:
        return value if 0 <= value < _MAX else None
    return None


def _count(value: object, flag: bool) -> int | float:
    """Return a number, NaN for what is none; true is 1 and false 0, and a flag is nothing else."""
    if flag or isinstance(value, bool):
        return int(value) if isinstance(value, bool) else nan
    found = number(value)
    return nan if found is None else found


def _written(layout: Layout) -> Whole:
    """Return a function that reads a layout's guests; of those that it cannot read it returns None or raises.

    Names of our tables stand in its source, whole numbers and factors, and nothing that anybody tells.
    """
    names = {"pack": struct.Struct(f"{len(layout.numbers)}Q").pack, "Read": Read, "nan": nan}
    exec(compile("\n".join(_lines(layout)), "<layout>", "exec"), names)  # noqa: S102 - see above
    whole: Whole = names["whole"]  # type: ignore[assignment] # what has just been made
    return whole


def _lines(layout: Layout) -> Iterator[str]:
    """Yield the source: each number as n0, n1, ..., each counter before as b0, ..., each rate as r0, ..."""
    numbers = [f"n{place}" for place in range(len(layout.numbers))]
    counters = [numbers[place] for place in layout.counters]
    rates = [f"r{place}" for place in range(len(counters))]
    scaled = [f"{numbers[place]} * {factor!r}" for place, factor in layout.scaled]
    flags = {number for number, key in zip(numbers, layout.numbers, strict=True) if key.endswith(_FLAG)}
    values = [*[f"+{number}" for number in numbers], *scaled, *rates]  # of a truth this makes a number
    state = {field: values[place] for field, place in zip(layout.guest.fields, layout.guest.places, strict=True)}
    yield "def whole(stats, before, elapsed_s):"
    yield from (f"  {number} = stats[{key!r}]" for number, key in zip(numbers, layout.numbers, strict=True))
    yield f"  if {state.get('state_code')} != {RUNNING}: return None"
    yield from (f"  if {flag} is not True and {flag} is not False: return None" for flag in sorted(flags))
    yield f"  pack({', '.join(numbers)})"
    for place, (rate, counter) in enumerate(zip(rates, counters, strict=True)):
        yield f"  {rate} = ({counter} - before[{place}]) / elapsed_s"
    yield from (f"  if not {rate} >= 0: return None" for rate in rates)  # nothing is true of NaN
    totals = {total: " + ".join(rates[place] for place in places) for total, places in layout.totals.items()}
    dicts = [
        dict(zip(part.fields, [values[place] for place in part.places], strict=True))
        for part in (layout.guest, *layout.parts)
    ]
    dicts[0] |= totals
    told = ", ".join("{" + ", ".join(f"{field!r}: {value}" for field, value in one.items()) + "}" for one in dicts)
    yield f"  return Read({_tuple(counters)}, {_tuple(rates)}, [{told}])"


def _tuple(words: list[str]) -> str:
    return f"({', '.join(words)}{',' * (len(words) == 1)})"
