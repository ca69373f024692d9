"""What a condition reads of a subject, by names that a person understands."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from virtpilot.rules.language.devices import Device, called, named
from virtpilot.rules.language.expression import Aggregate, Columns, Condition, Numbers
from virtpilot.rules.signals.aggregates import chosen
from virtpilot.rules.signals.columns import RowColumns

if TYPE_CHECKING:
    from virtpilot.rules.signals.world import World

MAX_DEVICES: Final = 8
_EXTREMES: Final = {"max": np.nanargmax, "min": np.nanargmin}


def inputs(world: World, conditions: Sequence[Condition], rows: NDArray[np.int64]) -> list[dict[str, float]]:
    """Return what conditions of one kind read of each row just now: fields by name, windows and aggregates by text.

    Of devices also those are told that make up an aggregate: `disks[vda].read_latency_seconds`.
    """
    told: list[dict[str, float]] = [{} for _ in range(len(rows))]
    if not conditions or not told:
        return told
    columns = world.columns(conditions[0].on, rows)
    with np.errstate(all="ignore"):
        for condition in conditions:
            for name, values in _own(columns, condition):
                found = values.tolist()
                for own, value in zip(told, found if len(found) == len(told) else found * len(told), strict=True):
                    if not math.isnan(value):
                        own[name] = value
            for aggregate in condition.reads.aggregates.values():
                if isinstance(aggregate.members, Device):
                    for group, text, value in _of_devices(columns, world, aggregate, aggregate.members):
                        told[group][text] = value
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


def _of_devices(
    columns: RowColumns, world: World, aggregate: Aggregate, device: Device
) -> Iterator[tuple[int, str, float]]:
    """Yield what is known of the devices that an aggregate is of, each with its subject's place.

    Of a greatest or least, of that one alone.
    """
    members = columns.devices(device)
    places, extreme = np.flatnonzero(chosen(aggregate, members)), None
    values = np.zeros(0)
    if aggregate.value is not None and len(places):
        values = np.broadcast_to(np.asarray(aggregate.value(members.columns, np.nan), np.float64), len(members.groups))
        places, extreme = places[np.isfinite(values[places])], _EXTREMES.get(aggregate.function)
    of: dict[int, list[int]] = {}
    for group, place in zip(members.groups[places].tolist(), places.tolist(), strict=True):
        of.setdefault(group, []).append(place)
    for group, own in of.items():
        those = own[:MAX_DEVICES] if extreme is None else [own[int(extreme(values[own]))]]
        for place in those:
            name = world.devices[device].name(int(members.rows[place]))
            for text, value in _values(members.columns, aggregate):
                if not np.isnan(value[place]):
                    yield group, called(aggregate.word, name, text), float(value[place])


def _values(columns: Columns, aggregate: Aggregate) -> Iterator[tuple[str, Numbers]]:
    for measurement, field in sorted(aggregate.reads.fields):
        yield field, columns.field(measurement, field)
    for window in aggregate.reads.windows.values():
        yield window.text, columns.window(window)
