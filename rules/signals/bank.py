"""The machines of all rules: stepped so that a signal comes before those that read it, asked what fires, saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from virtpilot.model import Kind, SignalState
from virtpilot.rules.language.devices import Of
from virtpilot.rules.language.links import sorted_by_need
from virtpilot.rules.language.records import NoData, Rule
from virtpilot.rules.language.typed import Numbers
from virtpilot.rules.signals.columns import RowColumns
from virtpilot.rules.signals.gate import Gate
from virtpilot.rules.signals.machine import CODES, FIRING, INACTIVE, PENDING, STATES, Machine
from virtpilot.rules.signals.saved import SavedRule
from virtpilot.rules.signals.scout import Scout, scout
from virtpilot.rules.signals.table import Table, Where

_NEVER_NS: Final = np.iinfo(np.int64).max
_CALM: Final[NDArray[np.bool_]] = np.zeros(1, np.bool_)
_NOWHERE: Final[NDArray[np.int64]] = np.zeros(0, np.int64)
# A place among the rows that were given, the rule's number, the rule, its former and its new state.
Change = tuple[int, int, Rule, int, int]


class Bank:
    """One machine a rule; `number` is a rule's place in its file."""

    def __init__(self, rules: Sequence[Rule], tables: Mapping[Of, Table]) -> None:
        self._tables = tables
        self._active = {kind: np.zeros(sum(rule.on is kind for rule in rules), np.int64) for kind in Kind}
        self._machines: dict[str, Machine] = {}
        self._of: dict[Kind, list[tuple[int, Machine]]] = {kind: [] for kind in Kind}
        numbers = {rule.name: number for number, rule in enumerate(rules)}
        for name in sorted_by_need({rule.name: sorted(rule.signals()) for rule in rules}):
            rule = rules[numbers[name]]
            of, active = self._of[rule.on], self._active[rule.on]
            machine = self._machines[name] = Machine(rule, tables[rule.on].capacity, active[len(of) : len(of) + 1])
            of.append((numbers[name], machine))
        self._machines = {rule.name: self._machines[rule.name] for rule in rules}
        for name in {name for rule in rules for name in rule.recalled()} & self._machines.keys():
            self._machines[name].remember()
        self._scouts = {rule.name: scout(rule) for rule in rules}
        self._gates = {kind: Gate([machine.rule for _number, machine in of]) for kind, of in self._of.items()}
        self._close: dict[Kind, NDArray[np.bool_]] = {}
        for kind in Kind:
            self._forget_due(kind)

    def _forget_due(self, kind: Kind) -> None:
        """Take it that something may fire at any time, until that is looked for."""
        due = np.zeros(self._tables[kind].capacity, np.int64)
        self._close[kind] = np.ones(len(due), np.bool_)
        for _number, machine in self._of[kind]:
            machine.due = due

    def about(self, kind: Kind) -> bool:
        """Tell whether some rule is about subjects of a kind."""
        return bool(self._of[kind])

    def machines(self, kind: Kind) -> list[Machine]:
        """Return the machines of the rules about a kind, each after those that it asks."""
        return [machine for _number, machine in self._of[kind]]

    def numbered(self, kind: Kind) -> Sequence[tuple[int, Machine]]:
        """Return the machines of the rules about a kind, each with its rule's number."""
        return self._of[kind]

    def machine(self, rule: str) -> Machine | None:
        """Return a rule's machine."""
        return self._machines.get(rule)

    def step(
        self,
        columns: RowColumns,
        kind: Kind,
        rows: NDArray[np.int64],
        times: NDArray[np.int64],
        patience: NDArray[np.int64],
    ) -> list[Change]:
        """Take one sample of each row; returns the transitions in order of rows, then of rules."""
        found: list[Change] = []
        self._close[kind][columns.where] = False
        with np.errstate(all="ignore"):
            may_fire = self._gates[kind].open(columns)
            # Most subjects are calm most of the time: nothing to do is the common case.
            for place in np.flatnonzero(may_fire | (self._active[kind] > 0)).tolist():
                number, machine = self._of[kind][place]
                live = self._live(machine, columns, len(rows), may_fire=bool(may_fire[place]))
                if len(live) == len(rows):
                    changes = machine.step(columns, rows, times, patience)
                elif len(live):
                    changes = machine.step(columns.only(live), rows[live], times[live], patience[live])
                else:
                    continue
                if not machine.rule.for_ns:
                    self._close[kind][rows[live][machine.state[rows[live]] == INACTIVE]] = True
                found += [(int(live[at]), number, machine.rule, old, new) for at, old, new in changes]
        return sorted(found, key=lambda change: change[:2])

    def _live(self, machine: Machine, columns: RowColumns, count: int, *, may_fire: bool) -> NDArray[np.int64]:
        """Return the places of the rows on which something may happen: those that are not calm, or might fire."""
        active = machine.active[0] > 0
        if not may_fire and not active:
            return _NOWHERE
        live: NDArray[np.bool_] = machine.state[columns.where] != INACTIVE if active else _CALM
        if may_fire:
            live = live | self._scouts[machine.rule.name](columns)
        return np.flatnonzero(live if len(live) == count else np.broadcast_to(live, count))

    def overdue(
        self, kind: Kind, rows: NDArray[np.int64], where: Where, times: NDArray[np.int64]
    ) -> Sequence[tuple[Machine, NDArray[np.bool_]]]:
        """Return the machines that have been pending for long enough by these times, each with the rows of which."""
        machines = self._of[kind]
        if not machines or not np.count_nonzero(late := machines[0][1].due[where] <= times):
            return ()
        found, rows, times = [], rows[late], times[late]
        soonest = np.full(len(rows), _NEVER_NS)
        for place in np.flatnonzero(self._active[kind]).tolist():
            machine = machines[place][1]
            ends = np.where(machine.state[rows] == PENDING, machine.since[rows] + machine.rule.for_ns, _NEVER_NS)
            soonest = np.minimum(soonest, ends)
            if np.count_nonzero(ends <= times):
                mask = np.zeros(len(late), np.bool_)
                mask[late] = ends <= times
                found.append((machine, mask))
        machines[0][1].due[rows] = soonest
        return found

    def close(self, kind: Kind, where: Where) -> NDArray[np.bool_]:
        """Tell on which rows a rule without `for` may fire with the next sample although nothing changes.

        Something may hold already that is not known for certain, or held before they fell silent.
        """
        return self._close[kind][where]

    def scout(self, rule: str) -> Scout:
        """Return what tells where a rule may fire."""
        return self._scouts[rule]

    def silence(self, columns: RowColumns, kind: Kind, rows: NDArray[np.int64], now_ns: int) -> list[Change]:
        """Note that no sample comes of these rows, for rules to which that means something."""
        times = np.full(len(rows), now_ns, np.int64)
        # That nothing comes is what the rule's `no_data` speaks of: no gap in it.
        patience = np.full(len(rows), np.iinfo(np.int64).max, np.int64)
        found: list[Change] = []
        self._close[kind][rows] = True
        with np.errstate(all="ignore"):
            for number, machine in self._of[kind]:
                # With `hold` nothing changes while nothing is known.
                if machine.rule.no_data is not NoData.HOLD:
                    changes = machine.step(columns, rows, times, patience, silent=True)
                    found += [(at, number, machine.rule, old, new) for at, old, new in changes]
        return sorted(found, key=lambda change: change[:2])

    def end(self, kind: Kind, row: int) -> Iterator[tuple[Rule, int]]:
        """End all signals of a row; yields each rule with its state before."""
        for _number, machine in sorted(self._of[kind], key=lambda pair: pair[0]):
            old = int(machine.state[row])
            machine.forget(row)
            if old != INACTIVE:
                yield machine.rule, old

    def grow(self, kind: Kind, capacity: int) -> None:
        """Make room for more rows of a kind."""
        for _number, machine in self._of[kind]:
            machine.grow(capacity)
        self._forget_due(kind)

    def move(self, by_ns: int) -> None:
        """Move the times of all machines."""
        for machine in self._machines.values():
            machine.move(by_ns)
        for kind in Kind:
            self._forget_due(kind)

    def fires(self, rule: str, rows: NDArray[np.int64], now_ns: NDArray[np.int64], within_ns: int) -> Numbers:
        """Tell (1, 0) of each row whether a rule's signal fires, or did within a span; NaN for rows below 0."""
        machine = self._machines.get(rule)
        if machine is None:
            return np.full(len(rows), np.nan)
        at = np.maximum(rows, 0)
        fires = machine.state[at] >= FIRING
        if within_ns and machine.fired is not None:
            fires |= machine.fired[at] >= now_ns - within_ns
        return np.where(rows >= 0, fires.astype(np.float64), np.nan)

    def firing_counts(self) -> dict[str, int]:
        """Return how many subjects of each rule fire just now (or are clearing)."""
        return {name: int(np.count_nonzero(machine.state >= FIRING)) for name, machine in self._machines.items()}

    def firing(self) -> Iterator[tuple[Rule, int]]:
        """Yield each rule and row that fires just now (or is clearing)."""
        for machine in self._machines.values():
            for row in np.flatnonzero(machine.state >= FIRING).tolist():
                yield machine.rule, row

    def active(self, kind: Kind) -> set[int]:
        """Return the rows of a kind of which some signal is pending, firing or clearing."""
        return {row for _number, machine in self._of[kind] for row in np.flatnonzero(machine.state).tolist()}

    def dump(self) -> list[SavedRule]:
        """Return all machines as they are saved."""
        return list(map(self._saved, self._machines.values()))

    def _saved(self, machine: Machine) -> SavedRule:
        return SavedRule(machine.rule.name, machine.rule.digest, self._states(machine), self._fired(machine))

    def _states(self, machine: Machine) -> list[tuple[str, SignalState, int, int]]:
        subjects = self._tables[machine.rule.on].subjects
        return [
            (subject.id, STATES[machine.state[row]], int(machine.since[row]), int(machine.seen[row]))
            for row in np.flatnonzero(machine.state).tolist()
            if (subject := subjects[row]) is not None
        ]

    def _fired(self, machine: Machine) -> list[tuple[str, int]]:
        if machine.fired is None:
            return []
        subjects = self._tables[machine.rule.on].subjects
        rows = np.flatnonzero(machine.fired > 0).tolist()
        return [(subject.id, int(machine.fired[row])) for row in rows if (subject := subjects[row]) is not None]

    def load(self, saved: SavedRule) -> bool:
        """Take up what `dump` gave of a rule; False where the rule is another one by now."""
        machine = self._machines.get(saved.name)
        if machine is None or machine.rule.digest != saved.digest:
            return False
        rows = self._tables[machine.rule.on].row_of
        for subject_id, state, since, seen in saved.states:
            if subject_id in rows:
                self.resume(machine, rows[subject_id], state, since, seen)
        for subject_id, at_ns in saved.fired:
            if machine.fired is not None and subject_id in rows:
                machine.fired[rows[subject_id]] = at_ns
        return True

    def take_over(self, former: Bank) -> Iterator[SavedRule]:
        """Go on where the machines of the same rules were, in tables of the same rows; yields the other machines."""
        for machine in former._machines.values():
            own = self._machines.get(machine.rule.name)
            if own is not None and own.rule.digest == machine.rule.digest:
                own.take_over(machine)
            else:
                yield former._saved(machine)
        for kind in Kind:
            self._forget_due(kind)

    @staticmethod
    def resume(machine: Machine, row: int, state: SignalState, since: int, seen: int) -> None:
        """Put a row of a machine where it was."""
        machine.put(row, CODES[state], since, seen)
