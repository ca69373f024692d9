"""The first stage: samples in, signal transitions out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec
import numpy as np
import structlog
from numpy.typing import NDArray

from virtpilot.clock import seconds
from virtpilot.lineblocks import Lines
from virtpilot.model import Kind, Sample, Signal, SignalState, Subject, record_id
from virtpilot.rules.language.expression import Condition, Masks
from virtpilot.rules.language.records import Rule, RuleSet
from virtpilot.rules.signals.bank import Change
from virtpilot.rules.signals.film.film import Film, film_of
from virtpilot.rules.signals.film.reels import Coming
from virtpilot.rules.signals.haste import Haste
from virtpilot.rules.signals.intake import Entries, Intake, Segment
from virtpilot.rules.signals.knobs import Knobs
from virtpilot.rules.signals.machine import INACTIVE
from virtpilot.rules.signals.made import signal_of
from virtpilot.rules.signals.panel import Panel
from virtpilot.rules.signals.quick import Quick
from virtpilot.rules.signals.saved import (
    VERSION,
    Saved,
    SavedHistory,
    SavedRule,
    Turn,
    checked,
    checked_histories,
    checked_turns,
)
from virtpilot.rules.signals.silence import absent, gone_ns, next_absence_ns
from virtpilot.rules.signals.table import Row
from virtpilot.rules.signals.tolerance import Tolerance
from virtpilot.rules.signals.world import World
from virtpilot.rules.signals.written import fragments

log = structlog.get_logger(__name__)

_KNOBS_NS: Final = seconds(60)


class Evaluator:
    """Columns of values and a machine per rule; deterministic for the same samples in the same order."""

    def __init__(
        self,
        ruleset: RuleSet,
        also: Mapping[str, Iterable[str]] | None = None,
        tolerance: Tolerance = Tolerance(),  # noqa: B008 - frozen
    ) -> None:
        self._tolerance = tolerance
        self._world = World(ruleset, also or {}, tolerance)
        self._tables = self._world.tables
        self._bank = self._world.bank
        self._intake = Intake(self._world, tolerance)
        self._quick = Quick(self._world, self._intake)
        self._knobs = Knobs()
        self.haste = Haste(self._world, self._quick)
        self._ended: list[Signal] = []
        self._ahead_told = self._knobs_until_ns = 0

    @property
    def late(self) -> int:
        """How many samples were no news."""
        return self._intake.late

    @property
    def ahead(self) -> int:
        """How many samples came from the future."""
        return self._intake.ahead

    def feed(self, samples: Iterable[Sample], cause: str) -> list[Signal]:
        """Take samples (of one message, `cause` is its id) and return the transitions, in order."""
        signals, self._ended = self._ended, []
        for segment in self._intake.segments(samples, cause, self._knob):
            signals += self.evaluate(segment)
        return signals

    def feed_messages(self, messages: Sequence[tuple[Lines, str]]) -> list[Signal]:
        """Do as `feed` does with the lines of messages, each with its id: mostly with whole columns at once."""
        taken = self._quick.take(messages)
        if taken is None:
            if len(messages) == 1:
                return self.feed(messages[0][0].samples(), messages[0][1])
            return [signal for message in messages for signal in self.feed_messages([message])]
        signals, self._ended = self._ended, []
        for lines, _cause in messages:
            self._knobs.take(lines, self._intake)
        signals += self.evaluate(taken.segment)
        self._quick.devices.put(taken.after)
        return signals

    def film(self, coming: Coming, tick_ns: int) -> Film | None:
        """Return frames to come as a film, None where they are not just more of the same; see `film_of`."""
        return film_of(self._world, self._intake, coming, tick_ns, self._tolerance)

    def pass_time(self, now_ns: int, others: Iterable[Sample] = ()) -> None:
        """Let it be later, with ticks and samples of which nothing comes; `others` are the newest of no subject."""
        self._intake.now_ns = now_ns
        for sample in others:
            self._knob(sample)

    def _knob(self, sample: Sample) -> None:
        self._knobs.take_sample(sample, self._intake)

    def evaluate(self, segment: Segment) -> list[Signal]:
        """Evaluate the rules on samples that are in the tables already; returns the transitions, in order."""
        found: list[tuple[int, int, Signal]] = []
        for kind, entries in segment.items():
            found += self._step(kind, entries)
        found.sort(key=lambda item: item[:2])
        return [signal for _order, _rule, signal in found]

    def _step(self, kind: Kind, entries: Entries) -> Iterator[tuple[int, int, Signal]]:
        """Take a sample of each of these subjects of one kind; yields each transition with its place and its rule's."""
        rows, times, patience, orders, where = entries
        columns = self._world.columns(kind, rows, where)
        self._world.windows.take(kind, columns, columns.where, times)
        changes = self._bank.step(columns, kind, rows, times, patience)
        for at, number, signal in self._signals(changes, rows, times):
            yield int(orders[at]), number, signal

    def _signals(
        self, changes: Sequence[Change], rows: NDArray[np.int64], times: NDArray[np.int64]
    ) -> list[tuple[int, int, Signal]]:
        """Return the signals of transitions, each with its place and its rule's: what a rule reads is read once."""
        of: dict[str, list[Change]] = {}
        for change in changes:
            of.setdefault(change[2].name, []).append(change)
        found = []
        for own in of.values():
            rule = own[0][2]
            read = self._world.inputs(rule.when, rows[[change[0] for change in own]])
            for (at, number, _rule, old, new), inputs in zip(own, read, strict=True):
                found.append((at, number, self._signal(rule, int(rows[at]), inputs, (old, new), int(times[at]))))
        return sorted(found, key=lambda one: one[:2])

    def _signal(self, rule: Rule, row: int, inputs: dict[str, float], states: tuple[int, int], at_ns: int) -> Signal:
        table = self._tables[rule.on]
        subject = table.subjects[row]
        assert subject is not None  # noqa: S101 - a row that is evaluated belongs to a subject
        return signal_of(rule, subject, table.causes[row], inputs, states, at_ns)

    def tick(self, now_ns: int) -> list[Signal]:
        """Notice what did not come: apply `no_data` to silent subjects, end the signals of those that are gone."""
        self._intake.now_ns = now_ns
        signals, self._ended = self._ended, []
        silent: dict[Kind, list[str]] = {}
        for kind in (Kind.HOST, Kind.VM):
            silent[kind], gone = self._absent(kind, now_ns)
            for subject_id in gone:
                signals += self._end(kind, subject_id, now_ns)
        self._world.look_around(silent)
        for kind, quiet in silent.items():
            if quiet:
                signals += self._silent(kind, quiet, now_ns)
        signals += self._cluster(now_ns)
        self._forget(now_ns)
        if self.ahead > 2 * self._ahead_told:
            self._ahead_told = self.ahead
            log.warning("samples from the future are dropped: is a host's clock wrong?", count=self.ahead)
        return signals

    def _forget(self, now_ns: int) -> None:
        """Drop knobs and devices that nobody tells of any more, now and then; soon also when the clock was set back."""
        if 0 < self._knobs_until_ns - now_ns <= _KNOBS_NS:
            return
        self._knobs_until_ns = now_ns + _KNOBS_NS
        oldest_ns, newest_ns = now_ns - self._tolerance.forget_ns, now_ns + self._tolerance.ahead_ns
        self._knobs = self._knobs.between(oldest_ns, newest_ns)
        self._world.forget_devices(oldest_ns, newest_ns)

    def _absent(self, kind: Kind, now_ns: int) -> tuple[list[str], list[str]]:
        return absent(self._tables[kind], self._tolerance, now_ns)

    def silent(self, now_ns: int) -> bool:
        """Tell whether some subject is silent, or gone."""
        return any(any(self._absent(kind, now_ns)) for kind in (Kind.HOST, Kind.VM))

    def next_silence_ns(self, now_ns: int) -> int | None:
        """Return when somebody falls silent, or they or a device are gone, if no more comes; None where none is."""
        found = [next_absence_ns(self._tables[kind], self._tolerance, now_ns) for kind in (Kind.HOST, Kind.VM)]
        found += [
            gone_ns(table, self._tolerance.forget_ns + _KNOBS_NS, now_ns) for table in self._world.devices.values()
        ]
        return min((at_ns for at_ns in found if at_ns is not None), default=None)

    def measured(self, kind: Kind) -> dict[str, int]:
        """Return all subjects of a kind, each with the time of its newest sample."""
        table = self._tables[kind]
        return {subject_id: int(table.time[row]) for subject_id, row in table.rows()}

    def _end(self, kind: Kind, subject_id: str, now_ns: int) -> list[Signal]:
        row = self._tables[kind].row_of[subject_id]
        ended = self._bank.end(kind, row)
        signals = [
            self._signal(rule, row, self._world.inputs(rule.when, np.array([row]))[0], (old, INACTIVE), now_ns)
            for rule, old in ended
        ]
        self._world.remove(kind, subject_id)
        return signals

    def _cluster(self, now_ns: int) -> list[Signal]:
        """Evaluate the rules on the cluster: a tick is its sample."""
        table, name = self._tables[Kind.CLUSTER], self._world.cluster
        if not name or not self._bank.about(Kind.CLUSTER):
            return []
        row = table.add(name)
        if now_ns <= table.time[row]:
            return []
        patience = self._intake.patience(float(table.interval[row]))
        table.put(row, Subject(Kind.CLUSTER, name, name), now_ns, {}, f"tick/{now_ns}")
        entries = Entries(np.array([row]), np.array([now_ns]), np.array([patience]), [0])
        return [signal for _order, _rule, signal in self._step(Kind.CLUSTER, entries)]

    def _silent(self, kind: Kind, quiet: list[str], now_ns: int) -> list[Signal]:
        row_of = self._tables[kind].row_of
        rows = np.array([row_of[subject_id] for subject_id in quiet], np.int64)
        changes = self._bank.silence(self._world.columns(kind, rows), kind, rows, now_ns)
        found = self._signals(changes, rows, np.full(len(rows), now_ns))
        return [signal for _at, _number, signal in found]

    def holds(self, condition: Condition, subject_id: str, after_ns: int) -> bool | None:
        """Tell whether a condition holds by a sample after `after_ns`; None while that is not known."""
        return self._world.holds(condition, subject_id, after_ns)

    def knows(self, kind: Kind, subject_id: str) -> bool:
        """Tell whether a subject is measured."""
        return subject_id in self._tables[kind].row_of

    def known(self, kind: Kind) -> list[str]:
        """Return the ids of all subjects of a kind that are measured."""
        return list(self._tables[kind].row_of)

    def truths(self, kind: Kind, conditions: Iterable[Condition], ids: Sequence[str]) -> list[Masks]:
        """Return for each condition of which subjects it is true and of which false now; all of them must be known."""
        return self._world.truths(kind, conditions, ids)

    def look(self, panel: Panel, ids: Sequence[str]) -> Masks:
        """Return of which subjects each condition of a panel is true and of which false now; all must be known."""
        return self._world.look(panel, ids)

    def inputs(self, condition: Condition, subject_id: str, *more: Condition) -> dict[str, float]:
        """Return the values that conditions about one kind read of a subject just now; empty where it is not known."""
        row = self._tables[condition.on].row_of.get(subject_id)
        return {} if row is None else self._world.inputs_of([condition, *more], row)

    def row(self, kind: Kind, subject_id: str) -> Row | None:
        """Return a subject as last measured, None where it is not known."""
        return self._world.row(kind, subject_id)

    def latest(self, kind: Kind) -> dict[str, Row]:
        """Return all subjects of a kind as last measured."""
        rows = ((subject_id, self.row(kind, subject_id)) for subject_id in self._tables[kind].row_of)
        return {subject_id: row for subject_id, row in rows if row is not None}

    def knob(self, guest: str, knob: str) -> tuple[float, int] | None:
        """Return a knob's measured value and when it was, None where it is not known."""
        return self._knobs.get(guest, knob)

    @property
    def world(self) -> World:
        """All that the rules see."""
        return self._world

    def active(self, kind: Kind) -> set[str]:
        """Return the subjects of which some signal is pending, firing or clearing."""
        subjects = self._tables[kind].subjects
        return {subject.id for row in self._bank.active(kind) if (subject := subjects[row]) is not None}

    def firing_counts(self) -> dict[str, int]:
        """Return how many subjects of each rule fire just now (or are clearing); any thread may ask."""
        return self._bank.firing_counts()

    def firing(self) -> Iterator[tuple[Rule, Subject]]:
        """Yield what fires just now (or is clearing)."""
        for rule, row in self._bank.firing():
            subject = self._tables[rule.on].subjects[row]
            if subject is not None:
                yield rule, subject

    def fragments(self) -> Iterator[bytes]:
        """Yield the state but for the windows' as JSON text, piece by piece."""
        return fragments(self._tables, self._knobs, self._bank, self._world.cluster)

    def snapshot(self) -> dict[str, Any]:
        """Return the whole state, JSON-able."""
        windows = self._world.windows
        saved = Saved(
            VERSION,
            {kind: list(table.dump()) for kind, table in self._tables.items()},
            list(self._knobs),
            self._bank.dump(),
            [part for key in windows.histories() for part in windows.dump(key)],
            self._world.cluster,
        )
        document: dict[str, Any] = msgspec.to_builtins(saved)
        return document

    def move(self, by_ns: int) -> None:
        """Move all that is known to another time: the clocks of those who measure were set, together with ours."""
        if self._intake.now_ns:
            self._intake.now_ns += by_ns
        self._world.move(by_ns)
        self._knobs.move(by_ns)

    def turn(self, signal: Signal) -> Turn:
        """Return what a restart must know of a transition that was made just now, beyond what was saved before it."""
        table = self._tables[signal.subject.kind]
        row = table.row_of.get(signal.subject.id)
        machine = self._bank.machine(signal.rule)
        if row is None or machine is None:
            return Turn(signal=signal, digest="", time=signal.at_ns, since=signal.at_ns, seen=signal.at_ns)
        time, since, seen = (int(column[row]) for column in (table.time, machine.since, machine.seen))
        return Turn(signal=signal, digest=machine.rule.digest, time=time, since=since, seen=seen)

    def restore(self, snapshot: Mapping[str, Any], windows: Iterable[SavedHistory] = ()) -> None:
        """Take up a former state, whole or not at all, and windows that were saved apart, up to damaged ones.

        Raises StateError.

        A rule that has changed starts afresh. Its signals of before, and those of a rule that is no more, end: the
        next `feed` or `tick` says so.
        """
        saved = checked(snapshot)
        for kind, table in self._tables.items():
            for part in saved.tables.get(kind, ()):
                table.load(part)
            self._world.grow(table.kind)
        self._world.cluster = saved.cluster
        self._world.find_hosts()
        self._world.windows.load(saved.windows)
        self._world.windows.load(checked_histories(windows))
        self._knobs = Knobs(saved.knobs)
        self._end_all(rule for rule in saved.rules if not self._bank.load(rule))

    def take_over(self, former: Evaluator) -> None:
        """Do as `restore` does with the state of an evaluator that nobody uses any more, without a copy of it."""
        self._ended, self._knobs, self._intake.now_ns = former._ended, former._knobs, former._intake.now_ns
        self._end_all(self._world.take_over(former._world))

    def _end_all(self, rules: Iterable[SavedRule]) -> None:
        """End the signals of rules that are not in force any more."""
        for rule in rules:
            for state in rule.states:
                self._ended += self._over(rule.name, *state)

    def resume(self, turns: Mapping[str, Any]) -> None:
        """Take up the transitions after what `restore` took up; raises StateError."""
        for turn in checked_turns(turns):
            signal = turn.signal
            table, machine = self._tables[signal.subject.kind], self._bank.machine(signal.rule)
            if machine is None or machine.rule.digest != turn.digest:
                continue
            if signal.state is SignalState.INACTIVE and signal.subject.id not in table.row_of:
                continue
            row = table.add(signal.subject.id)
            self._world.grow(table.kind)
            if table.subjects[row] is None:
                table.put(row, signal.subject, turn.time, signal.inputs, signal.cause)
            table.time[row] = max(int(table.time[row]), turn.time)
            self._bank.resume(machine, row, signal.state, turn.since, turn.seen)

    def _over(self, rule: str, subject_id: str, state: SignalState, since: int, _seen: int) -> list[Signal]:
        """Return the end of a signal whose rule is not in force any more."""
        for table in self._tables.values():
            row = table.row_of.get(subject_id)
            subject = None if row is None else table.subjects[row]
            if row is not None and subject is not None:
                at_ns = max(int(table.time[row]), since)
                signal = Signal(
                    id=record_id("sg", rule, subject_id, SignalState.INACTIVE, at_ns),
                    cause=table.causes[row],
                    rule=rule,
                    subject=subject,
                    previous=state,
                    state=SignalState.INACTIVE,
                    at_ns=at_ns,
                    about="The rule has been changed or removed.",
                )
                return [signal]
        return []
