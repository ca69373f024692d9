"""What rules say of many at once: the guests of each host, all hosts, all guests.

Taken at each tick from what is known then, and held until the next: in between samples come host by host, and no
rule shall see half of them. Members are taken in order of their ids, so that neither the order of arrival nor a restart
changes a bit of a sum. What each member gives to it is worked out once a sample, and kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from virtpilot.model import Kind
from virtpilot.rules.language.devices import SINGLE, Of
from virtpilot.rules.language.functions import quantile
from virtpilot.rules.language.typed import Aggregate, Columns, Numbers, Reads, Truth
from virtpilot.rules.signals.table import Table

if TYPE_CHECKING:
    from virtpilot.rules.signals.columns import RowColumns
    from virtpilot.rules.signals.windows import Windows

_ALL: Final = 1
Key = tuple[Kind, str]
Scout = Callable[["RowColumns"], NDArray[np.bool_]]


class Members:
    """The members that count just now, in order of their ids, and which group each belongs to."""

    def __init__(self, columns: Columns, groups: NDArray[np.int64], count: int, rows: NDArray[np.int64]) -> None:
        self.columns = columns
        self.rows = rows
        self.groups = groups
        self.count = count
        """How many groups there are."""


class Given:
    """What each row of a kind gives to an aggregate, as of its last sample: whether it is meant, and its value."""

    def __init__(self, aggregate: Aggregate, may: Scout | None) -> None:
        self._aggregate = aggregate
        self._may = may
        self.meant: NDArray[np.bool_] = np.zeros(0, np.bool_)
        self.values: Numbers = np.zeros(0)

    def take(self, rows: NDArray[np.int64], columns: RowColumns, capacity: int) -> None:
        """Work it out for some rows, whose columns these are."""
        if len(self.meant) < capacity:
            more = capacity - len(self.meant)
            self.meant, self.values = np.pad(self.meant, (0, more)), np.pad(self.values, (0, more))
        if not len(rows):
            return
        if self._aggregate.where is not None:
            self.meant[columns.where] = self._chosen(self._aggregate.where, columns, len(rows))
        if self._aggregate.value is not None:
            self.values[columns.where] = self._aggregate.value(columns, np.nan)

    def those(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return those of some rows that are meant."""
        return rows if self._aggregate.where is None else rows[self.meant[rows]]

    def _chosen(self, where: Truth, columns: RowColumns, count: int) -> NDArray[np.bool_]:
        if self._may is None:
            return where(columns)[0]
        # It is dear to tell for certain: only where it may be so.
        found = np.zeros(count, np.bool_)
        places = np.flatnonzero(np.broadcast_to(self._may(columns), count))
        if len(places):
            found[places] = where(columns.only(places))[0]
        return found


class News:
    """Tells which rows of a kind were measured since it was last asked, or whose hosts were."""

    def __init__(self, table: Table, hosts: Table, windows: Windows) -> None:
        self._tables = (table, hosts)
        self._windows = windows
        self._stamp: tuple[object, ...] = ()
        self._times: tuple[NDArray[np.int64], ...] = ()

    def rows(self) -> NDArray[np.int64]:
        """Return them; all rows where somebody has come, gone or become another one, or has another past."""
        table, hosts = self._tables
        kinds = (table.kind, hosts.kind)
        stamp = (table.changes, table.moves, hosts.changes, hosts.moves, *map(self._windows.pasts, kinds))
        known, self._times = self._times, (table.time.copy(), hosts.time.copy())
        if stamp != self._stamp:
            self._stamp = stamp
            return table.taken()
        news = table.time != known[0]
        of_host = hosts.time != known[1]
        if np.count_nonzero(of_host):
            news |= of_host[table.host_row] & (table.host_row >= 0)
        return np.flatnonzero(news)


def of_samples(reads: Reads, kind: Of) -> bool:
    """Tell whether what is read of a subject changes with its samples and those of its host alone."""
    own = {kind.value, Kind.HOST.value}
    of_devices = any(tag.partition(".")[0] in SINGLE for tag in reads.tags)
    return not (reads.aggregates or reads.signals or of_devices) and {one for one, _field in reads.fields} <= own


