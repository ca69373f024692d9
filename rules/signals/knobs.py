"""The newest measured values of guests' knobs, in columns: they come with each tick and hardly ever change."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from virtpilot.lineblocks import Block, Lines
from virtpilot.linecolumns import heads_of
from virtpilot.model import Sample
from virtpilot.remembered import Remembered
from virtpilot.rules.signals.intake import Intake

_MEASUREMENT: Final = "knob"
_FIELD: Final = "value_count"
_FIRST_ROWS: Final = 64

Known = tuple[str, str, float, int]
"""A guest's id, its knob, the value and when it was that."""


class Knobs:
    """A row a knob of a guest; one that was never news has the time 0."""

    def __init__(self, known: Iterable[Known] = ()) -> None:
        each = {(guest, knob): (value, at) for guest, knob, value, at in known}
        self._row_of = {key: row for row, key in enumerate(each)}
        self._value = np.array([value for value, _at in each.values()] + [0.0] * _FIRST_ROWS, np.float64)
        self._time = np.array([at for _value, at in each.values()] + [0] * _FIRST_ROWS, np.int64)
        self._rows: Remembered[NDArray[np.int64]] = Remembered()

    def get(self, guest: str, knob: str) -> tuple[float, int] | None:
        """Return a knob's value and when it was that, None where it is not known."""
        row = self._row_of.get((guest, knob))
        return None if row is None or not self._time[row] else (float(self._value[row]), int(self._time[row]))

    def __iter__(self) -> Iterator[Known]:
        values, times = self._value.tolist(), self._time.tolist()
        return ((guest, knob, values[row], times[row]) for (guest, knob), row in self._row_of.items() if times[row])

    def take(self, lines: Lines, intake: Intake) -> None:
        """Take what a message says of knobs, where it is news."""
        for sample in lines.others.values():
            self.take_sample(sample, intake)
        for block in lines.blocks:
            if block.measurement == _MEASUREMENT:
                self._take_block(block, intake)

    def take_sample(self, sample: Sample, intake: Intake) -> None:
        """Take a sample, if it is one of a knob and news."""
        value = sample.fields.get(_FIELD)
        if sample.measurement == _MEASUREMENT and value is not None:
            self._take(sample.tags, float(value), sample.time_ns, intake)

    def _take(self, tags: Mapping[str, str], value: float, time_ns: int, intake: Intake) -> None:
        row = self._row(tags)
        if row >= 0 and intake.timely(time_ns, int(self._time[row])):
            self._value[row], self._time[row] = value, time_ns

    def _take_block(self, block: Block, intake: Intake) -> None:
        """Take lines at once where all are news of knobs, one by one otherwise."""
        rows, values = self._rows.get(block.heads), block.values[block.names.index(_FIELD)]
        if rows is not None and intake.are_news(block.times, self._time[rows]):
            self._value[rows], self._time[rows] = values, block.times
            return
        tags = heads_of(block.heads).tags
        for own, value, time_ns in zip(tags, values.tolist(), block.times.tolist(), strict=True):
            self._take(own, value, time_ns, intake)
        found = [self._row(own) for own in tags]
        if rows is None and -1 not in found and len(set(found)) == len(found):
            self._rows.put(block.heads, np.array(found, np.int64))

    def _row(self, tags: Mapping[str, str]) -> int:
        """Return a knob's row, a fresh one where it is new; below 0 where it is not said whose or which it is."""
        guest, knob = tags.get("vm"), tags.get("knob")
        if not guest or not knob:
            return -1
        row = self._row_of.setdefault((guest, knob), len(self._row_of))
        if row == len(self._time):
            self._value, self._time = np.pad(self._value, (0, row)), np.pad(self._time, (0, row))
        return row

    def move(self, by_ns: int) -> None:
        """Move all times."""
        self._time[self._time != 0] += by_ns

    def between(self, oldest_ns: int, newest_ns: int) -> Knobs:
        """Return those that were measured within a span of time: the same where all were."""
        times = self._time[: len(self._row_of)]
        if np.count_nonzero((oldest_ns <= times) & (times <= newest_ns)) == len(times):
            return self
        return Knobs(one for one in self if oldest_ns <= one[3] <= newest_ns)
