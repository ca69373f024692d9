"""All that the rules can see: hosts, guests and the cluster as last measured, windows over them, aggregates of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Final

import numpy as np
from numpy.typing import NDArray

from virtpilot.model import Kind
from virtpilot.rules.language.devices import DECLARED, Device, Of
from virtpilot.rules.language.expression import Condition, Masks
from virtpilot.rules.language.records import RuleSet
from virtpilot.rules.signals.aggregates import Aggregates, of_samples
from virtpilot.rules.signals.bank import Bank
from virtpilot.rules.signals.columns import RowColumns, masks
from virtpilot.rules.signals.devices import DeviceTable
from virtpilot.rules.signals.panel import Panel
from virtpilot.rules.signals.reading import inputs
from virtpilot.rules.signals.saved import SavedRule
from virtpilot.rules.signals.scout import asked, asked_of, scout_of
from virtpilot.rules.signals.table import Row, Table, Where, whereabouts
from virtpilot.rules.signals.tolerance import Tolerance
from virtpilot.rules.signals.windows import Windows

# What is asked each second is remembered of so many: the effects that are awaited.
_MAX_HELD: Final = 4096


class World:
    """The tables, with what is derived from them."""

    def __init__(
        self,
        ruleset: RuleSet,
        also: Mapping[str, Iterable[str]],
        tolerance: Tolerance = Tolerance(),  # noqa: B008 - frozen
    ) -> None:
        wanted = {name: set(fields) for name, fields in ruleset.wanted().items()}
        for measurement, fields in also.items():
            wanted.setdefault(measurement, set()).update(fields)
        conditions = [condition for rule in ruleset.rules for condition in rule.conditions()]
        self.tables: dict[Of, Table] = {kind: Table(kind, wanted.get(kind.value, ())) for kind in Kind}
        self.devices = {
            device: DeviceTable(device, wanted[device.value], self.tables[DECLARED[device].owner], tolerance)
            for device in Device
            if device.value in wanted
        }
        self.tables |= dict[Of, Table](self.devices.items())
        windows = (window for one in conditions for window in one.reads.every_window.values())
        every = [a for one in conditions for a in one.reads.aggregates.values() if isinstance(a.members, Kind)]
        # Which members are meant is dear to tell where windows are read.
        dear = {a.key: a.chosen for a in every if a.chosen is not None and a.reads.windows}
        bounds = chain(*map(asked, ruleset.rules), *map(asked_of, dear.values()))
        self.windows = Windows(windows, self.tables, bounds)
        may = {key: scout_of(part) for key, part in dear.items()}
        self.aggregates = Aggregates(every, self.tables, self.windows, may)
        self.bank = Bank(ruleset.rules, self.tables)
        self.cluster = ""
        self._looked_at: object = None
        self._held: dict[tuple[Condition, str], tuple[tuple[int, ...], bool | None]] = {}
        self._capacity = {kind: table.capacity for kind, table in self.tables.items()}

    def columns(self, kind: Of, rows: NDArray[np.int64], where: Where | None = None) -> RowColumns:
        """Return the inputs of rows; `where` is what `whereabouts` says of them, if it is known."""
        return RowColumns(self, kind, rows, whereabouts(rows) if where is None else where)

    def grow(self, kind: Of) -> None:
        """Make room everywhere where a table has grown."""
        capacity = self.tables[kind].capacity
        if capacity != self._capacity[kind]:
            self._capacity[kind] = capacity
            self.windows.grow(kind, capacity)
            if isinstance(kind, Kind):
                self.bank.grow(kind, capacity)

    def take_over(self, former: World) -> Iterator[SavedRule]:
        """Go on with what a world knows that nobody uses any more, without a copy; yields rules that are no more."""
        for kind, table in self.tables.items():
            if kind in former.tables:
                table.take_over(former.tables[kind])
                self.grow(kind)
        self.cluster = former.cluster
        self.windows.take_over(former.windows)
        yield from self.bank.take_over(former.bank)

    def move(self, by_ns: int) -> None:
        """Move all times: of the newest samples, of the machines, of the windows' points."""
        for table in self.tables.values():
            table.move(by_ns)
        self.bank.move(by_ns)
        self.windows.move(by_ns)

    def remove(self, kind: Of, subject_id: str) -> None:
        """Forget a subject with its devices, or a device."""
        row = self.tables[kind].row_of[subject_id]
        self.tables[kind].remove(subject_id)
        self.windows.clear(kind, row)
        if kind is Kind.HOST:
            # The row will be another host's.
            guests = self.tables[Kind.VM]
            guests.host_row[guests.host_row == row] = -1
            self.aggregates.clear(row)
        for device, table in self.devices.items():
            if table.declared.owner is kind:
                for one in table.named(subject_id):
                    self.remove(device, one)

    def forget_devices(self, oldest_ns: int, newest_ns: int) -> None:
        """Forget the devices whose last sample is not of this span of time: they have gone."""
        for device, table in self.devices.items():
            rows = table.taken()
            gone = (table.time[rows] < oldest_ns) | (table.time[rows] > newest_ns)
            for one in table.ids(rows[gone]):
                self.remove(device, one)

    def find_hosts(self) -> None:
        """Join every guest to its host anew."""
        guests, hosts = self.tables[Kind.VM], self.tables[Kind.HOST]
        for _id, row in guests.rows():
            subject = guests.subjects[row]
            guests.host_row[row] = hosts.row_of.get(subject.host, -1) if subject is not None else -1

    def look_around(self, quiet: Mapping[Kind, Iterable[str]]) -> None:
        """Take the aggregates over all hosts and guests but those that are silent; the same as before of the same."""
        if not len(self.aggregates):
            return
        seen = self._seen(quiet)
        if seen == self._looked_at and not self.aggregates.asking:
            return
        self._looked_at = seen
        for kind in (Kind.HOST, Kind.VM):
            table, rows = self.tables[kind], self.aggregates.rows(kind)
            silent = [table.row_of[subject_id] for subject_id in quiet.get(kind, ())]
            counted = rows[~np.isin(rows, silent)] if silent else rows
            with np.errstate(all="ignore"):
                self.aggregates.take(kind, counted, partial(self.columns, kind))

    def _seen(self, quiet: Mapping[Kind, Iterable[str]]) -> object:
        """Return what is another one whenever anybody is measured, comes, goes, becomes another one or falls silent."""
        read = [self.tables[kind] for kind in (Kind if self.aggregates.alone else self.tables)]
        known = [(table.changes, table.moves, int(table.time.sum())) for table in read]
        return known, {kind: tuple(those) for kind, those in quiet.items()}

    def holds(self, condition: Condition, subject_id: str, after_ns: int) -> bool | None:
        """Tell whether a condition holds by a sample after `after_ns`; None while that is not known."""
        table = self.tables[condition.on]
        row = table.row_of.get(subject_id)
        if row is None or table.time[row] <= after_ns:
            return None
        hosts, key = self.tables[Kind.HOST], (condition, subject_id)
        times = (int(table.time[row]), int(hosts.time[table.host_row[row]]))
        stamp = (*times, table.changes, table.moves, hosts.changes, hosts.moves)
        known = self._held.get(key)
        if known is not None and known[0] == stamp:
            return known[1]
        with np.errstate(all="ignore"):
            true, false = masks(condition, self._one(condition.on, row), 1)
        found = True if true[0] else False if false[0] else None
        if of_samples(condition.reads, condition.on):
            if len(self._held) >= _MAX_HELD:
                self._held.clear()
            self._held[key] = (stamp, found)
        return found

    def truths(self, kind: Kind, conditions: Iterable[Condition], ids: Sequence[str]) -> list[Masks]:
        """Return for each condition of which subjects it is true and of which false now; all of them must be known."""
        row_of = self.tables[kind].row_of
        rows = np.fromiter((row_of[subject_id] for subject_id in ids), np.int64, len(ids))
        columns = self.columns(kind, rows)
        with np.errstate(all="ignore"):
            return [masks(condition, columns, len(rows)) for condition in conditions]

    def look(self, panel: Panel, ids: Sequence[str]) -> Masks:
        """Return of which subjects each condition of a panel is true and of which false now; all must be known."""
        row_of = self.tables[panel.kind].row_of
        rows = np.fromiter((row_of[subject_id] for subject_id in ids), np.int64, len(ids))
        return panel.look(self.columns(panel.kind, rows), len(rows))

    def inputs(self, condition: Condition, rows: NDArray[np.int64]) -> list[dict[str, float]]:
        """Return what a condition reads of each of some rows just now, by name."""
        return inputs(self, self.columns(condition.on, rows), [condition], len(rows))

    def inputs_of(self, conditions: Sequence[Condition], row: int) -> dict[str, float]:
        """Return what conditions about one kind read of a row just now, by name."""
        return inputs(self, self._one(conditions[0].on, row), conditions, 1)[0]

    def _one(self, kind: Kind, row: int) -> RowColumns:
        return self.columns(kind, np.array([row], np.int64), slice(row, row + 1))

    def row(self, kind: Kind, subject_id: str) -> Row | None:
        """Return a subject as last measured, None where it is not known."""
        table = self.tables[kind]
        row = table.row_of.get(subject_id)
        if row is None:
            return None
        subject = table.subjects[row]
        assert subject is not None  # noqa: S101 - `row_of` names taken rows only
        values = table.present(row)
        on = int(table.host_row[row])
        if on >= 0:
            values |= {f"host.{name}": value for name, value in self.tables[Kind.HOST].present(on).items()}
        return Row(subject, int(table.time[row]), int(table.since[row]), values)
