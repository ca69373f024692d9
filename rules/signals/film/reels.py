"""The samples of many moments as columns: for each kind its subjects, the moments, and the values at each.

Moment 0 is the newest that the tables hold; those after it are to come.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from virtpilot.clock import SECOND
from virtpilot.model import Kind, Sample, Subject
from virtpilot.rules.language.devices import Of
from virtpilot.rules.signals.devices import BETWEEN, DeviceTable
from virtpilot.rules.signals.intake import Intake
from virtpilot.rules.signals.table import Table, Where, following, whereabouts
from virtpilot.rules.signals.tolerance import Tolerance
from virtpilot.rules.signals.world import World

# Longer than histories know times apart no film may be.
_LONGEST_NS: Final = 86_400 * SECOND


# What a field is at each moment, or all along.
Column = NDArray[np.float64] | float


class Coming(NamedTuple):
    """Frames to come of the same series each: the first one's samples, when they are, each sample's fields in them."""

    samples: Sequence[Sample]
    times: NDArray[np.int64]
    told: Sequence[Mapping[str, Column]]


class Reel(NamedTuple):
    """What one kind's subjects measure: moments by rows; hosts and guests in order of their ids."""

    kind: Of
    rows: NDArray[np.int64]
    where: Where
    times: NDArray[np.int64]
    frames: NDArray[np.int64]
    """The frame that each moment belongs to; the cluster's moments are ticks, which come before their frame."""
    values: NDArray[np.float64]
    """A field, a moment, a row."""
    intervals: NDArray[np.float64]
    """The usual interval (ns) of each row as of each moment."""
    patience: NDArray[np.int64]
    """How long (ns) nothing may be known at each moment of each row."""
    owners: NDArray[np.int64]
    """The places of the rows' hosts, or of the devices' owners, in their reels; -1 for none."""
    orders: Sequence[int]
    """The rows' places in each frame."""

    def last(self, frame: int) -> int:
        """Return the last moment up to a frame."""
        return int(np.searchsorted(self.frames, frame, "right")) - 1

    @property
    def lasts(self) -> NDArray[np.int64]:
        """The last moment up to each frame."""
        found: NDArray[np.int64] = np.searchsorted(self.frames, np.arange(self.frames[-1] + 1), "right") - 1
        return found


class _Cast(NamedTuple):
    """Whom one kind's samples are about: their rows and subjects, and their places in each frame."""

    rows: list[int]
    subjects: list[Subject]
    places: list[int]


def reels(world: World, intake: Intake, coming: Coming, tick_ns: int, rest: Tolerance) -> dict[Of, Reel] | None:
    """Return the reels of frames to come, None where they are not just more of the same.

    Each frame has a sample of each subject that is known, each host's before its guests'. The cluster's samples are
    ticks, every `tick_ns` before each frame, 0 for none.
    """
    casts = _casts(world, intake, coming.samples)
    if casts is None:
        return None
    coming = coming._replace(times=coming.times[coming.times <= coming.times[0] + _LONGEST_NS])
    newest_ns = int(world.tables[Kind.HOST].time[casts[Kind.HOST].rows[0]])
    times = np.concatenate([[newest_ns], coming.times])
    found: dict[Of, Reel] = {}
    for kind, cast in casts.items():
        reel = _reel(world, kind, cast, times, coming, found, rest)
        if reel is None:
            return None
        found[kind] = reel
    if tick_ns and world.bank.about(Kind.CLUSTER):
        cluster = _of_cluster(world, times, tick_ns, rest)
        if cluster is None:
            return None
        found[Kind.CLUSTER] = cluster
    return found


def _casts(world: World, intake: Intake, frame: Iterable[Sample]) -> dict[Of, _Cast] | None:
    """Return whom a frame's samples are about; None where one is not known, or is another by now."""
    casts: dict[Of, _Cast] = {Kind.HOST: _Cast([], [], []), Kind.VM: _Cast([], [], [])}
    devices = {device.value: device for device in world.devices}
    for place, sample in enumerate(frame):
        device = devices.get(sample.measurement)
        subject = intake.subjects.of(sample) if device is None else intake.subjects.device(sample)
        if subject is None:
            continue
        kind: Of = subject.kind if device is None else device
        if device is not None and subject.id.partition(BETWEEN)[0] not in world.tables[subject.kind].row_of:
            return None
        row = world.tables[kind].row_of.get(subject.id)
        if row is None or world.tables[kind].subjects[row] != subject:
            return None
        cast = casts.setdefault(kind, _Cast([], [], []))
        cast.rows.append(row)
        cast.subjects.append(subject)
        cast.places.append(place)
    # Devices after those whose they are.
    order: tuple[Of, ...] = (Kind.HOST, Kind.VM, *world.devices)
    found = {kind: casts[kind] for kind in order if kind in casts}
    return found if _whole(world, found) else None


