"""The lines of devices in whole messages, into tables column by column where each is news of a device that is known.

Those of one kind that are not all so go sample by sample, as `Intake` puts them; both give the same.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final, NamedTuple, cast
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from virtpilot.lineblocks import Block, Lines, Roster
from virtpilot.linecolumns import heads_of
from virtpilot.model import Kind, Sample
from virtpilot.remembered import Remembered
from virtpilot.rules.signals.devices import DeviceTable
from virtpilot.rules.signals.intake import Intake
from virtpilot.rules.signals.table import Cause, Where, whereabouts
from virtpilot.rules.signals.world import World

_NOT_THERE: Final = np.iinfo(np.int64).max

Places = Mapping[Kind, list[tuple[NDArray[np.int64], NDArray[np.int64]]]]
"""Where the lines about hosts and guests stand in a message: rows, and the places of their lines."""


class _Group(NamedTuple):
    """Which devices some lines are about, and the rows of their owners, as long as nobody comes, goes or moves."""

    rows: NDArray[np.int64]
    where: Where
    owners: NDArray[np.int64]
    state: tuple[int, ...]


class _Share(NamedTuple):
    """Those lines of a block that come before their owners' (0) or after (1), by their positions; None for all."""

    side: int
    rows: NDArray[np.int64]
    where: Where
    some: NDArray[np.int64] | None


class _Shares(NamedTuple):
    """How the lines of a block are divided: the same while they are about the same and stand in the same places."""

    group: _Group
    each: list[_Share]


class _Piece(NamedTuple):
    """Lines of one block about known devices, or some of them by their positions in it."""

    table: DeviceTable
    rows: NDArray[np.int64]
    where: Where
    block: Block
    some: NDArray[np.int64] | None

    @property
    def times(self) -> NDArray[np.int64]:
        """When they were measured."""
        return self.block.times if self.some is None else self.block.times[self.some]

    @property
    def values(self) -> NDArray[np.float64]:
        """What they say, a row a field."""
        return self.block.values if self.some is None else self.block.values[:, self.some]

    def samples(self) -> list[Sample]:
        """Return them as samples."""
        samples = self.block.samples()
        return samples if self.some is None else [samples[at] for at in self.some.tolist()]


class Devices(NamedTuple):
    """What a message says of devices before its owners' lines, or after: whole columns, and samples; and its id."""

    pieces: list[_Piece]
    samples: list[Sample]
    cause: str


