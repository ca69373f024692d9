"""The inputs of an expression for chosen rows: their own fields, those of their hosts, their tags."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from virtpilot.model import Subject
from virtpilot.rules.language.expression import Condition, Masks, Numbers
from virtpilot.rules.signals.table import Table


class RowColumns:
    """Offers the rows `rows` of a table to expressions."""

    def __init__(self, table: Table, hosts: Table, rows: NDArray[np.int64]) -> None:
        self._table = table
        self._hosts = hosts
        self._rows = rows
        self._fields: dict[tuple[str, str], Numbers] = {}
        self._tags: dict[str, NDArray[np.object_]] = {}

    def field(self, measurement: str, name: str) -> Numbers:
        """Return a field of each subject, or of its host; NaN where it is missing."""
        key = (measurement, name)
        found = self._fields.get(key)
        if found is None:
            found = self._fields[key] = self._gather(measurement, name)
        return found

    def _gather(self, measurement: str, name: str) -> Numbers:
        table, rows = self._table, self._rows
        if measurement == table.kind.value:
            found: Numbers = table.values[table.column[name], rows]
            return found
        on = table.host_row[rows]
        return np.where(on >= 0, self._hosts.values[self._hosts.column[name], np.maximum(on, 0)], np.nan)

    def tag(self, name: str) -> NDArray[np.object_]:
        """Return a tag of each subject, "" where it has none."""
        if name not in self._tags:
            subjects = self._table.subjects
            found = [_tag(subject, name) if (subject := subjects[row]) else "" for row in self._rows.tolist()]
            self._tags[name] = np.array(found, dtype=np.object_)
        return self._tags[name]


def _tag(subject: Subject, name: str) -> str:
    """Return a tag; those that say who a subject is are kept with its name, not with the others."""
    match name:
        case "name":
            return subject.name
        case "host":
            return subject.host
        case "vm":
            return subject.id
        case _:
            return subject.tags.get(name, "")


def masks(condition: Condition, columns: RowColumns, count: int) -> Masks:
    """Evaluate a condition; a constant one becomes a whole column. Runs below `np.errstate` (division by zero)."""
    true, false = condition.evaluate(columns)
    if len(true) == len(false) == count:
        return true, false
    return np.broadcast_to(true, count), np.broadcast_to(false, count)
