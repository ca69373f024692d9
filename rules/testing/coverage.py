"""What tests have shown of rules: which fired, and which comparisons were seen both true and false."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Protocol

import msgspec
import numpy as np

from virtpilot.model import Kind
from virtpilot.rules.language.clauses import parts
from virtpilot.rules.language.expression import Condition, Masks
from virtpilot.rules.language.records import Rule
from virtpilot.rules.signals.film.film import Film


class Observed(Protocol):
    """What is asked of the evaluator."""

    def measured(self, kind: Kind) -> Mapping[str, int]:
        """Return all subjects of a kind, each with the time of its newest sample."""

    def truths(self, kind: Kind, conditions: Iterable[Condition], ids: Sequence[str]) -> list[Masks]:
        """Return for each condition of which subjects it is true and of which false now."""

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
    """Watches an evaluator while tests run.

    With `closely` the `readings` of the present one are kept, for its report.
    """

    def __init__(self, rules: Iterable[Rule], *, closely: bool = False) -> None:
        self.rules = {rule.name: rule for rule in rules}
        self.clauses = {rule.name: [Clause(*part) for part in parts(rule)] for rule in self.rules.values()}
        self.fired: set[str] = set()
        self.tested: set[str] = set()
        self.readings: dict[tuple[str, str], list[Reading]] = {}
        self.closely = closely
        self._seen: dict[Kind, Mapping[str, int]] = {}

    def begin(self) -> None:
        """Start with another test."""
        self.readings = {}
        self._seen = {}

    def observe(self, evaluator: Observed) -> None:
        """Note what each rule sees of each subject that was measured since the last call."""
        for kind in Kind:
            own = [rule for rule in self.rules.values() if rule.on is kind]
            if not own:
                continue
            times, before = evaluator.measured(kind), self._seen.get(kind, {})
            self._seen[kind] = times
            ids = [subject_id for subject_id, time_ns in times.items() if before.get(subject_id, -1) < time_ns]
            clauses = [clause for rule in own for clause in self.clauses[rule.name]]
            found = evaluator.truths(kind, [clause.condition for clause in clauses], ids)
            for clause, (true, false) in zip(clauses, found, strict=True):
                clause.true += int(np.count_nonzero(true))
                clause.false += int(np.count_nonzero(false))
            masks = iter(found)
            for rule in own if self.closely else ():
                self._read(
                    rule,
                    {name: times[name] for name in ids},
                    list(islice(masks, len(self.clauses[rule.name]))),
                    evaluator,
                )

    def look_ahead(self, film: Film, first: int, last: int) -> None:
        """Note what each rule sees at frames that are taken at once, the last included."""
        for rule in self.rules.values():
            if rule.on not in film.reels:
                continue
            for clause in self.clauses[rule.name]:
                true, false = film.counts(clause.condition, first, last)
                clause.true += true
                clause.false += false
        self._seen |= {kind: film.newest(kind, last) for kind in film.reels if isinstance(kind, Kind)}

    def _read(self, rule: Rule, times: Mapping[str, int], found: Sequence[Masks], evaluator: Observed) -> None:
        for place, (subject_id, time_ns) in enumerate(times.items()):
            held = tuple(True if true[place] else False if false[place] else None for true, false in found)
            values: dict[str, float] = {}
            for clause in self.clauses[rule.name]:
                values |= evaluator.inputs(clause.condition, subject_id)
            self.readings.setdefault((rule.name, subject_id), []).append(Reading(time_ns, values, held))

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
