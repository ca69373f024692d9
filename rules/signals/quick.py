"""Whole messages into tables, column by column: where each line is news of a subject that is known already.

That is what messages mostly are; several at once where each is of another host. Any others are left alone, for `Intake`
to take sample by sample; both give the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from virtpilot.lineblocks import Block, Lines
from virtpilot.linecolumns import heads_of
from virtpilot.model import Kind, Sample
from virtpilot.remembered import Remembered
from virtpilot.rules.signals.device_lines import DeviceLines, Devices
from virtpilot.rules.signals.intake import Entries, Intake, Segment
from virtpilot.rules.signals.table import Where, whereabouts
from virtpilot.rules.signals.world import World

_KINDS: Final = {"host": Kind.HOST, "vm": Kind.VM}
_MOST_LINES: Final = 1 << 32
_AT_MOST_LOOKED: Final = 64


class Taken(NamedTuple):
    """What is in the tables, and the devices that are to be put once that is evaluated, by their messages."""

    segment: Segment
    after: list[Devices]


class Group(NamedTuple):
    """Whose lines these are: their rows, and their hosts' rows, as long as nobody comes, goes or moves."""

    rows: NDArray[np.int64]
    where: Where
    host_rows: NDArray[np.int64]
    state: tuple[int, int]


class Piece(NamedTuple):
    """Lines of one kind that are in the tables at once, with the fields that all of them have; or samples."""

    group: Group
    times: NDArray[np.int64]
    places: NDArray[np.int64]
    names: tuple[str, ...]
    values: NDArray[np.float64]
    samples: list[Sample]
    cause: str | NDArray[np.object_]

    def within(self, base: int) -> NDArray[np.int64]:
        """Return the places in their message, the first line of which has the place `base`."""
        return self.places - base


