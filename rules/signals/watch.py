"""What a rule's condition hangs on, where that can be told by looking for change alone.

A condition such as `flaps(state_code, 30m) > 5` that does not hold of a subject can begin to hold only with a sample in
which the state is another one; `cpu_steal_ratio > 10%` only with one on the other side of the threshold. Of rules that
are made of nothing else most messages are told apart so, without a look at windows or devices.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from virtpilot.model import Kind, Sample
from virtpilot.rules.language.devices import NO_JOB, Device
from virtpilot.rules.language.records import NoData, Rule
from virtpilot.rules.language.typed import COMPARE, Aggregate, Numbers, Part, Window
from virtpilot.rules.signals.scout import against_number, meant
from virtpilot.rules.signals.table import Where

_JOINED: Final = frozenset({"and", "or", "not"})
_DEVICES: Final = frozenset(Device)
# What is compared so is a code: few numbers, seldom another one.
_EQUAL: Final = frozenset({"==", "!="})
_LAYOUTS: Final = 64


class Watched(NamedTuple):
    """A field whose change matters; with a sign and a number only where it comes to stand otherwise to that."""

    measurement: str
    field: str
    sign: str = ""
    number: float = 0.0

    @property
    def device(self) -> Device | None:
        """Whose field it is, where it is a device's; without a field it is which device that is."""
        return Device(self.measurement) if self.measurement in _DEVICES else None


class Fields:
    """What is watched of one measurement, looked at together; `column` is where each field is in its table."""

    def __init__(self, found: Sequence[Watched], column: Mapping[str, int]) -> None:
        self._plain = [one for one in found if not one.sign]
        self._crossed = [one for one in found if one.sign]
        self._names = [one.field for one in (*self._plain, *self._crossed)]
        self._columns = np.array([column[name] for name in self._names], np.int64)
        self._places: dict[tuple[str, ...], NDArray[np.int64]] = {}

    def of_table(self, values: Numbers, where: Where) -> Numbers:
        """Return the fields of rows of their table, a row a field."""
        found: Numbers = values[self._columns if isinstance(where, slice) else self._columns[:, None], where]
        return found

    def of_columns(self, names: tuple[str, ...], values: Numbers) -> Numbers:
        """Return the fields among given ones; one that is not given is missing."""
        places = self._places.get(names)
        if places is None:
            if len(self._places) >= _LAYOUTS:
                self._places.clear()
            places = np.array([names.index(name) if name in names else -1 for name in self._names], np.int64)
            self._places[names] = places
        found: Numbers = values[places]
        found[places < 0] = np.nan
        return found

    def of_samples(self, samples: Sequence[Sample]) -> Numbers:
        """Return the fields of samples."""
        return np.array([[sample.fields.get(name, np.nan) for sample in samples] for name in self._names], np.float64)

    def changed(self, old: Numbers, new: Numbers) -> Iterator[tuple[Watched, NDArray[np.bool_]]]:
        """Yield what has changed so that it matters, and on which rows."""
        count = len(self._plain)
        # Of numbers that hardly ever change their bytes tell it soonest, whatever stands for a missing one.
        if old[:count].tobytes() != new[:count].tobytes():
            gone = np.isnan(old[:count])
            changed = (old[:count] != new[:count]) & ~(gone & np.isnan(new[:count]))
            yield from ((self._plain[at], changed[at]) for at in np.flatnonzero(changed.any(axis=1)).tolist())
        for one, before, after in zip(self._crossed, old[count:], new[count:], strict=True):
            compare = COMPARE[one.sign]
            other = compare(before, one.number) != compare(after, one.number)
            other |= np.isnan(before) != np.isnan(after)
            if np.count_nonzero(other):
                yield one, other


def watched(rule: Rule) -> frozenset[Watched] | None:
    """Return what a rule hangs on; None where that is more than changes, such as a mean or other rules' signals.

    A rule's times are none of it.
    """
    if rule.no_data is NoData.FIRE or rule.on is Kind.CLUSTER:
        return None
    found = set[Watched]()
    for condition in (rule.when, rule.where, rule.unless):
        for one in _of(condition.part) if condition is not None else ():
            if one is None:
                return None
            found.add(one)
    return frozenset(found)


def _of(part: Part) -> Iterator[Watched | None]:
    """Yield what a truth hangs on, None for what cannot be told."""
    if part.sign in _JOINED:
        for inner in part.parts:
            yield from _of(inner)
        return
    found = against_number(part)
    if found is not None:
        yield from _compared(*found)
    elif part.sign in COMPARE and all(one.kind == "text" for one in part.parts):
        # A subject's own tags are its own; those of its job are another job's, and that is told of as a change.
        yield Watched(Device.JOB.value, "")
    else:
        yield None


def _compared(source: object, sign: str, number: float) -> Iterator[Watched | None]:
    chosen = meant(source, sign, number)
    if chosen is not None and isinstance(source, Aggregate):
        yield from _of(chosen)
    elif isinstance(source, Window):
        grows = source.function == "flaps" or (source.function == "delta" and source.what == "counter")
        # Without a change it does not grow, and it is 0 when it becomes known.
        if grows and ((sign == ">" and number >= 0) or (sign == ">=" and number > 0)) and source.over is not None:
            over = source.over
            field = over.source if over.kind == "number" else None
            if isinstance(field, tuple) and field[1] != NO_JOB:
                yield Watched(field[0], field[1])
            else:
                yield from _of(over) if over.kind == "truth" else (None,)
        else:
            yield None
    # That there is no job is not told of by a job.
    elif isinstance(source, tuple) and source[1] != NO_JOB:
        yield Watched(*source) if sign in _EQUAL else Watched(source[0], source[1], sign, number)
    else:
        yield None
