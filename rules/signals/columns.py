"""The inputs of an expression for chosen rows: fields, their hosts' fields, tags, windows, aggregates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from virtpilot.model import Kind, Subject
from virtpilot.rules.language.devices import DECLARED, NO_JOB, Device, Of
from virtpilot.rules.language.expression import Aggregate, Columns, Condition, Masks, Numbers, Window
from virtpilot.rules.signals.aggregates import Members, evaluate
from virtpilot.rules.signals.table import Where
from virtpilot.rules.signals.windows import gather

if TYPE_CHECKING:
    from virtpilot.rules.signals.world import World


SINGLE: Final = {device.value: device for device, declared in DECLARED.items() if not declared.tag}


class RowColumns:
    """Offers the rows `rows` of the subjects of a kind, or of devices, to expressions."""

    def __init__(self, world: World, kind: Of, rows: NDArray[np.int64], where: Where) -> None:
        self._world = world
        self._table = world.tables[kind]
        self._hosts = world.tables[Kind.HOST]
        self._kind = kind
        self._rows = rows
        self._where = where
        self._all: dict[str, Numbers] = {}
        self._extremes: dict[tuple[np.ufunc, str], Numbers] = {}
        self._fields: dict[tuple[str, str], Numbers] = {}
        self._windows: dict[tuple[str, str], Numbers] = {}
        self._tags: dict[str, NDArray[np.object_]] = {}
        self._devices: dict[Device, Members] = {}
        self._aggregates: dict[tuple[Kind, str], Numbers] = {}
        self._parts: dict[bytes, RowColumns] = {}

    def field(self, measurement: str, name: str) -> Numbers:
        """Return a field of each subject, or of its host; NaN where it is missing."""
        key = (measurement, name)
        found = self._fields.get(key)
        if found is None:
            found = self._fields[key] = self._gather(measurement, name)
        return found

    def _gather(self, measurement: str, name: str) -> Numbers:
        """Return a field; all fields are gathered at once, for one is seldom alone."""
        if measurement in SINGLE:
            return self._single(SINGLE[measurement], name)
        table = self._table if measurement == self._kind.value else self._hosts
        found: Numbers = self.fields(measurement)[table.column[name]]
        return found

    def fields(self, measurement: str) -> Numbers:
        """Return all fields of the subjects or of their hosts, a row a field in the table's order; to be read only.

        Of guests of one host the host's have one column for all of them.
        """
        found = self._all.get(measurement)
        if found is None:
            if measurement == self._kind.value:
                found = self._table.values[:, self._where]
            else:
                rows = self._table.host_row[self._where]
                if len(rows) and rows[0] >= 0 and np.count_nonzero(rows == rows[0]) == len(rows):
                    # One host's guests: a column stands for all of them.
                    found = self._hosts.values[:, rows[0] : rows[0] + 1]
                else:
                    found = np.where(rows >= 0, self._hosts.values.take(np.maximum(rows, 0), axis=1), np.nan)
            self._all[measurement] = found
        return found

    def several(self, measurement: str, names: tuple[str, ...]) -> Numbers:
        """Return fields of the subjects or of their hosts, a row a field; the host's may be one column for all."""
        table = self._table if measurement == self._kind.value else self._hosts
        found: Numbers = self.fields(measurement)[table.places(names)]
        return found

    def least(self, measurement: str, names: tuple[str, ...]) -> Numbers:
        """Return the least value of each of several fields, NaN where all are missing."""
        return self._extreme(np.fmin, measurement, names)

    def most(self, measurement: str, names: tuple[str, ...]) -> Numbers:
        """Return the greatest value of each of several fields, NaN where all are missing."""
        return self._extreme(np.fmax, measurement, names)

    def _extreme(self, extreme: np.ufunc, measurement: str, names: tuple[str, ...]) -> Numbers:
        """Return the extreme values of fields: of all fields at once, for one is seldom alone."""
        # Both leave NaN out; of nothing but NaN they are NaN, which compares with nothing.
        if measurement in SINGLE:
            return np.array([extreme.reduce(self.field(measurement, name), initial=np.nan) for name in names])
        key = (extreme, measurement)
        found = self._extremes.get(key)
        if found is None:
            found = self._extremes[key] = extreme.reduce(self.fields(measurement), axis=1, initial=np.nan)
        table = self._table if measurement == self._kind.value else self._hosts
        of_these: Numbers = found[table.places(names)]
        return of_these

    @property
    def kind(self) -> Of:
        """Whose rows they are."""
        return self._kind

    @property
    def where(self) -> Where:
        """The rows, as `whereabouts` has them."""
        return self._where

    def _single(self, device: Device, name: str) -> Numbers:
        """Return a field of the one device of a kind that each subject has, such as its job."""
        table, members = self._world.tables[device], self.devices(device)
        found = np.full(len(self._rows), np.nan)
        found[members.groups] = table.values[table.column[name], members.rows]
        return np.where(np.isnan(found), 0.0, found) if device is Device.JOB and name == NO_JOB else found

    def single_tag(self, device: Device, name: str) -> NDArray[np.object_]:
        """Return a tag of each subject's one device, "" where it has none."""
        members = self.devices(device)
        found = np.full(len(self._rows), "", np.object_)
        found[members.groups] = members.columns.tag(name)
        return found

    def devices(self, device: Device) -> Members:
        """Return the devices of a kind that the subjects have just now."""
        known = self._devices.get(device)
        if known is None:
            rows, places = self._world.devices[device].live(self._rows)
            known = self._devices[device] = Members(self._world.columns(device, rows), places, len(self._rows), rows)
        return known

    def tag(self, name: str) -> NDArray[np.object_]:
        """Return a tag of each subject, "" where it has none."""
        if name not in self._tags:
            subjects = self._table.subjects
            found = [tag_of(subject, name) if (subject := subjects[row]) else "" for row in self._rows.tolist()]
            self._tags[name] = np.array(found, dtype=np.object_)
        return self._tags[name]

    def window(self, window: Window) -> Numbers:
        """Return what a window says of each subject, or of its host, as of the last sample."""
        key = (window.on.value, window.text)
        found = self._windows.get(key)
        if found is None:
            rows = self._where if window.on is self._kind else self._table.host_row[self._where]
            found = self._windows[key] = self._world.windows.value(window, rows)
        return found

    def bound(self, window: Window, *, upper: bool) -> Numbers:
        """Return what a window says at most, or at least, of each subject, or of its host; infinite where not known."""
        rows = self._where if window.on is self._kind else self._table.host_row[self._where]
        return self._world.windows.bound(window, rows, upper=upper)

    def only(self, places: NDArray[np.int64]) -> RowColumns:
        """Return some of the rows, by their places."""
        key = places.tobytes()
        found = self._parts.get(key)
        if found is None:
            found = self._parts[key] = self._world.columns(self._kind, self._rows[places])
        return found

    def aggregate(self, aggregate: Aggregate) -> Numbers:
        """Return what is said of each subject's devices; at the last tick of its host's guests, or the cluster's."""
        if isinstance(aggregate.members, Device):
            known = self._aggregates.get(aggregate.key)
            if known is None:
                known = self._aggregates[aggregate.key] = evaluate(aggregate, self.devices(aggregate.members))
            return known
        values = self._world.aggregates.value(aggregate)
        if aggregate.scope is Kind.CLUSTER:
            return np.full(len(self._rows), values[0])
        if self._kind is Kind.HOST:
            found: Numbers = values[self._rows]
            return found
        return gather(values, self._table.host_row[self._rows])

    def signal(self, rule: str, within_ns: int) -> Numbers:
        """Tell (1, 0) whether a rule's signal fires on each subject, its host or the cluster; NaN where not known."""
        machine, rows = self._world.bank.machine(rule), self._rows
        times = self._table.time[rows]
        if machine is not None and machine.rule.on is not self._kind:
            cluster = self._world.tables[Kind.CLUSTER].row_of.get(self._world.cluster, -1)
            of_host = machine.rule.on is Kind.HOST
            rows = self._table.host_row[rows] if of_host else np.full(len(rows), cluster)
        return self._world.bank.fires(rule, rows, times, within_ns)


def tag_of(subject: Subject, name: str) -> str:
    """Return a tag; those that say who a subject is are kept with its name, not with the others."""
    match name:
        case "name":
            return subject.name
        case "host":
            return subject.host
        case "vm":
            return subject.tags.get("vm", subject.id)
        case _:
            return subject.tags.get(name, "")


def masks(condition: Condition, columns: Columns, count: int) -> Masks:
    """Evaluate a condition; a constant one becomes a whole column. Runs below `np.errstate` (division by zero)."""
    true, false = condition.evaluate(columns)
    if len(true) == len(false) == count:
        return true, false
    return np.broadcast_to(true, count), np.broadcast_to(false, count)
