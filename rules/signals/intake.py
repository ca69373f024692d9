"""Samples into tables, column by column.

Samples are taken in the order in which they come, however they are batched: a batch is cut into segments in which each
subject occurs once and no host comes after one of its guests, and a segment is put and then evaluated as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from virtpilot.clock import seconds
from virtpilot.model import Kind, Sample, Subject
from virtpilot.rules.signals.subjects import Subjects
from virtpilot.rules.signals.table import Table
from virtpilot.rules.signals.world import World

_OFF: Final = frozenset({5, 6})  # virDomainState: shut off, crashed


class Tolerance(msgspec.Struct, frozen=True):
    """How much silence is borne."""

    gap_intervals: float = 3.0
    """A gap of so many usual intervals does not restart `for` and `clear_for`."""
    stale_ns: int = seconds(60)
    """A subject silent for longer has no data (at least `gap_intervals`)."""
    forget_ns: int = seconds(3600)
    """A subject silent for longer is gone: its signals end."""
    ahead_ns: int = seconds(300)
    """A sample so far in the future is dropped: its clock is wrong, and the true ones after it would look late."""


class Entries(NamedTuple):
    """Samples of one kind that are in their table: row, time, patience, and their places in the batch."""

    rows: NDArray[np.int64]
    times: NDArray[np.int64]
    patience: NDArray[np.int64]
    orders: list[int]


Segment = dict[Kind, Entries]


class _Part:
    """Samples of one kind that wait to be put."""

    def __init__(self) -> None:
        self.taken: set[int] = set()
        self.rows: list[int] = []
        self.orders: list[int] = []
        self.subjects: list[Subject] = []
        self.samples: list[Sample] = []

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
        self._tolerance = tolerance
        self._subjects = Subjects()

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
        of, tables, host_kind = self._subjects.of, self._tables, Kind.HOST
        for order, sample in enumerate(samples):
            subject = of(sample)
            if subject is None:
                other(sample)
                continue
            kind = subject.kind
            table, part = tables[kind], parts[kind]
            row = table.row_of.get(subject.id)
            if row in part.taken or (kind is host_kind and subject.id in guests_of):
                yield self._take(parts, cause)
                parts, guests_of = {Kind.HOST: _Part(), Kind.VM: _Part()}, set()
                part = parts[kind]
            if row is None:
                row = self._new(table, subject, sample)
                if row is None:
                    continue
            elif table.subjects[row] is not subject and self._left_behind(table, row, subject, sample):
                continue
            part.taken.add(row)
            part.rows.append(row)
            part.orders.append(order)
            part.subjects.append(subject)
            part.samples.append(sample)
            if kind is not host_kind:
                guests_of.add(subject.host)
        yield self._take(parts, cause)

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
                if entries.orders:
                    found[kind] = entries
        return found

    def _put(self, table: Table, part: _Part, cause: str) -> Entries:
        rows = np.array(part.rows, np.int64)
        times = np.array([sample.time_ns for sample in part.samples], np.int64)
        late = times <= table.time[rows]
        limit_ns = self.now_ns + self._tolerance.ahead_ns if self.now_ns else np.iinfo(np.int64).max
        ahead = ~late & (times > limit_ns)
        if late.any() or ahead.any():
            self.late += int(np.count_nonzero(late))
            self.ahead += int(np.count_nonzero(ahead))
            keep = ~(late | ahead)
            part.only(keep)
            rows, times = rows[keep], times[keep]
        usual = table.interval[rows]
        table.take(rows, times, part.subjects, [sample.fields for sample in part.samples], cause)
        # A guest that is sampled at another pace from now on was not silent before.
        usual = np.maximum(usual, table.declared_ns(rows))
        patience = (self._tolerance.gap_intervals * usual).astype(np.int64)
        patience[patience == 0] = self._tolerance.stale_ns
        if table.kind is Kind.VM:
            # Of a host that has not been measured yet nothing is known: the guest's next sample looks again.
            row_of = self._tables[Kind.HOST].row_of
            table.host_row[rows] = [row_of.get(subject.host, -1) for subject in part.subjects]
        return Entries(rows, times, patience, part.orders)
