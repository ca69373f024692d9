"""What tests have shown of rules: which fired, and which comparisons were seen both true and false."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

import msgspec

from virtpilot.model import Kind
from virtpilot.rules.language.clauses import parts
from virtpilot.rules.language.expression import Condition
from virtpilot.rules.language.records import Rule


class Measured(Protocol):
    """A subject as last measured."""

    @property
    def time_ns(self) -> int:
        """When it was measured."""


class Observed(Protocol):
    """What is asked of the evaluator."""

    def latest(self, kind: Kind) -> Mapping[str, Measured]:
        """Return all subjects of a kind as last measured."""

    def holds(self, condition: Condition, subject_id: str, after_ns: int) -> bool | None:
        """Tell whether a condition holds; None while that is not known."""

    def inputs(self, condition: Condition, subject_id: str) -> dict[str, float]:
        """Return the values that a condition reads just now."""


class Clause(msgspec.Struct):
    """One comparison of a rule's key (`when`, `clear`, `where`), and how often it was seen true and false."""

    key: str
    condition: Condition
    true: int = 0
    false: int = 0


class Reading(msgspec.Struct, frozen=True):
    """What a rule saw of a subject at one sample: the values, and for each clause whether it held."""

    time_ns: int
    values: dict[str, float]
    held: tuple[bool | None, ...]


class Coverage:
    """Watches an evaluator while tests run; `readings` of the present one are kept for its report."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self.rules = {rule.name: rule for rule in rules}
        self.clauses = {rule.name: [Clause(*part) for part in parts(rule)] for rule in self.rules.values()}
        self.fired: set[str] = set()
        self.tested: set[str] = set()
        self.readings: dict[tuple[str, str], list[Reading]] = {}

    def begin(self) -> None:
        """Start with another test."""
        self.readings = {}

    def observe(self, evaluator: Observed) -> None:
        """Note what each rule sees of each subject that was measured since the last call."""
        latest = {kind: evaluator.latest(kind) for kind in Kind}
        for rule in self.rules.values():
            for subject_id, row in latest[rule.on].items():
                kept = self.readings.setdefault((rule.name, subject_id), [])
                if not kept or kept[-1].time_ns < row.time_ns:
                    kept.append(self._read(rule, subject_id, row.time_ns, evaluator))

    def _read(self, rule: Rule, subject_id: str, time_ns: int, evaluator: Observed) -> Reading:
        held = []
        values: dict[str, float] = {}
        for clause in self.clauses[rule.name]:
            truth = evaluator.holds(clause.condition, subject_id, -1)
            held.append(truth)
            values |= evaluator.inputs(clause.condition, subject_id)
            clause.true += truth is True
            clause.false += truth is False
        return Reading(time_ns, values, tuple(held))

    def gaps(self) -> Iterator[str]:
        """Yield what no test has shown."""
        for name in self.rules:
            if name not in self.tested:
                yield f"{name}: no test expects anything of it"
                continue
            if name not in self.fired:
                yield f"{name}: never fired"
            for clause in self.clauses[name]:
                never = [word for word, count in (("true", clause.true), ("false", clause.false)) if not count]
                if never:
                    yield f"{name}: `{clause.condition.text}` in `{clause.key}` was never {' nor '.join(never)}"

    def counts(self) -> tuple[int, int, int, int]:
        """Return how many rules fired, of how many, and how many clauses were both true and false, of how many."""
        every = [clause for found in self.clauses.values() for clause in found]
        both = sum(1 for clause in every if clause.true and clause.false)
        return len(self.fired & self.rules.keys()), len(self.rules), both, len(every)
