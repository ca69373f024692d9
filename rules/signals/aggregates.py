"""What rules say of many at once: the guests of each host, all hosts, all guests.

Taken at each tick from what is known then, and held until the next: in between samples come host by host, and no
rule shall see half of them. Members are taken in order of their ids, so that neither the order of arrival nor a restart
changes a bit of a sum.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from virtpilot.model import Kind
from virtpilot.rules.language.devices import Of
from virtpilot.rules.language.functions import quantile
from virtpilot.rules.language.typed import Aggregate, Columns, Numbers
from virtpilot.rules.signals.table import Table

_ALL: Final = 1


class Members:
    """The members that count just now, in order of their ids, and which group each belongs to."""

    def __init__(self, columns: Columns, groups: NDArray[np.int64], count: int, rows: NDArray[np.int64]) -> None:
        self.columns = columns
        self.rows = rows
        self.groups = groups
        self.count = count
        """How many groups there are."""

    def only(self, groups: NDArray[np.int64], values: Numbers, function: str) -> Numbers:
        """Return a function of each group's values; `groups` and `values` go together."""
        number = np.bincount(groups, minlength=self.count).astype(np.float64)
        match function:
            case "count":
                return number
            case "sum":
                return np.asarray(np.bincount(groups, values, self.count), np.float64)
            case "avg":
                return np.bincount(groups, values, self.count) / number
            case "stddev":
                away = values - (np.bincount(groups, values, self.count) / number)[groups]
                return np.sqrt(np.bincount(groups, away * away, self.count) / number)
        order = np.lexsort((values, groups))
        ordered, ends = values[order], np.cumsum(number).astype(np.int64)
        percent = {"min": 0, "max": 100}.get(function, quantile(function) or 0)
        rank = np.maximum(np.ceil(number * percent / 100).astype(np.int64) - 1, 0)
        at = ends - number.astype(np.int64) + rank
        found: Numbers = np.where(number > 0, np.append(ordered, np.nan)[np.minimum(at, len(ordered))], np.nan)
        return found


class Aggregates:
    """The newest value of each aggregate: a column over hosts, or one number for the cluster."""

    def __init__(self, aggregates: Iterable[Aggregate], tables: Mapping[Of, Table]) -> None:
        self._all = {aggregate.key: aggregate for aggregate in aggregates}
        self.asking = any(one.reads.signals for one in self._all.values())
        """Whether some of them ask for signals."""
        self._tables = tables
        self._values: dict[tuple[Kind, str], Numbers] = {}
        self._orders: dict[Kind, tuple[int, NDArray[np.int64]]] = {}

    def __len__(self) -> int:
        return len(self._all)

    def value(self, aggregate: Aggregate) -> Numbers:
        """Return an aggregate of each host row, or (one value) of the cluster; NaN where it is not known."""
        room = self._tables[Kind.HOST].capacity if aggregate.scope is Kind.HOST else _ALL
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

    def take(self, kind: Kind, rows: NDArray[np.int64], columns: Columns) -> None:
        """Take the aggregates over a kind from these rows (in order of ids), their columns given."""
        hosts = self._tables[Kind.HOST]
        for key, aggregate in self._all.items():
            if aggregate.members is not kind:
                continue
            if aggregate.scope is Kind.HOST:
                live = np.fromiter(hosts.row_of.values(), np.int64, len(hosts.row_of))
                values = np.full(hosts.capacity, np.nan)
                members = Members(columns, self._tables[Kind.VM].host_row[rows], hosts.capacity, rows)
                values[live] = evaluate(aggregate, members)[live]
            else:
                values = evaluate(aggregate, Members(columns, np.zeros(len(rows), np.int64), _ALL, rows))
            self._values[key] = values


def chosen(aggregate: Aggregate, members: Members) -> NDArray[np.bool_]:
    """Tell of each member whether it is one of those that are meant."""
    found = members.groups >= 0
    return found & aggregate.where(members.columns)[0] if aggregate.where is not None else found


def evaluate(aggregate: Aggregate, members: Members) -> Numbers:
    """Return an aggregate of each group."""
    groups, meant = members.groups, chosen(aggregate, members)
    if aggregate.value is None:
        return members.only(groups[meant], np.zeros(0), aggregate.function)
    values = np.broadcast_to(np.asarray(aggregate.value(members.columns, np.nan), np.float64), len(groups))
    known = meant & np.isfinite(values)
    found = members.only(groups[known], values[known], aggregate.function)
    if aggregate.function == "sum":
        # None to add up is 0; some to add up, and of none the value known, is unknown.
        asked, answered = (np.bincount(groups[one], minlength=members.count) for one in (meant, known))
        found = np.where((asked > 0) & (answered == 0), np.nan, found)
    return found + 0.0
