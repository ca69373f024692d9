"""The newest values of devices, and which of them belong to a guest or a host just now."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from virtpilot.model import Subject
from virtpilot.rules.language.devices import DECLARED, Device
from virtpilot.rules.language.typed import Numbers
from virtpilot.rules.signals.table import Cause, Table, Where
from virtpilot.rules.signals.tolerance import Tolerance

BETWEEN: Final = "\x1f"
"""Stands between the owner's id and the device's name in a device's id: no tag holds it."""
_NONE: Final[NDArray[np.int64]] = np.zeros(0, np.int64)
MAX_OF_ONE: Final = 512
"""So many devices of a kind a guest or host can have; what comes beyond that is not looked at."""


def device_id(owner: str, name: str) -> str:
    """Return the id of a device."""
    return f"{owner}{BETWEEN}{name}"


class DeviceTable(Table):
    """The devices of one kind, a row each."""

    def __init__(self, device: Device, fields: Iterable[str], owners: Table, tolerance: Tolerance) -> None:
        super().__init__(device, fields)
        self.declared = DECLARED[device]
        self._owners = owners
        self._tolerance = tolerance
        self._of: dict[str, list[tuple[str, int]]] = {}
        self._index: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]] | None = None
        self._state = (-1, -1)
        self._watched: NDArray[np.int64] = np.zeros(0, np.int64)
        self._fresh: NDArray[np.bool_] = np.zeros(self.capacity, np.bool_)
        self._fresh_count = 0

    def watch(self, field: str) -> None:
        """Note from now on which devices have another value of a field, too; "" for none."""
        if field:
            self._watched = np.union1d(self._watched, [self.column[field]])

    def fresh(self, owner_rows: NDArray[np.int64]) -> NDArray[np.bool_] | None:
        """Tell which owners have a device that has changed since this was last asked; None where none has.

        It is new, or another one under its name, or a watched field has another value.
        """
        if not self._fresh_count:
            return None
        rows, places = self.live(owner_rows)
        noted = self._fresh[rows]
        self._fresh[rows] = False
        self._fresh_count -= int(np.count_nonzero(noted))
        found = np.zeros(len(owner_rows), np.bool_)
        found[places[noted]] = True
        return found

    def _note(self, rows: NDArray[np.int64]) -> None:
        if len(rows):
            self._fresh_count += int(np.count_nonzero(~self._fresh[rows]))
            self._fresh[rows] = True

    def take(
        self,
        rows: NDArray[np.int64],
        times: NDArray[np.int64],
        subjects: Sequence[Subject],
        fields: Sequence[Mapping[str, float]],
        cause: Cause,
    ) -> None:
        """Replace the values of some devices, each once; a field that a sample lacks is missing from now on."""
        others = [row for row, one in zip(rows.tolist(), subjects, strict=True) if self.subjects[row] is not one]
        before = self._seen(rows)
        self._note_returned(rows, times)
        super().take(rows, times, subjects, fields, cause)
        self._note(np.array(others, np.int64))
        self._compare(rows, before)

    def take_columns(
        self, rows: Where, times: NDArray[np.int64], names: tuple[str, ...], values: Numbers, cause: Cause
    ) -> None:
        """Replace the values of devices that are still the same, each once; a field that is not given is missing."""
        before = self._seen(rows)
        self._note_returned(rows, times)
        super().take_columns(rows, times, names, values, cause)
        self._compare(rows, before)

    def _note_returned(self, rows: Where, times: NDArray[np.int64]) -> None:
        """Note those that were not measured for so long that they may have been taken for gone."""
        back = times - self.time[rows] > self._tolerance.stale_ns
        if np.count_nonzero(back):
            self._note(np.arange(self.capacity)[rows][back])

    def _seen(self, rows: Where) -> Numbers:
        """Return a copy of the watched fields."""
        if isinstance(rows, slice):
            return self.values[self._watched, rows]
        found: Numbers = self.values[self._watched[:, None], rows]
        return found

    def _compare(self, rows: Where, before: Numbers) -> None:
        if not len(before):
            return
        after = self._seen(rows)
        changed = (after != before) & ~(np.isnan(after) & np.isnan(before))
        if np.count_nonzero(changed):
            self._note(np.arange(self.capacity)[rows][changed.any(axis=0)])

    def has_room(self, owner: str) -> bool:
        """Tell whether an owner may have one more."""
        return len(self._of.get(owner, ())) < MAX_OF_ONE

    def add(self, subject_id: str) -> int:
        """Return the row of a device, a fresh one where it is new."""
        known = self.row_of.get(subject_id)
        if known is not None:
            return known
        row = super().add(subject_id)
        self._note(np.array([row]))
        owner, _between, name = subject_id.partition(BETWEEN)
        insort(self._of.setdefault(owner, []), (name, row))
        return row

    def remove(self, subject_id: str) -> None:
        """Forget a device."""
        owner, _between, name = subject_id.partition(BETWEEN)
        left = self._of[owner]
        left.remove((name, self.row_of[subject_id]))
        if not left:
            del self._of[owner]
        super().remove(subject_id)

    def _grow(self) -> None:
        super()._grow()
        self._fresh = np.pad(self._fresh, (0, self.capacity - len(self._fresh)))

    def take_over(self, former: Table) -> None:
        """Go on with the rows of a table that nobody uses any more."""
        super().take_over(former)
        self._fresh = np.zeros(self.capacity, np.bool_)
        self._fresh_count = 0
        self._note(self.taken())
        for one, row in self.row_of.items():
            owner, _between, name = one.partition(BETWEEN)
            insort(self._of.setdefault(owner, []), (name, row))

    def named(self, owner: str) -> list[str]:
        """Return the ids of an owner's devices."""
        return [device_id(owner, name) for name, _row in self._of.get(owner, ())]

    def name(self, row: int) -> str:
        """Return what a device is called by its owner."""
        subject = self.subjects[row]
        return "" if subject is None else subject.id.partition(BETWEEN)[2]

    def live(self, owner_rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the devices that some owners have just now, in order of their names, each with its owner's place.

        One that has not been measured with its owner for too long has gone.
        """
        rows, places = self._of_owners(owner_rows)
        if not len(rows):
            return rows, places
        usual = self._tolerance.gap_intervals * self.interval[rows]
        silence = self._owners.time[owner_rows][places] - self.time[rows]
        here = silence <= np.maximum(self._tolerance.stale_ns, usual)
        return rows[here], places[here]

    def _of_owners(self, owner_rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the devices of some owners and whose they are.

        Where nobody has come or gone since the last call, by where each owner's stand among those of all owners.
        """
        if not self.row_of:
            return _NONE, _NONE
        state = (self.changes, self._owners.changes)
        if self._state != state:
            self._state, self._index = state, None
            subjects = [self._owners.subjects[row] for row in owner_rows.tolist()]
            found = [self._of.get(subject.id, ()) if subject is not None else () for subject in subjects]
            rows = np.array([row for own in found for _name, row in own], np.int64)
            return rows, np.repeat(np.arange(len(found)), [len(own) for own in found])
        if self._index is None:
            self._index = self._every()
        every, first, count = self._index
        counts = count[owner_rows]
        places = np.repeat(np.arange(len(counts)), counts)
        before = np.cumsum(counts) - counts
        return every[(first[owner_rows] - before)[places] + np.arange(len(places))], places

    def _every(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return the devices of all owners, and of each owner where its own begin and how many there are."""
        first, count = np.zeros((2, self._owners.capacity), np.int64)
        rows: list[int] = []
        for owner, own in self._of.items():
            at = self._owners.row_of.get(owner)
            if at is not None:
                first[at], count[at] = len(rows), len(own)
                rows += [row for _name, row in own]
        return np.array(rows, np.int64), first, count
