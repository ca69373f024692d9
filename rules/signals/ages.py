"""How old the inputs of a condition are: when each of those that it reads beside the subject itself was measured."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from virtpilot.model import Kind
from virtpilot.rules.language.expression import Condition
from virtpilot.rules.signals.world import World


def read_times(world: World, condition: Condition, subject_id: str, stale_ratio: float) -> Iterator[tuple[str, int]]:
    """Yield each further input with its time: the host, and of those that are summed up the oldest one that counts.

    A share of `stale_ratio` of them may be older.
    """
    table = world.tables[condition.on]
    row, reads = table.row_of.get(subject_id), condition.reads
    if row is None:
        return
    hosts, host = world.tables[Kind.HOST], int(table.host_row[row]) if condition.on is Kind.VM else row
    asks_host = (
        any(measurement == "host" for measurement, _field in reads.fields)
        or any(window.on is Kind.HOST for window in reads.windows.values())
        or any(kind is Kind.HOST for _rule, kind, _at in reads.refers)
    )
    if condition.on is Kind.VM and asks_host:
        yield "the host's newest sample", int(hosts.time[host]) if host >= 0 else 0
    for scope, members in sorted({(one.scope, one.members) for one in reads.aggregates.values()}):
        around = world.tables[members]
        rows = around.taken()
        if scope is Kind.HOST:
            rows = rows[around.host_row[rows] == host]
        if len(rows):
            times = np.sort(around.time[rows])
            what = "guests" if members is Kind.VM else "hosts"
            oldest = int(times[min(int(stale_ratio * len(times)), len(times) - 1)])
            yield f"a sample of the {len(times)} {what} that the rule sums up", oldest