def _whole(world: World, casts: Mapping[Of, _Cast]) -> bool:
    """Tell whether everybody who is known is among them, once, and all that they have."""
    for kind in (Kind.HOST, Kind.VM):
        rows = casts[kind].rows
        if sorted(rows) != world.tables[kind].taken().tolist():
            return False
    for device, table in world.devices.items():
        rows = casts[device].rows if device in casts else []
        live, _places = table.live(np.array(casts[table.declared.owner].rows, np.int64))
        if len(set(rows)) != len(rows) or not set(live.tolist()) <= set(rows):
            return False
    return bool(casts[Kind.HOST].rows)


def _reel(
    world: World,
    kind: Of,
    cast: _Cast,
    times: NDArray[np.int64],
    frames: Coming,
    others: Mapping[Of, Reel],
    rest: Tolerance,
) -> Reel | None:
    table = world.tables[kind]
    order, owners = _order(world, kind, cast, others)
    rows = np.array([cast.rows[at] for at in order], np.int64)
    places = [cast.places[at] for at in order]
    if not (table.time[rows] == times[0]).all():
        return None
    values = np.full((len(table.fields), len(times), len(rows)), np.nan)
    values[:, 0] = table.values[:, rows]
    coming = values[:, 1:]
    for row, at in enumerate(places):
        for name, one in frames.told[at].items():
            if name in table.column:
                coming[table.column[name], :, row] = one[: len(times) - 1] if isinstance(one, np.ndarray) else one
    if len(rows) and not np.isfinite(coming).any(axis=0).all():
        return None  # of what has no wanted field no sample comes
    column = table.column.get("sample_interval_seconds")
    if column is not None and np.isfinite(coming[column]).any():
        return None  # it says itself how often it comes
    intervals, patience = _intervals(table, rows, times, rest)
    if isinstance(kind, Kind) and (np.diff(times)[:, None] > np.maximum(patience[1:], rest.stale_ns)).any():
        return None  # it would be silent in between
    numbers = np.arange(len(times))
    return Reel(kind, rows, whereabouts(rows), times, numbers, values, intervals, patience, owners, places)


def _order(world: World, kind: Of, cast: _Cast, others: Mapping[Of, Reel]) -> tuple[Sequence[int], NDArray[np.int64]]:
    """Return the order in which a kind's subjects are told of, and where their owners are."""
    every = range(len(cast.rows))
    table = world.tables[kind]
    if isinstance(table, DeviceTable):
        reel = others[table.declared.owner]
        place_of = {row: place for place, row in enumerate(reel.rows.tolist())}
        owner_of = world.tables[table.declared.owner].row_of
        owned = [place_of[owner_of[one.id.partition(BETWEEN)[0]]] for one in cast.subjects]
        order = sorted(every, key=lambda at: (owned[at], table.name(cast.rows[at])))
        return order, np.array([owned[at] for at in order], np.int64)
    order = sorted(every, key=lambda at: cast.subjects[at].id)
    if kind is Kind.HOST:
        return order, np.full(len(order), -1, np.int64)
    hosts = {row: place for place, row in enumerate(others[Kind.HOST].rows.tolist())}
    on = table.host_row[[cast.rows[at] for at in order]].tolist() if order else []
    return order, np.array([hosts.get(row, -1) for row in on], np.int64)


def _intervals(
    table: Table, rows: NDArray[np.int64], times: NDArray[np.int64], rest: Tolerance
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the usual intervals of rows at each moment, and the patience with which each was awaited."""
    since_last = np.diff(times)
    first = following(table.interval[rows], since_last[0])
    if (since_last == since_last[0]).all() and (first == since_last[0]).all():
        # What comes as usual changes nothing of what is usual.
        intervals = np.full((len(times), len(rows)), first[0] if len(first) else 0.0)
        intervals[0] = table.interval[rows]
    else:
        usual = [table.interval[rows], first]
        for one in since_last[1:].tolist():
            usual.append(following(usual[-1], one))
        intervals = np.array(usual, np.float64).reshape(len(times), len(rows))
    patience = (rest.gap_intervals * intervals).astype(np.int64)
    patience = np.where(patience == 0, rest.stale_ns, patience)
    return intervals, np.concatenate([patience[:1], patience[:-1]])


def _of_cluster(world: World, times: NDArray[np.int64], tick_ns: int, rest: Tolerance) -> Reel | None:
    """Return the cluster's reel; a tick is its sample."""
    table = world.tables[Kind.CLUSTER]
    row = table.row_of.get(world.cluster)
    if row is None or int(table.time[row]) > times[0]:
        return None
    rows = np.array([row], np.int64)
    between = [[*range(before + tick_ns, at, tick_ns), at] for before, at in pairwise(times.tolist())]
    moments = np.array([int(table.time[row]), *(at for some in between for at in some)], np.int64)
    frames = np.repeat(np.arange(len(times)), [1, *map(len, between)])
    values = np.full((len(table.fields), len(moments), 1), np.nan)
    intervals, patience = _intervals(table, rows, moments, rest)
    nobody = np.full(1, -1, np.int64)
    return Reel(Kind.CLUSTER, rows, whereabouts(rows), moments, frames, values, intervals, patience, nobody, [-1])
