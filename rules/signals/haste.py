"""Which messages cannot wait: those with which a signal may begin to fire.

Told before a message is in the tables, by its own values and by what is known of its subjects: what is pending for long
enough, what is clearing, and rules without `for`. Of windows their bounds are asked, and of devices what was known of
them before. To err costs somebody a moment, never a signal: the message is evaluated a little later all the same.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from virtpilot.lineblocks import Lines
from virtpilot.model import Kind
from virtpilot.rules.language.typed import Numbers, Window
from virtpilot.rules.signals.columns import RowColumns
from virtpilot.rules.signals.gate import Gate
from virtpilot.rules.signals.machine import INACTIVE, Machine
from virtpilot.rules.signals.quick import Piece, Quick
from virtpilot.rules.signals.world import World


class Haste:
    """Tells of messages of agents, one host each."""

    def __init__(self, world: World, quick: Quick) -> None:
        self._world, self._quick = world, quick
        self._at_once = {
            kind: [machine for machine in world.bank.machines(kind) if not machine.rule.for_ns] for kind in Kind
        }
        self._gates = {kind: Gate([machine.rule for machine in of]) for kind, of in self._at_once.items()}

    def of(self, lines: Lines) -> bool | None:
        """Tell whether a signal may begin to fire; None where a message is not just news of what is known already."""
        pieces = self._quick.of_message(lines, "", 0)
        if pieces is None:
            return None
        with np.errstate(all="ignore"):
            return any(self._may_begin(kind, piece, pieces[Kind.HOST]) for kind, of in pieces.items() for piece in of)

    def _may_begin(self, kind: Kind, piece: Piece, hosts: list[Piece]) -> bool:
        columns = Ahead(self._world, kind, piece, hosts[0] if len(hosts) == 1 else None)
        return any(
            np.count_nonzero(mask & self._world.bank.scout(machine.rule.name)(columns))
            for machine, mask in self._candidates(kind, piece, columns)
        )

    def _candidates(self, kind: Kind, piece: Piece, columns: RowColumns) -> Iterator[tuple[Machine, NDArray[np.bool_]]]:
        """Yield the machines of which a signal would fire if its condition held, each with the rows of which."""
        where = piece.group.where
        yield from self._world.bank.in_haste(kind, where, piece.times)
        for place in np.flatnonzero(self._gates[kind].open(columns)).tolist():
            machine = self._at_once[kind][place]
            yield machine, machine.state[where] == INACTIVE


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