class Quick:
    """Takes what it can take whole; who a block's lines are about is looked for once, for they come with each tick."""

    def __init__(self, world: World, intake: Intake) -> None:
        self._tables = world.tables
        self.devices = DeviceLines(world, intake)
        self._intake = intake
        self._groups: Remembered[Group] = Remembered()
        self._looked: dict[int, tuple[Lines, dict[Kind, list[Piece]]]] = {}

    def look(self, lines: Lines) -> dict[Kind, list[Piece]] | None:
        """Return what `take` will find of a message, if nobody comes or goes until then; None where it will not."""
        found = self._of_message(lines, "", 0)
        if found is not None:
            if len(self._looked) >= _AT_MOST_LOOKED:
                self._looked.clear()
            self._looked[id(lines)] = (lines, found)
        return found

    def _again(self, lines: Lines, cause: str, base: int) -> dict[Kind, list[Piece]] | None:
        """Return what was found by `look`, as a message behind others; what has not stayed so is looked for anew."""
        looked, found = self._looked.pop(id(lines), (None, {}))
        if looked is not lines:
            return self._of_message(lines, cause, base)
        for kind, pieces in found.items():
            for piece in pieces:
                if piece.group.state != self._state(kind) or not self._news(kind, piece):
                    return self._of_message(lines, cause, base)
        return {
            kind: [piece._replace(places=piece.places + base, cause=cause) for piece in pieces]
            for kind, pieces in found.items()
        }

    def take(self, messages: Sequence[tuple[Lines, str]]) -> Taken | None:
        """Put messages (each with its id) into the tables; None, and nothing is done, where it is not so simple."""
        if len(messages) > 1 and len(frozenset().union(*(m.hosts() for m, _ in messages))) < len(messages):
            return None
        found: dict[Kind, list[Piece]] = {Kind.HOST: [], Kind.VM: []}
        around: list[tuple[Devices, Devices]] = []
        for number, (lines, cause) in enumerate(messages):
            own = self._again(lines, cause, number * _MOST_LINES)
            if own is None:
                return None
            for kind, pieces in own.items():
                found[kind] += pieces
            base = number * _MOST_LINES
            places = {kind: [(one.group.rows, one.within(base)) for one in pieces] for kind, pieces in own.items()}
            devices = self.devices.around(lines, places, cause)
            around += [devices] if devices is not None else []
        if not all(map(_distinct, found.values())):
            return None
        self.devices.put([before for before, _after in around])
        segment = {kind: self._put(kind, pieces) for kind, pieces in found.items() if pieces}
        return Taken(segment, [after for _before, after in around])

    def _news(self, kind: Kind, piece: Piece) -> bool:
        return self._intake.all_news(self._tables[kind], piece.group.where, piece.times)

    def _of_message(self, lines: Lines, cause: str, base: int) -> dict[Kind, list[Piece]] | None:
        """Return the lines about hosts and guests; None where one is no news, or a host's comes behind a guest's."""
        found: dict[Kind, list[Piece]] = {Kind.HOST: [], Kind.VM: []}
        for kind, piece in self._pieces(lines, cause, base):
            if piece is None or not self._news(kind, piece):
                return None
            found[kind].append(piece)
        hosts, guests = found[Kind.HOST], found[Kind.VM]
        if not hosts or not guests:
            return found
        last, first = max(int(one.places.max()) for one in hosts), min(int(one.places.min()) for one in guests)
        return None if last > first else found

    def _pieces(self, lines: Lines, cause: str, base: int) -> Iterator[tuple[Kind, Piece | None]]:
        for block in lines.blocks:
            kind = _KINDS.get(block.measurement)
            if kind is not None:
                group = self._group(block, kind)
                places = base + np.array(block.places, np.int64)
                yield (
                    kind,
                    None if group is None else Piece(group, block.times, places, block.names, block.values, [], cause),
                )
        for name, kind in _KINDS.items():
            some = {place: one for place, one in lines.others.items() if one.measurement == name}
            if some:
                samples, places = list(some.values()), base + np.array(list(some), np.int64)
                group = self._find(kind, [one.tags for one in samples])
                times = np.array([one.time_ns for one in samples], np.int64)
                yield kind, None if group is None else Piece(group, times, places, (), _NONE, samples, cause)

    def _group(self, block: Block, kind: Kind) -> Group | None:
        known = self._groups.get(block.heads)
        if known is None or known.state != self._state(kind):
            known = self._find(kind, heads_of(block.heads).tags)
            if known is None:
                return None
            self._groups.put(block.heads, known)
        return known

    def _state(self, kind: Kind) -> tuple[int, int]:
        return self._tables[kind].moves, self._tables[Kind.HOST].changes

    def _find(self, kind: Kind, tags: Sequence[dict[str, str]]) -> Group | None:
        """Return the rows of subjects, None where one is not known, is another one by now, or comes twice."""
        table, hosts = self._tables[kind], self._tables[Kind.HOST].row_of
        rows, on = [], []
        for one in tags:
            subject = self._intake.subjects.named(kind.value, one)
            row = None if subject is None else table.row_of.get(subject.id)
            if subject is None or row is None or table.subjects[row] != subject:
                return None
            rows.append(row)
            on.append(hosts.get(subject.host, -1))
        if len(set(rows)) < len(rows):
            return None
        index = np.array(rows, np.int64)
        return Group(index, whereabouts(index), np.array(on, np.int64), self._state(kind))

    def _put(self, kind: Kind, pieces: list[Piece]) -> Entries:
        """Put pieces into their table, those with the same fields at once."""
        table, found = self._tables[kind], list[Entries]()
        alike: dict[tuple[str, ...], list[Piece]] = {}
        for piece in pieces:
            alike.setdefault(piece.names, []).append(piece)
        for some in alike.values():
            group, times, places, names, values, samples, cause = _joined(some)
            where = group.where
            usual = table.interval[where].copy()
            if samples:
                subjects = [table.subjects[row] for row in group.rows.tolist()]
                table.take(group.rows, times, [one for one in subjects if one], [one.fields for one in samples], cause)
            else:
                table.take_columns(where, times, names, values, cause)
            if kind is Kind.VM:
                table.host_row[where] = group.host_rows
            found.append(Entries(group.rows, times, self._intake.patiences(table, where, usual), places, where))
        if len(found) == 1:
            return found[0]
        return Entries(
            np.concatenate([one.rows for one in found]),
            np.concatenate([one.times for one in found]),
            np.concatenate([one.patience for one in found]),
            np.concatenate([one.orders for one in found]),
        )


_NONE: Final = np.zeros((0, 0))


def _joined(pieces: list[Piece]) -> Piece:
    """Return pieces with the same fields as one."""
    if len(pieces) == 1:
        return pieces[0]
    rows = np.concatenate([one.group.rows for one in pieces])
    host_rows = np.concatenate([one.group.host_rows for one in pieces])
    return Piece(
        Group(rows, whereabouts(rows), host_rows, pieces[0].group.state),
        np.concatenate([one.times for one in pieces]),
        np.concatenate([one.places for one in pieces]),
        pieces[0].names,
        np.concatenate([one.values for one in pieces], axis=1),
        [sample for one in pieces for sample in one.samples],
        np.repeat(np.array([one.cause for one in pieces], np.object_), [len(one.places) for one in pieces]),
    )


def _distinct(pieces: list[Piece]) -> bool:
    """Tell whether no row is in two of them."""
    if len(pieces) < 2:
        return True
    rows = [row for one in pieces for row in one.group.rows.tolist()]
    return len(set(rows)) == len(rows)