class DeviceLines:
    """Finds whom the lines are about; that is looked for once, for they come with each tick."""

    def __init__(self, world: World, intake: Intake) -> None:
        self._world = world
        self._tables = {device.value: table for device, table in world.devices.items()}
        self._intake = intake
        self._groups: Remembered[_Group] = Remembered()
        self._shares_of: WeakKeyDictionary[Roster, list[_Shares | None]] = WeakKeyDictionary()
        self._place: dict[Kind, NDArray[np.int64]] = {}

    def around(self, lines: Lines, places: Places, cause: str) -> tuple[Devices, Devices] | None:
        """Return what comes before its owner's line, or without one, and what follows; None where there is nothing."""
        blocks = [block for block in lines.blocks if block.measurement in self._tables]
        single = {place: one for place, one in lines.others.items() if one.measurement in self._tables}
        if not blocks and not single:
            return None
        around = before, after = Devices([], [], cause), Devices([], [], cause)
        for block, shares in zip(blocks, self._shares(lines, blocks, single.values(), places), strict=True):
            if shares is None:
                single.update(zip(block.places.tolist(), block.samples(), strict=True))
                continue
            for side, rows, where, some in shares.each:
                around[side].pieces.append(_Piece(self._tables[block.measurement], rows, where, block, some))
        line_of = {
            (kind, row): place
            for kind, pieces in (places.items() if single else ())
            for rows, at in pieces
            for row, place in zip(rows.tolist(), at.tolist(), strict=True)
        }
        for place in sorted(single):
            sample = single[place]
            kind = self._tables[sample.measurement].declared.owner
            row = self._world.tables[kind].row_of.get(sample.tags.get("vm" if kind is Kind.VM else "host", ""), -1)
            follows = line_of.get((kind, row), place) < place
            (after if follows else before).samples.append(sample)
        return before, after

    def put(self, several: Sequence[Devices]) -> None:
        """Put what messages of one host each say of devices into their tables, those with the same fields at once."""
        alike: dict[tuple[str, tuple[str, ...]], list[tuple[_Piece, str]]] = {}
        for devices in several:
            self._intake.put_devices(devices.samples, devices.cause)
            for piece in devices.pieces:
                alike.setdefault((piece.block.measurement, piece.block.names), []).append((piece, devices.cause))
        for pieces in alike.values():
            self._put(pieces)

    def _put(self, pieces: list[tuple[_Piece, str]]) -> None:
        (table, rows, where, block, _some), cause = pieces[0]
        if len(pieces) == 1:
            times, values, causes = pieces[0][0].times, pieces[0][0].values, cast(Cause, cause)
        else:
            rows = np.concatenate([one.rows for one, _cause in pieces])
            where = whereabouts(rows)
            times = np.concatenate([one.times for one, _cause in pieces])
            values = np.concatenate([one.values for one, _cause in pieces], axis=1)
            counts = [len(one.rows) for one, _cause in pieces]
            causes = np.repeat(np.array([cause for _one, cause in pieces], np.object_), counts)
        if self._intake.all_news(table, where, times):
            table.take_columns(where, times, block.names, values, causes)
            columns = self._world.columns(table.kind, rows, where)
            self._world.windows.take(table.kind, columns, where, times)
        elif len(pieces) == 1:
            self._intake.put_devices(pieces[0][0].samples(), cause)
        else:
            for one in pieces:
                self._put([one])

    def _shares(
        self, lines: Lines, blocks: list[Block], single: Collection[Sample], places: Places
    ) -> Sequence[_Shares | None]:
        """Return how the lines of each block are divided, None where they go sample by sample."""
        known = None if lines.roster is None else self._shares_of.get(lines.roster)
        if known is not None and all(
            one is not None and one.group is self._group(block) for one, block in zip(known, blocks, strict=True)
        ):
            return known
        groups = self._whole(blocks, single)
        found = [
            None
            if group is None
            else _Shares(group, self._split(self._tables[block.measurement], group, block, places))
            for block in blocks
            for group in [groups.get(block.measurement, {}).get(block.heads)]
        ]
        if lines.roster is not None:
            self._shares_of[lines.roster] = found
        return found

    def _whole(self, blocks: list[Block], single: Collection[Sample]) -> dict[str, dict[bytes, _Group]]:
        """Return the groups of blocks by measurement, of those measurements no device of which comes twice."""
        found: dict[str, dict[bytes, _Group]] = {}
        taken: dict[str, set[int | None]] = {}
        odd: set[str] = set()
        for sample in single:
            subject = self._intake.subjects.device(sample)
            row = None if subject is None else self._tables[sample.measurement].row_of.get(subject.id)
            taken.setdefault(sample.measurement, set()).add(row)
        for block in blocks:
            group = self._group(block)
            rows = taken.setdefault(block.measurement, set())
            if group is None or not rows.isdisjoint(group.rows.tolist()):
                odd.add(block.measurement)
            else:
                rows.update(group.rows.tolist())
                found.setdefault(block.measurement, {})[block.heads] = group
        return {name: own for name, own in found.items() if name not in odd}

    def _group(self, block: Block) -> _Group | None:
        table = self._tables[block.measurement]
        owners = self._world.tables[table.declared.owner]
        state = (table.moves, table.changes, owners.moves, owners.changes)
        known = self._groups.get(block.heads)
        if known is None or known.state != state:
            known = self._find(table, block, state)
            if known is None:
                return None
            self._groups.put(block.heads, known)
        return known

    def _find(self, table: DeviceTable, block: Block, state: tuple[int, ...]) -> _Group | None:
        """Return the rows of devices, None where one is not known, or is another one by now, or comes twice."""
        owners = self._world.tables[table.declared.owner]
        rows, on = [], []
        for tags in heads_of(block.heads).tags:
            subject = self._intake.subjects.device(Sample(block.measurement, tags, {}, 0))
            row = None if subject is None else table.row_of.get(subject.id)
            owner = owners.row_of.get(tags.get("vm", tags.get("host", "")))
            if subject is None or row is None or owner is None or table.subjects[row] != subject:
                return None
            known = owners.subjects[owner]
            if known is None or known.host != subject.host:
                return None
            rows.append(row)
            on.append(owner)
        if len(set(rows)) < len(rows):
            return None
        index = np.array(rows, np.int64)
        return _Group(index, whereabouts(index), np.array(on, np.int64), state)

    def _split(self, table: DeviceTable, group: _Group, block: Block, places: Places) -> list[_Share]:
        """Divide a block's lines into those before their owners' lines and those after."""
        follows = self._owner_places(table.declared.owner, group.owners, places) < block.places
        count = np.count_nonzero(follows)
        if count in {0, len(follows)}:
            return [_Share(int(count > 0), group.rows, group.where, None)]
        found = []
        for side, chosen in enumerate((~follows, follows)):
            some = np.flatnonzero(chosen)
            rows = group.rows[some]
            found.append(_Share(side, rows, whereabouts(rows), some))
        return found

    def _owner_places(self, kind: Kind, owners: NDArray[np.int64], places: Places) -> NDArray[np.int64]:
        """Return where the lines about owners stand, beyond all places where there is none."""
        known = self._place.get(kind)
        if known is None or len(known) < self._world.tables[kind].capacity:
            known = self._place[kind] = np.full(self._world.tables[kind].capacity, _NOT_THERE)
        for rows, at in places[kind]:
            known[rows] = at
        found: NDArray[np.int64] = known[owners]
        for rows, _at in places[kind]:
            known[rows] = _NOT_THERE
        return found