class Aggregates:
    """The newest value of each aggregate: a column over hosts, or one number for the cluster.

    `may` tells where members may be meant, of aggregates of which that costs less than to tell where they are.
    """

    def __init__(
        self,
        aggregates: Iterable[Aggregate],
        tables: Mapping[Of, Table],
        windows: Windows,
        may: Mapping[Key, Scout],
    ) -> None:
        self._all = {aggregate.key: aggregate for aggregate in aggregates}
        self.asking = any(one.reads.signals for one in self._all.values())
        """Whether some of them ask for signals."""
        self._tables = tables
        self._given = {
            key: Given(one, may.get(key)) for key, one in self._all.items() if of_samples(one.reads, one.members)
        }
        self.alone = len(self._given) == len(self._all)
        """Whether all hang on samples of hosts and guests alone."""
        self._news = {kind: News(tables[kind], tables[Kind.HOST], windows) for kind in Kind}
        self._values: dict[Key, Numbers] = {}
        self._orders: dict[Kind, tuple[int, NDArray[np.int64]]] = {}

    def __len__(self) -> int:
        return len(self._all)

    def value(self, aggregate: Aggregate) -> Numbers:
        """Return an aggregate of each host row, or (one value) of the cluster; NaN where it is not known."""
        room = self._room(aggregate)
        known = self._values.get(aggregate.key)
        if known is None:
            return np.full(room, np.nan)
        if len(known) < room:
            known = self._values[aggregate.key] = np.pad(known, (0, room - len(known)), constant_values=np.nan)
        return known

    def clear(self, host_row: int) -> None:
        """Forget what is said of a host's guests: the row will be another host's."""
        for key, values in self._values.items():
            if key[0] is Kind.HOST and host_row < len(values):
                values[host_row] = np.nan

    def rows(self, kind: Kind) -> NDArray[np.int64]:
        """Return the rows of a kind's subjects in order of their ids."""
        table = self._tables[kind]
        known = self._orders.get(kind)
        if known is None or known[0] != table.changes:
            rows = np.array([row for _id, row in sorted(table.row_of.items())], np.int64)
            known = self._orders[kind] = (table.changes, rows)
        return known[1]

    def take(self, kind: Kind, rows: NDArray[np.int64], columns_of: Callable[[NDArray[np.int64]], RowColumns]) -> None:
        """Take the aggregates over a kind from these rows (in order of ids)."""
        own = [aggregate for aggregate in self._all.values() if aggregate.members is kind]
        if not own:
            return
        hosts, new = self._tables[Kind.HOST], self._news[kind].rows()
        few = columns_of(new)
        for aggregate in own:
            given, count = self._given.get(aggregate.key), self._room(aggregate)
            if given is None:
                values = evaluate(aggregate, Members(columns_of(rows), self._groups(aggregate, rows), count, rows))
            else:
                given.take(new, few, self._tables[kind].capacity)
                meant = given.those(rows)
                values = gathered(aggregate, self._groups(aggregate, meant), given.values[meant], count)
            if aggregate.scope is Kind.HOST:
                live = np.fromiter(hosts.row_of.values(), np.int64, len(hosts.row_of))
                of_live, values = values[live], np.full(hosts.capacity, np.nan)
                values[live] = of_live
            self._values[aggregate.key] = values

    def _room(self, aggregate: Aggregate) -> int:
        return self._tables[Kind.HOST].capacity if aggregate.scope is Kind.HOST else _ALL

    def _groups(self, aggregate: Aggregate, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return self._tables[Kind.VM].host_row[rows] if aggregate.scope is Kind.HOST else np.zeros(len(rows), np.int64)


def chosen(aggregate: Aggregate, members: Members) -> NDArray[np.bool_]:
    """Tell of each member whether it is one of those that are meant."""
    found = members.groups >= 0
    return found & aggregate.where(members.columns)[0] if aggregate.where is not None else found


def evaluate(aggregate: Aggregate, members: Members) -> Numbers:
    """Return an aggregate of each group."""
    groups, meant, values = members.groups, chosen(aggregate, members), np.zeros(0)
    if aggregate.value is not None:
        all_values = np.asarray(aggregate.value(members.columns, np.nan), np.float64)
        values = np.broadcast_to(all_values, len(groups))[meant]
    return gathered(aggregate, groups[meant], values, members.count)


def gathered(aggregate: Aggregate, groups: NDArray[np.int64], values: Numbers, count: int) -> Numbers:
    """Return an aggregate of each of so many groups, from the groups and values of all members that are meant.

    Of none of them are those whose group is below 0.
    """
    there = groups >= 0
    if not there.all():
        groups, values = groups[there], values[there] if len(values) else values
    if aggregate.value is None:
        return over(groups, values, aggregate.function, count)
    known = np.isfinite(values)
    found = over(groups[known], values[known], aggregate.function, count)
    if aggregate.function == "sum":
        # None to add up is 0; some to add up, and of none the value known, is unknown.
        asked, answered = (np.bincount(one, minlength=count) for one in (groups, groups[known]))
        found = np.where((asked > 0) & (answered == 0), np.nan, found)
    return found + 0.0


def over(groups: NDArray[np.int64], values: Numbers, function: str, count: int) -> Numbers:
    """Return a function of each group's values; `groups` and `values` go together."""
    number = np.bincount(groups, minlength=count).astype(np.float64)
    match function:
        case "count":
            return number
        case "sum":
            return np.asarray(np.bincount(groups, values, count), np.float64)
        case "avg":
            return np.bincount(groups, values, count) / number
        case "stddev":
            away = values - (np.bincount(groups, values, count) / number)[groups]
            return np.sqrt(np.bincount(groups, away * away, count) / number)
    order = np.lexsort((values, groups))
    ordered, ends = values[order], np.cumsum(number).astype(np.int64)
    percent = {"min": 0, "max": 100}.get(function, quantile(function) or 0)
    rank = np.maximum(np.ceil(number * percent / 100).astype(np.int64) - 1, 0)
    at = ends - number.astype(np.int64) + rank
    found: Numbers = np.where(number > 0, np.append(ordered, np.nan)[np.minimum(at, len(ordered))], np.nan)
    return found
