"""The state machine of one rule on all its subjects, in arrays.

inactive ── true ──▶ pending ── for ──▶ firing ── clear ──▶ clearing ── clear_for ──▶ inactive
               ◀── false ──                  ◀── not clear ──
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from virtpilot.model import SignalState
from virtpilot.rules.language.records import NoData, Rule
from virtpilot.rules.language.typed import Columns
from virtpilot.rules.signals.columns import masks

INACTIVE, PENDING, FIRING, CLEARING = range(4)
STATES: Final = (SignalState.INACTIVE, SignalState.PENDING, SignalState.FIRING, SignalState.CLEARING)
CODES: Final = {state: code for code, state in enumerate(STATES)}

Transitions = list[tuple[int, int, int]]


class Machine:
    """Keeps for each row a state, since when its condition has held, and when it was last seen to hold."""

    def __init__(self, rule: Rule, capacity: int, active: NDArray[np.int64] | None = None) -> None:
        self.rule = rule
        self.state: NDArray[np.uint8] = np.zeros(capacity, np.uint8)
        self.since: NDArray[np.int64] = np.zeros(capacity, np.int64)
        self.seen: NDArray[np.int64] = np.zeros(capacity, np.int64)
        self.active: NDArray[np.int64] = np.zeros(1, np.int64) if active is None else active
        """How many rows are not inactive: one number, in an array so that those of all rules may lie together."""
        self.due: NDArray[np.int64] = np.zeros(capacity, np.int64)
        """When something that is pending may fire at the earliest: one array for all rules of a bank about a kind."""
        self.fired: NDArray[np.int64] | None = None
        """When the signal was last seen firing, where some rule asks for that."""

    def remember(self) -> None:
        """Keep when the signal was last seen firing."""
        self.fired = np.zeros(len(self.state), np.int64)

    def forget(self, row: int) -> None:
        """Forget a row."""
        self.put(row, INACTIVE, 0, 0)
        if self.fired is not None:
            self.fired[row] = 0

    def put(self, row: int, state: int, since: int, seen: int) -> None:
        """Put a row where it is to be."""
        self.active[0] += int(state != INACTIVE) - int(self.state[row] != INACTIVE)
        self.state[row], self.since[row], self.seen[row] = state, since, seen
        self.due[row] = 0

    def grow(self, capacity: int) -> None:
        """Make room for more rows."""
        more = capacity - len(self.state)
        if more > 0:
            self.state = np.pad(self.state, (0, more))
            self.since = np.pad(self.since, (0, more))
            self.seen = np.pad(self.seen, (0, more))
            self.due = np.pad(self.due, (0, more))
            if self.fired is not None:
                self.fired = np.pad(self.fired, (0, more))

    def move(self, by_ns: int) -> None:
        """Move all times; 0 stands for never."""
        for column in (self.since, self.seen, self.fired):
            if column is not None:
                column[column > 0] += by_ns

    def take_over(self, former: Machine) -> None:
        """Go on where a machine was that nobody uses any more."""
        self.state, self.since, self.seen = former.state, former.since, former.seen
        self.active[0] = np.count_nonzero(self.state)
        if self.fired is not None and former.fired is not None:
            self.fired = former.fired

    def step(
        self,
        columns: Columns,
        rows: NDArray[np.int64],
        times: NDArray[np.int64],
        patience: NDArray[np.int64],
        *,
        silent: bool = False,
    ) -> Transitions:
        """Take one sample of each row, or note that none comes (`silent`): then all that the rule reads is missing.

        `patience` is how long (ns) nothing may be known without `for` and `clear_for` beginning again.
        Returns (position in `rows`, former state, new state) for each row that has changed.
        """
        state = self.state[rows]
        given = self.given(columns, times, silent=silent, may_clear=bool(np.count_nonzero(state >= FIRING)))
        return self.go(given, state, rows, times, patience)

    def go(
        self,
        given: Given,
        state: NDArray[np.uint8],
        rows: NDArray[np.int64],
        times: NDArray[np.int64],
        patience: NDArray[np.int64],
    ) -> Transitions:
        """Take what the conditions say of each row, whose state is `state`; see `step`."""
        # Where nothing is and nothing fires, nothing happens: mostly that is nearly everywhere.
        live = np.flatnonzero((state != INACTIVE) | given.fires)
        if not len(live):
            return []
        given, rows, times, patience = given.only(live), rows[live], times[live], patience[live]
        old, new = state[live], state[live]
        new[(old == INACTIVE) & given.fires] = PENDING
        new[(old == PENDING) & given.gives_up] = INACTIVE
        new[(old == FIRING) & given.clears] = CLEARING
        new[(old == CLEARING) & given.stays] = FIRING
        again = (new != old) | (times - self.seen[rows] > patience)
        since = np.where(again, times, self.since[rows])
        held = ((new == PENDING) & given.fires) | ((new == CLEARING) & given.clears)
        self.seen[rows] = np.where(held, times, self.seen[rows])
        new[(new == PENDING) & held & (times - since >= self.rule.for_ns)] = FIRING
        new[(new == CLEARING) & held & (times - since >= self.rule.clear_for_ns)] = INACTIVE
        # Where the rule does not apply (any more) there is nothing to wait for.
        new[given.void] = INACTIVE
        self.active[0] += int(np.count_nonzero(new)) - int(np.count_nonzero(old))
        self.state[rows] = new
        self.since[rows] = since
        waits = np.flatnonzero(new == PENDING)
        if len(waits):
            self.due[rows[waits]] = np.minimum(self.due[rows[waits]], since[waits] + self.rule.for_ns)
        if self.fired is not None:
            self.fired[rows] = np.where((old >= FIRING) | (new >= FIRING), times, self.fired[rows])
        return [(int(live[at]), int(old[at]), int(new[at])) for at in np.flatnonzero(new != old)]

    def given(
        self, columns: Columns, times: NDArray[np.int64], *, silent: bool = False, may_clear: bool = True
    ) -> Given:
        """Return what the rule's conditions say of each row at its time.

        What clears a signal need not be asked where none fires.
        """
        return self._in_time(self._inputs(columns, len(times), silent=silent, may_clear=may_clear), times)

    def _inputs(self, columns: Columns, count: int, *, silent: bool, may_clear: bool) -> Given:
        rule = self.rule
        none = np.zeros(count, np.bool_)
        fires, calm = (none, none) if silent else masks(rule.when, columns, count)
        if rule.clear is None or not may_clear:
            clears, stays = calm, fires
        else:
            clears, stays = (none, none) if silent else masks(rule.clear, columns, count)
        if rule.no_data is NoData.FIRE:
            unknown = ~(fires | calm)
            fires, clears, stays = fires | unknown, clears & ~unknown, stays | unknown
        elif rule.no_data is NoData.CLEAR:
            # What is missing speaks for calm, in the condition and in `clear`, unless the condition holds.
            clears, stays = clears | ~(fires | clears | stays) | ~(fires | calm), stays & (fires | calm)
            calm = ~fires
        given = Given(fires, calm, clears, stays, none)
        if rule.where is None and rule.unless is None:
            return given
        return self._where(given, columns, count)

    def _in_time(self, given: Given, times: NDArray[np.int64]) -> Given:
        """Let a rule rest outside of its times."""
        if not self.rule.during and not self.rule.not_during:
            return given
        rests = np.array([not self.rule.in_time(at_ns) for at_ns in times.tolist()], np.bool_)
        return given._replace(fires=given.fires & ~rests, clears=given.clears & ~rests, void=given.void | rests)

    def _where(self, given: Given, columns: Columns, count: int) -> Given:
        """Let a rule speak only where it applies; where that is not known, all stays as it is."""
        applies, apart = np.ones(count, np.bool_), np.zeros(count, np.bool_)
        if self.rule.where is not None:
            applies, apart = masks(self.rule.where, columns, count)
        if self.rule.unless is not None:
            held, free = masks(self.rule.unless, columns, count)
            applies, apart = applies & free, apart | held
        if self.rule.no_data is NoData.CLEAR:
            apart = ~applies
        fires, calm, clears, stays, _void = given
        return Given(fires & applies, calm & applies, clears & applies, stays & applies, apart)


class Given(NamedTuple):
    """What a rule's conditions say of each row; where neither a thing nor its opposite, it is not known."""

    fires: NDArray[np.bool_]
    gives_up: NDArray[np.bool_]
    clears: NDArray[np.bool_]
    stays: NDArray[np.bool_]
    void: NDArray[np.bool_]

    def only(self, places: NDArray[np.int64]) -> Given:
        """Return what is said of some of the rows."""
        return Given(*(mask[places] for mask in self))
