"""Samples into tables, column by column.

Samples are taken in the order in which they come, however they are batched: a batch is cut into segments in which each
subject occurs once and no host comes after one of its guests, and a segment is put and then evaluated as a whole.
A device is looked at with its owner's next sample: what comes after that sample in a segment is put after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from virtpilot.model import Kind, Sample, Subject
from virtpilot.rules.language.devices import Device
from virtpilot.rules.signals.devices import DeviceTable
from virtpilot.rules.signals.subjects import Subjects
from virtpilot.rules.signals.table import Table, Where
from virtpilot.rules.signals.tolerance import Tolerance
from virtpilot.rules.signals.world import World

_OFF: Final = frozenset({5, 6})  # virDomainState: shut off, crashed
_NEVER_NS: Final = np.iinfo(np.int64).max


class Entries(NamedTuple):
    """Samples of one kind that are in their table: row, time, patience, and their places in the batch."""

    rows: NDArray[np.int64]
    times: NDArray[np.int64]
    patience: NDArray[np.int64]
    orders: Sequence[int] | NDArray[np.int64]
    where: Where | None = None
    """The rows as `whereabouts` has them, if that was looked for already."""


Segment = dict[Kind, Entries]


class _Part:
    """Samples of one kind that wait to be put."""

    def __init__(self) -> None:
        self.taken: set[int] = set()
        self.rows: list[int] = []
        self.orders: list[int] = []
        self.subjects: list[Subject] = []
        self.samples: list[Sample] = []

    def take(self, row: int, order: int, subject: Subject, sample: Sample) -> None:
        """Let a sample wait."""
        self.taken.add(row)
        self.rows.append(row)
        self.orders.append(order)
        self.subjects.append(subject)
        self.samples.append(sample)

    def only(self, keep: NDArray[np.bool_]) -> None:
        """Leave out what is not to be kept."""
        kept = np.flatnonzero(keep).tolist()
        self.rows = [self.rows[at] for at in kept]
        self.orders = [self.orders[at] for at in kept]
        self.subjects = [self.subjects[at] for at in kept]
        self.samples = [self.samples[at] for at in kept]


class Intake:
    """Puts samples into the tables; counts those that are late, or from a clock that runs far ahead."""

    def __init__(self, world: World, tolerance: Tolerance) -> None:
        self.late = 0
        self.ahead = 0
        self.now_ns = 0
        self._world = world
        self._tables = world.tables
        self._devices: dict[str, DeviceTable] = {device.value: table for device, table in world.devices.items()}
        self._tolerance = tolerance
        self.subjects = Subjects()

    def timely(self, time_ns: int, newest_ns: int) -> bool:
        """Tell whether a sample is news: newer than what is known, and not from a clock that runs far ahead."""
        if time_ns <= newest_ns:
            self.late += 1
            return False
        if self.now_ns and time_ns > self.now_ns + self._tolerance.ahead_ns:
            self.ahead += 1
            return False
        return True

    def patience(self, interval: float) -> int:
        """Return how long (ns) a condition may go unseen: some usual intervals, while there is none the stale time."""
        return int(self._tolerance.gap_intervals * interval) or self._tolerance.stale_ns

    def segments(self, samples: Iterable[Sample], cause: str, other: Callable[[Sample], None]) -> Iterator[Segment]:
        """Yield segments, each in the tables when it comes; `other` gets the samples that are about no subject."""
        parts, guests_of = {Kind.HOST: _Part(), Kind.VM: _Part()}, set[str]()
        before: list[Sample] = []
        after: list[Sample] = []
        of, tables, host_kind, devices = self.subjects.of, self._tables, Kind.HOST, self._devices
        for order, sample in enumerate(samples):
            if sample.measurement in devices:
                (after if self._follows(sample, parts) else before).append(sample)
                continue
            subject = of(sample)
            if subject is None:
                other(sample)
                continue
            kind = subject.kind
            table, part = tables[kind], parts[kind]
            row = table.row_of.get(subject.id)
            if row in part.taken or (kind is host_kind and subject.id in guests_of):
                yield from self._whole(before, parts, after, cause)
                parts, guests_of, before, after = {Kind.HOST: _Part(), Kind.VM: _Part()}, set(), [], []
                part = parts[kind]
            if row is None:
                row = self._new(table, subject, sample)
                if row is None:
                    continue
            elif table.subjects[row] is not subject and self._left_behind(table, row, subject, sample):
                continue
            part.take(row, order, subject, sample)
            if kind is not host_kind:
                guests_of.add(subject.host)
        yield from self._whole(before, parts, after, cause)

    def _whole(
        self, before: list[Sample], parts: dict[Kind, _Part], after: list[Sample], cause: str
    ) -> Iterator[Segment]:
        self.put_devices(before, cause)
        yield self._take(parts, cause)
        self.put_devices(after, cause)

    def _follows(self, sample: Sample, parts: dict[Kind, _Part]) -> bool:
        """Tell whether a device's sample comes after its owner's."""
        kind = self._devices[sample.measurement].declared.owner
        owner = sample.tags.get("vm" if kind is Kind.VM else "host", "")
        return self._tables[kind].row_of.get(owner) in parts[kind].taken

    def put_devices(self, samples: list[Sample], cause: str) -> None:
        """Put the samples of devices of one message into their tables."""
        parts: dict[Device, _Part] = {}
        for sample in samples:
            table, subject = self._devices[sample.measurement], self.subjects.device(sample)
            row = None if subject is None else self._device_row(table, subject, sample)
            if subject is None or row is None:
                continue
            device = table.declared.device
            part = parts.setdefault(device, _Part())
            if row in part.taken:
                self._put_part(table, part, cause)
                part = parts[device] = _Part()
            part.take(row, 0, subject, sample)
        for device, part in parts.items():
            self._put_part(self._world.devices[device], part, cause)

    def _device_row(self, table: DeviceTable, subject: Subject, sample: Sample) -> int | None:
        """Return a device's row; None for one too many, and for one of a guest that is measured elsewhere."""
        owners, owner = self._tables[table.declared.owner], sample.tags.get("vm", subject.host)
        owner_row = owners.row_of.get(owner)
        known = None if owner_row is None else owners.subjects[owner_row]
        if known is not None and known.host != subject.host:
            return None
        row = table.row_of.get(subject.id)
        if row is not None:
            return row
        return self._new(table, subject, sample) if table.has_room(owner) else None

    def _put_part(self, table: DeviceTable, part: _Part, cause: str) -> None:
        rows, times, *_more = self._put(table, part, cause)
        if len(rows):
            device = table.declared.device
            columns = self._world.columns(device, rows)
            self._world.windows.take(device, columns, columns.where, times)

    def _new(self, table: Table, subject: Subject, sample: Sample) -> int | None:
        """Return a row for a subject that is not known yet, None where its sample is none to begin with."""
        self._world.cluster = self._world.cluster or sample.tags.get("cluster", "cluster")
        if not self.timely(sample.time_ns, 0):
            return None
        row = table.add(subject.id)
        self._world.grow(table.kind)
        return row

    def _left_behind(self, table: Table, row: int, subject: Subject, sample: Sample) -> bool:
        """Tell whether this is a mere definition, as a migration may leave one, of a guest measured elsewhere."""
        now = table.subjects[row]
        if now is None or now.host == subject.host or sample.fields.get("state_code") not in _OFF:
            return False
        newest_ns = int(table.time[row])
        return not self.timely(sample.time_ns, newest_ns) or sample.time_ns - newest_ns < self._tolerance.stale_ns

    def _take(self, parts: dict[Kind, _Part], cause: str) -> Segment:
        found = {}
        for kind, part in parts.items():
            if part.rows:
                entries = self._put(self._tables[kind], part, cause)
                if len(entries.orders):
                    found[kind] = entries
        return found

    def _put(self, table: Table, part: _Part, cause: str) -> Entries:
        rows = np.array(part.rows, np.int64)
        times = np.array([sample.time_ns for sample in part.samples], np.int64)
        late = times <= table.time[rows]
        ahead = ~late & (times > self._latest_ns())
        if late.any() or ahead.any():
            self.late += int(np.count_nonzero(late))
            self.ahead += int(np.count_nonzero(ahead))
            keep = ~(late | ahead)
            part.only(keep)
            rows, times = rows[keep], times[keep]
        usual = table.interval[rows]
        table.take(rows, times, part.subjects, [sample.fields for sample in part.samples], cause)
        patience = self.patiences(table, rows, usual)
        if table.kind is Kind.VM:
            # Of a host that has not been measured yet nothing is known: the guest's next sample looks again.
            row_of = self._tables[Kind.HOST].row_of
            table.host_row[rows] = [row_of.get(subject.host, -1) for subject in part.subjects]
        return Entries(rows, times, patience, part.orders)

    def patiences(self, table: Table, rows: Where, usual: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return `patience` for rows that came at `usual` intervals until now."""
        declared = table.declared_ns(rows)
        if declared is not None:
            # A guest that is sampled at another pace from now on was not silent before.
            usual = np.maximum(usual, declared)
        patience = (self._tolerance.gap_intervals * usual).astype(np.int64)
        if np.count_nonzero(patience) < len(patience):
            patience[patience == 0] = self._tolerance.stale_ns
        return patience

    def all_news(self, table: Table, rows: Where, times: NDArray[np.int64]) -> bool:
        """Tell whether samples of known rows are all newer than what is known, and none is far ahead."""
        return self.are_news(times, table.time[rows])

    def are_news(self, times: NDArray[np.int64], newest_ns: NDArray[np.int64]) -> bool:
        """Tell whether samples are all newer than what is known, and none is far ahead."""
        late = np.count_nonzero(times <= newest_ns)
        return not late and int(times.max(initial=0)) <= self._latest_ns()

    def _latest_ns(self) -> int:
        return self.now_ns + self._tolerance.ahead_ns if self.now_ns else _NEVER_NS
