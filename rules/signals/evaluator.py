"""The first stage: samples in, signal transitions out.

Samples are taken in the order in which they come, however they are batched: a batch is cut into segments in which each
subject occurs once and no host comes after one of its guests, and a segment is evaluated in columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import msgspec
import numpy as np

from virtpilot.clock import seconds
from virtpilot.model import Kind, Sample, Signal, SignalState, Subject, record_id
from virtpilot.rules.language.expression import Condition
from virtpilot.rules.language.records import NoData, Rule, RuleSet
from virtpilot.rules.signals.columns import RowColumns, masks
from virtpilot.rules.signals.machine import CODES, FIRING, INACTIVE, PENDING, STATES, Machine
from virtpilot.rules.signals.table import Row, Table

_KINDS: Final = {"host": Kind.HOST, "vm": Kind.VM}
_OWN_TAGS: Final = frozenset({"cluster", "host", "vm", "name"})


class Tolerance(msgspec.Struct, frozen=True):
    """How much silence is borne."""

    gap_intervals: float = 3.0
    """A gap of so many usual intervals does not restart `for` and `clear_for`."""
    stale_ns: int = seconds(60)
    """A subject silent for longer has no data (at least `gap_intervals`)."""
    forget_ns: int = seconds(3600)
    """A subject silent for longer is gone: its signals end."""


class _Segment(msgspec.Struct):
    """Samples that can be taken together: (row, time, gap) in order of arrival, by kind."""

    rows: dict[Kind, list[tuple[int, int, bool, int]]]
    guests_of: set[str]


class Evaluator:
    """Columns of values and a machine per rule; deterministic for the same samples in the same order."""

    def __init__(
        self,
        ruleset: RuleSet,
        also: Mapping[str, Iterable[str]] | None = None,
        tolerance: Tolerance = Tolerance(),  # noqa: B008 - frozen
    ) -> None:
        wanted = {name: set(fields) for name, fields in ruleset.wanted().items()}
        for measurement, fields in (also or {}).items():
            wanted.setdefault(measurement, set()).update(fields)
        self._tolerance = tolerance
        self._tables = {kind: Table(kind, wanted.get(name, ())) for name, kind in _KINDS.items()}
        self._machines = [Machine(rule, self._tables[rule.on].capacity) for rule in ruleset.rules]
        self._knobs: dict[tuple[str, str], tuple[float, int]] = {}
        self.late = 0

    def feed(self, samples: Iterable[Sample], cause: str) -> list[Signal]:
        """Take samples (of one message, `cause` is its id) and return the transitions, in order."""
        signals: list[Signal] = []
        segment = _Segment({Kind.HOST: [], Kind.VM: []}, set())
        taken: set[tuple[Kind, int]] = set()
        for order, sample in enumerate(samples):
            subject = _subject(sample)
            if subject is None:
                self._knob(sample)
                continue
            table = self._tables[subject.kind]
            known = table.row_of.get(subject.id)
            if known is not None and sample.time_ns <= table.time[known]:
                self.late += 1
                continue
            again = known is not None and (subject.kind, known) in taken
            if again or (subject.kind is Kind.HOST and subject.id in segment.guests_of):
                signals += self._evaluate(segment)
                segment, taken = _Segment({Kind.HOST: [], Kind.VM: []}, set()), set()
            row = self._put(table, subject, sample, cause, order, segment)
            taken.add((subject.kind, row))
        return signals + self._evaluate(segment)

    def _knob(self, sample: Sample) -> None:
        guest, knob = sample.tags.get("vm"), sample.tags.get("knob")
        value = sample.fields.get("value_count")
        if sample.measurement == "knob" and guest and knob and value is not None:
            known = self._knobs.get((guest, knob))
            if known is None or sample.time_ns > known[1]:
                self._knobs[guest, knob] = (float(value), sample.time_ns)

    def _put(self, table: Table, subject: Subject, sample: Sample, cause: str, order: int, segment: _Segment) -> int:
        row = table.add(subject.id)
        for machine in self._machines:
            if machine.rule.on is table.kind and len(machine.state) < table.capacity:
                machine.grow(table.capacity)
        silence = sample.time_ns - int(table.time[row])
        gap = table.interval[row] > 0 and silence > self._tolerance.gap_intervals * table.interval[row]
        table.put(row, subject, sample.time_ns, sample.fields, cause)
        if table.kind is Kind.VM:
            # A host that has not been measured yet gets its row now, empty: the guest's inputs are unknown until then.
            hosts = self._tables[Kind.HOST]
            table.host_row[row] = hosts.row_of.get(subject.host, -1)
            segment.guests_of.add(subject.host)
        segment.rows[table.kind].append((row, sample.time_ns, bool(gap), order))
        return row

    def _evaluate(self, segment: _Segment) -> list[Signal]:
        found: list[tuple[int, int, Signal]] = []
        for kind, entries in segment.rows.items():
            if not entries:
                continue
            table = self._tables[kind]
            rows = np.array([entry[0] for entry in entries], np.int64)
            times = np.array([entry[1] for entry in entries], np.int64)
            gaps = np.array([entry[2] for entry in entries], np.bool_)
            columns = RowColumns(table, self._tables[Kind.HOST], rows)
            for number, machine in enumerate(self._machines):
                if machine.rule.on is kind:
                    for at, old, new in machine.step(columns, rows, times, gaps):
                        signal = self._signal(machine.rule, table, entries[at][0], old, new, entries[at][1])
                        found.append((entries[at][3], number, signal))
        found.sort(key=lambda item: item[:2])
        return [signal for _order, _rule, signal in found]

    def _signal(self, rule: Rule, table: Table, row: int, old: int, new: int, at_ns: int) -> Signal:
        subject = table.subjects[row]
        assert subject is not None  # noqa: S101 - a row that is evaluated belongs to a subject
        return Signal(
            id=record_id("sg", rule.name, subject.id, STATES[new], at_ns),
            cause=table.causes[row],
            rule=rule.name,
            subject=subject,
            previous=STATES[old],
            state=STATES[new],
            at_ns=at_ns,
            severity=rule.severity,
            about=rule.about,
            inputs=self._read(rule.when, table, row),
            notify=list(rule.notify),
        )

    def _read(self, condition: Condition, table: Table, row: int) -> dict[str, float]:
        """Return what a condition reads, as it stands in the table."""
        columns = RowColumns(table, self._tables[Kind.HOST], np.array([row], np.int64))
        found = {}
        for measurement, field in sorted(condition.fields):
            value = float(columns.field(measurement, field)[0])
            if not np.isnan(value):
                found[field if measurement == table.kind.value else f"{measurement}.{field}"] = value
        return found

    def tick(self, now_ns: int) -> list[Signal]:
        """Notice what did not come: apply `no_data` to silent subjects, end the signals of those that are gone."""
        signals: list[Signal] = []
        for table in self._tables.values():
            for subject_id, row in list(table.rows()):
                silence = now_ns - int(table.time[row])
                if silence > self._tolerance.forget_ns:
                    signals += self._end(table, row, now_ns)
                    table.remove(subject_id)
                elif silence > max(self._tolerance.stale_ns, self._tolerance.gap_intervals * table.interval[row]):
                    signals += self._silent(table, row, now_ns)
        if any(now_ns - at > self._tolerance.forget_ns for _value, at in self._knobs.values()):
            self._knobs = {k: v for k, v in self._knobs.items() if now_ns - v[1] <= self._tolerance.forget_ns}
        return signals

    def _end(self, table: Table, row: int, now_ns: int) -> list[Signal]:
        return [self._change(machine, table, row, INACTIVE, now_ns) for machine in self._active(table, row)]

    def _silent(self, table: Table, row: int, now_ns: int) -> list[Signal]:
        signals = []
        for machine in self._machines:
            if machine.rule.on is not table.kind:
                continue
            state = int(machine.state[row])
            if machine.rule.no_data is NoData.CLEAR and state != INACTIVE:
                signals.append(self._change(machine, table, row, INACTIVE, now_ns))
            elif machine.rule.no_data is NoData.FIRE and state == INACTIVE:
                signals.append(self._change(machine, table, row, PENDING, now_ns))
            elif machine.rule.no_data is NoData.FIRE and state == PENDING and self._due(machine, row, now_ns):
                signals.append(self._change(machine, table, row, FIRING, now_ns))
        return signals

    @staticmethod
    def _due(machine: Machine, row: int, now_ns: int) -> bool:
        return now_ns - int(machine.since[row]) >= machine.rule.for_ns

    def _active(self, table: Table, row: int) -> list[Machine]:
        return [
            machine for machine in self._machines if machine.rule.on is table.kind and machine.state[row] != INACTIVE
        ]

    def _change(self, machine: Machine, table: Table, row: int, new: int, now_ns: int) -> Signal:
        old = int(machine.state[row])
        machine.state[row] = new
        machine.since[row] = now_ns
        return self._signal(machine.rule, table, row, old, new, now_ns)

    def holds(self, condition: Condition, subject_id: str, after_ns: int) -> bool | None:
        """Tell whether a condition holds for a subject by a sample after `after_ns`; None while that is not known."""
        table = self._tables[condition.on]
        row = table.row_of.get(subject_id)
        if row is None or table.time[row] <= after_ns:
            return None
        true, false = masks(condition, RowColumns(table, self._tables[Kind.HOST], np.array([row], np.int64)), 1)
        return True if true[0] else False if false[0] else None

    def inputs(self, condition: Condition, subject_id: str) -> dict[str, float]:
        """Return the values that a condition reads of a subject just now; empty where it is not known."""
        table = self._tables[condition.on]
        row = table.row_of.get(subject_id)
        return {} if row is None else self._read(condition, table, row)

    def row(self, kind: Kind, subject_id: str) -> Row | None:
        """Return a subject as last measured, None where it is not known."""
        table = self._tables[kind]
        row = table.row_of.get(subject_id)
        if row is None:
            return None
        subject = table.subjects[row]
        assert subject is not None  # noqa: S101 - `row_of` names taken rows only
        values = table.present(row)
        on = int(table.host_row[row])
        if on >= 0:
            values |= {f"host.{name}": value for name, value in self._tables[Kind.HOST].present(on).items()}
        return Row(subject, int(table.time[row]), int(table.since[row]), values)

    def latest(self, kind: Kind) -> dict[str, Row]:
        """Return all subjects of a kind as last measured."""
        rows = ((subject_id, self.row(kind, subject_id)) for subject_id in self._tables[kind].row_of)
        return {subject_id: row for subject_id, row in rows if row is not None}

    def knob(self, guest: str, knob: str) -> tuple[float, int] | None:
        """Return a knob's measured value and when it was, None where it is not known."""
        return self._knobs.get((guest, knob))

    def firing(self) -> Iterator[tuple[Rule, Subject]]:
        """Yield what fires just now (or is clearing)."""
        for machine in self._machines:
            table = self._tables[machine.rule.on]
            for _id, row in table.rows():
                subject = table.subjects[row]
                if machine.state[row] >= FIRING and subject is not None:
                    yield machine.rule, subject

    def snapshot(self) -> dict[str, Any]:
        """Return the whole state, JSON-able."""
        return {
            "tables": {kind.value: table.dump() for kind, table in self._tables.items()},
            "knobs": [[guest, knob, value, at] for (guest, knob), (value, at) in self._knobs.items()],
            "rules": [
                {"name": m.rule.name, "digest": m.rule.digest, "states": self._states(m)} for m in self._machines
            ],
        }

    def _states(self, machine: Machine) -> list[list[Any]]:
        rows = self._tables[machine.rule.on].rows()
        return [[s, STATES[machine.state[r]], int(machine.since[r])] for s, r in rows if machine.state[r] != INACTIVE]

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Take up a former state; a rule that has changed since starts afresh."""
        for kind, table in self._tables.items():
            table.load(snapshot["tables"].get(kind.value, []))
        guests, hosts = self._tables[Kind.VM], self._tables[Kind.HOST]
        for _id, row in guests.rows():
            subject = guests.subjects[row]
            guests.host_row[row] = hosts.row_of.get(subject.host, -1) if subject is not None else -1
        self._knobs = {(guest, knob): (value, at) for guest, knob, value, at in snapshot["knobs"]}
        former = {(rule["name"], rule["digest"]): rule["states"] for rule in snapshot["rules"]}
        for machine in self._machines:
            table = self._tables[machine.rule.on]
            machine.grow(table.capacity)
            for subject_id, state, since in former.get((machine.rule.name, machine.rule.digest), ()):
                place = table.row_of.get(subject_id)
                if place is not None:
                    machine.state[place] = CODES[SignalState(state)]
                    machine.since[place] = since


def _subject(sample: Sample) -> Subject | None:
    """Return whom a sample is about, None where it is no host and no guest."""
    kind = _KINDS.get(sample.measurement)
    tags = sample.tags
    host = tags.get("host", "")
    if kind is None or not host:
        return None
    if kind is Kind.HOST:
        return Subject(kind, host, host, host, {k: v for k, v in tags.items() if k not in _OWN_TAGS})
    guest = tags.get("vm", "")
    return (
        Subject(kind, guest, tags.get("name", guest), host, {k: v for k, v in tags.items() if k not in _OWN_TAGS})
        if guest
        else None
    )
