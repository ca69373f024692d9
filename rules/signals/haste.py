"""Which messages cannot wait: those with which a signal may begin to fire.

Told before a message is in the tables, by its own values and by what is known of its subjects: what is pending for long
enough, and rules without `for`. Most of these can begin to fire only where something that they hang on changes
(`watch.py`); of others, and of those, windows' bounds are asked, and of devices what was known of them before. To err
costs somebody a moment, never a signal: the message is evaluated a little later all the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from virtpilot.lineblocks import Lines
from virtpilot.model import Kind
from virtpilot.rules.language.devices import Device
from virtpilot.rules.language.typed import Numbers, Window
from virtpilot.rules.signals.columns import RowColumns, masks
from virtpilot.rules.signals.devices import DeviceTable
from virtpilot.rules.signals.gate import Gate
from virtpilot.rules.signals.machine import INACTIVE, Machine
from virtpilot.rules.signals.quick import Piece, Quick
from virtpilot.rules.signals.watch import Fields, Watched, watched
from virtpilot.rules.signals.world import World

Candidate = tuple[Machine, NDArray[np.bool_]]
"""A rule that might fire if its condition held, and of which rows."""


class _Watch(NamedTuple):
    """The rules without `for` about one kind: by what they hang on, where that can be told; and the others."""

    fields: dict[Kind, Fields]
    machines: dict[Watched, list[Machine]]
    devices: list[tuple[DeviceTable, list[Machine]]]
    told: list[Machine]
    others: list[Machine]
    gate: Gate


class Haste:
    """Tells of messages of agents, one host each."""

    def __init__(self, world: World, quick: Quick) -> None:
        self._world, self._quick = world, quick
        self._watches = {kind: self._watch(kind) for kind in (Kind.HOST, Kind.VM)}

    def _watch(self, kind: Kind) -> _Watch:
        fields: dict[Watched, list[Machine]] = {}
        measured: dict[Kind, list[Watched]] = {}
        devices: dict[Device, dict[Machine, None]] = {}
        told: list[Machine] = []
        others: list[Machine] = []
        for machine in self._world.bank.machines(kind):
            if machine.rule.for_ns:
                continue
            found = watched(machine.rule)
            (others if found is None else told).append(machine)
            for one in found or ():
                if one.device is None:
                    if one not in fields:
                        measured.setdefault(Kind(one.measurement), []).append(one)
                    fields.setdefault(one, []).append(machine)
                elif one.device in self._world.devices:
                    devices.setdefault(one.device, {})[machine] = None
                    self._world.devices[one.device].watch(one.field)
        return _Watch(
            {of: Fields(own, self._world.tables[of].column) for of, own in measured.items()},
            fields,
            [(self._world.devices[device], list(machines)) for device, machines in devices.items()],
            told,
            others,
            Gate([one.rule for one in others]),
        )

    def of(self, lines: Lines) -> bool | None:
        """Tell whether a signal may begin to fire; None where a message is not just news of what is known already."""
        pieces = self._quick.look(lines)
        if pieces is None:
            return None
        return any(self._may_begin(kind, piece, pieces[Kind.HOST]) for kind, of in pieces.items() for piece in of)

    def _may_begin(self, kind: Kind, piece: Piece, hosts: list[Piece]) -> bool:
        columns: Ahead | None = None
        for machine, mask in self._candidates(kind, piece, hosts):
            if np.count_nonzero(mask):
                columns = columns or Ahead(self._world, kind, piece, hosts[0] if len(hosts) == 1 else None)
                if self._may_hold(machine, mask, columns):
                    return True
        return False

    def _may_hold(self, machine: Machine, mask: NDArray[np.bool_], columns: RowColumns) -> bool:
        with np.errstate(all="ignore"):
            may = mask & self._world.bank.scout(machine.rule.name)(columns)
            where = machine.rule.where
            if where is not None and np.count_nonzero(may):
                may &= ~masks(where, columns, len(mask))[1]
        return bool(np.count_nonzero(may))

    def _candidates(self, kind: Kind, piece: Piece, hosts: list[Piece]) -> Iterator[Candidate]:
        """Yield the rules of which a signal would fire if their conditions held, each with the rows of which."""
        rows, where, _hosts, _state = piece.group
        yield from self._world.bank.overdue(kind, rows, where, piece.times)
        watch = self._watches[kind]
        for machine, mask in self._changed(kind, piece, hosts, watch):
            yield machine, mask & (machine.state[where] == INACTIVE)
        if watch.others:
            columns = Ahead(self._world, kind, piece, hosts[0] if len(hosts) == 1 else None)
            with np.errstate(all="ignore"):
                may = watch.gate.open(columns)
            for place in np.flatnonzero(may).tolist():
                machine = watch.others[place]
                yield machine, machine.state[where] == INACTIVE

    def _changed(self, kind: Kind, piece: Piece, hosts: list[Piece], watch: _Watch) -> Iterator[Candidate]:
        """Yield the rules that hang on something that has changed, each with the rows of which."""
        for of, fields in watch.fields.items():
            for told in (piece,) if of is kind else hosts:
                old = fields.of_table(self._world.tables[of].values, told.group.where)
                new = fields.of_samples(told.samples) if told.samples else fields.of_columns(told.names, told.values)
                for one, rows in fields.changed(old, new):
                    mask = rows if of is kind else np.ones(len(piece.times), np.bool_)
                    yield from ((machine, mask) for machine in watch.machines[one])
        close = self._world.bank.close(kind, piece.group.where)
        if np.count_nonzero(close):
            yield from ((machine, close) for machine in watch.told)
        for table, machines in watch.devices:
            fresh = table.fresh(piece.group.rows)
            if fresh is not None:
                yield from ((machine, fresh) for machine in machines)


class Ahead(RowColumns):
    """Rows as they will be once a message's lines have been taken."""

    def __init__(self, world: World, kind: Kind, piece: Piece, host: Piece | None) -> None:
        super().__init__(world, kind, piece.group.rows, piece.group.where)
        self._piece = piece
        self._host = host if kind is Kind.VM and host is not None and len(host.times) == 1 else None

    def fields(self, measurement: str) -> Numbers:
        """Return all fields: the message's own, and its host's where that tells of itself too."""
        found = self._all.get(measurement)
        if found is None:
            if measurement == self._kind.value:
                found = self._all[measurement] = self._told(self._piece)
            elif self._host is not None:
                found = self._all[measurement] = self._told(self._host)
            else:
                found = super().fields(measurement)
        return found

    def _told(self, piece: Piece) -> Numbers:
        table = self._table if piece is self._piece else self._hosts
        if piece.samples:
            return table.gathered([sample.fields for sample in piece.samples])
        return table.arranged(piece.names, piece.values)

    def bound(self, window: Window, *, upper: bool) -> Numbers:
        """Return what a window may say at most, or at least, once the message has been taken."""
        if window.on is not self._kind:
            return super().bound(window, upper=upper)
        return self._world.windows.ahead(window, self, self._where, self._piece.times, upper=upper)
