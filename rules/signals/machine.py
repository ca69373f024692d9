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
from virtpilot.rules.signals.columns import RowColumns, masks

INACTIVE, PENDING, FIRING, CLEARING = range(4)
STATES: Final = (SignalState.INACTIVE, SignalState.PENDING, SignalState.FIRING, SignalState.CLEARING)
CODES: Final = {state: code for code, state in enumerate(STATES)}

Transitions = list[tuple[int, int, int]]


class Machine:
    """Keeps a state and the time since which the present condition has held, for each row."""

    def __init__(self, rule: Rule, capacity: int) -> None:
        self.rule = rule
        self.state: NDArray[np.uint8] = np.zeros(capacity, np.uint8)
        self.since: NDArray[np.int64] = np.zeros(capacity, np.int64)

    def grow(self, capacity: int) -> None:
        """Make room for more rows."""
        more = capacity - len(self.state)
        self.state = np.pad(self.state, (0, more))
        self.since = np.pad(self.since, (0, more))

    def step(
        self, columns: RowColumns, rows: NDArray[np.int64], times: NDArray[np.int64], gaps: NDArray[np.bool_]
    ) -> Transitions:
        """Take one sample of each row; `gaps` tells where too much time has passed since the one before.

        Returns (position in `rows`, former state, new state) for each row that has changed.
        """
        given = self._inputs(columns, len(rows))
        old = self.state[rows]
        # Most subjects are calm most of the time: nothing to do is the common case.
        if not (old.any() or given.fires.any()):
            return []
        new = old.copy()
        new[(old == INACTIVE) & given.fires] = PENDING
        new[(old == PENDING) & given.gives_up] = INACTIVE
        new[(old == FIRING) & given.clears] = CLEARING
        new[(old == CLEARING) & given.stays] = FIRING
        since = np.where((new != old) | gaps, times, self.since[rows])
        new[(new == PENDING) & given.fires & (times - since >= self.rule.for_ns)] = FIRING
        new[(new == CLEARING) & given.clears & (times - since >= self.rule.clear_for_ns)] = INACTIVE
        # Where the rule does not apply (any more) there is nothing to wait for.
        new[given.void] = INACTIVE
        self.state[rows] = new
        self.since[rows] = since
        return [(int(at), int(old[at]), int(new[at])) for at in np.flatnonzero(new != old)]

    def _inputs(self, columns: RowColumns, count: int) -> _Inputs:
        rule = self.rule
        fires, calm = masks(rule.when, columns, count)
        clears, stays = (calm, fires) if rule.clear is None else masks(rule.clear, columns, count)
        unknown = ~(fires | calm)
        if rule.no_data is NoData.FIRE:
            fires, clears, stays = fires | unknown, clears & ~unknown, stays | unknown
        elif rule.no_data is NoData.CLEAR:
            calm, clears, stays = calm | unknown, clears | unknown, stays & ~unknown
        void = np.zeros(count, np.bool_)
        if rule.where is not None:
            applies, _ = masks(rule.where, columns, count)
            void = ~applies
            fires = fires & applies
        return _Inputs(fires, calm, clears, stays, void)


class _Inputs(NamedTuple):
    """What a rule's conditions say of each row; where neither a thing nor its opposite, it is not known."""

    fires: NDArray[np.bool_]
    gives_up: NDArray[np.bool_]
    clears: NDArray[np.bool_]
    stays: NDArray[np.bool_]
    void: NDArray[np.bool_]
