"""What a condition reads of a subject, by names that a person understands."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from virtpilot.rules.language.devices import Device, called, named
from virtpilot.rules.language.expression import Aggregate, Columns, Condition, Numbers
from virtpilot.rules.signals.aggregates import Members, chosen

if TYPE_CHECKING:
    from virtpilot.rules.signals.world import World

MAX_DEVICES: Final = 8
_EXTREMES: Final = {"max": np.nanargmax, "min": np.nanargmin}


class Seen(Columns, Protocol):
    """The inputs of many subjects, with their devices."""

    def devices(self, device: Device) -> Members:
        """Return the devices of a kind that the subjects have."""


def inputs(world: World, columns: Seen, conditions: Sequence[Condition], count: int) -> list[dict[str, float]]:
    """Return what conditions read of each of so many rows just now: fields by name, windows and aggregates by text.

    Of devices also those are told that make up an aggregate: `disks[vda].read_latency_seconds`.
    """
    told: list[dict[str, float]] = [{} for _ in range(count)]
    if not told:
        return told
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


def inputs_at(world: World, columns: Seen, condition: Condition, place: int) -> dict[str, float]:
    """Return what a condition reads of one of many rows, whose columns these are, as `inputs` does."""
    own: dict[str, float] = {}
    with np.errstate(all="ignore"):
        for name, values in _own(columns, condition):
            value = float(values[place if len(values) > 1 else 0])
            if not math.isnan(value):
                own[name] = value
        for aggregate in condition.reads.aggregates.values():
            if isinstance(aggregate.members, Device):
                found = _of_devices(columns, world, aggregate, aggregate.members, place)
                own |= {text: value for _group, text, value in found}
    return own


def _own(columns: Columns, condition: Condition) -> Iterator[tuple[str, Numbers]]:
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
    columns: Seen, world: World, aggregate: Aggregate, device: Device, only: int | None = None
) -> Iterator[tuple[int, str, float]]:
    """Yield what is known of the devices that an aggregate is of, each with its subject's place; of `only` one's.

    Of a greatest or least, of that one alone.
    """
    members = columns.devices(device)
    places, extreme = np.flatnonzero(chosen(aggregate, members)), None
    places = places if only is None else places[members.groups[places] == only]
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
