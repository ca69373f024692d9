"""What a condition reads of a subject, by names that a person understands."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import numpy as np

from virtpilot.rules.language.devices import Device, called, named
from virtpilot.rules.language.expression import Aggregate, Columns, Condition, Numbers
from virtpilot.rules.signals.aggregates import chosen
from virtpilot.rules.signals.columns import RowColumns

if TYPE_CHECKING:
    from virtpilot.rules.signals.world import World

MAX_DEVICES: Final = 8
_EXTREMES: Final = {"max": np.nanargmax, "min": np.nanargmin}


def inputs(world: World, condition: Condition, row: int) -> dict[str, float]:
    """Return what a condition reads of a row just now: fields by name, windows and aggregates by text.

    Of devices also those are told that make up an aggregate: `disks[vda].read_latency_seconds`.
    """
    columns = world.columns(condition.on, np.array([row], np.int64))
    with np.errstate(all="ignore"):
        found = dict(_own(columns, condition))
        told = {name: float(value[0]) for name, value in found.items() if not np.isnan(value[0])}
        for aggregate in condition.reads.aggregates.values():
            if isinstance(aggregate.members, Device):
                told |= dict(_of_devices(columns, world, aggregate, aggregate.members))
    return told


def _own(columns: RowColumns, condition: Condition) -> Iterator[tuple[str, Numbers]]:
    reads = condition.reads
    for measurement, field in sorted(reads.fields):
        yield named(measurement, field, condition.on.value), columns.field(measurement, field)
    for window in reads.windows.values():
        yield window.text, columns.window(window)
    for name in sorted(reads.asked):
        yield f"signals.{name}", columns.signal(name, 0)
    for aggregate in reads.aggregates.values():
        yield aggregate.text, columns.aggregate(aggregate)


def _of_devices(columns: RowColumns, world: World, aggregate: Aggregate, device: Device) -> Iterator[tuple[str, float]]:
    """Yield what is known of the devices that an aggregate is of; of a greatest or least, of that one."""
    members = columns.devices(device)
    places = np.flatnonzero(chosen(aggregate, members))
    if aggregate.value is not None and len(places):
        values = np.broadcast_to(np.asarray(aggregate.value(members.columns, np.nan), np.float64), len(members.groups))
        places = places[np.isfinite(values[places])]
        extreme = _EXTREMES.get(aggregate.function)
        if extreme is not None and len(places):
            places = places[[int(extreme(values[places]))]]
    for place in places[:MAX_DEVICES].tolist():
        name = world.devices[device].name(int(members.rows[place]))
        for text, value in _values(members.columns, aggregate):
            if not np.isnan(value[place]):
                yield called(aggregate.word, name, text), float(value[place])


def _values(columns: Columns, aggregate: Aggregate) -> Iterator[tuple[str, Numbers]]:
    for measurement, field in sorted(aggregate.reads.fields):
        yield field, columns.field(measurement, field)
    for window in aggregate.reads.windows.values():
        yield window.text, columns.window(window)
