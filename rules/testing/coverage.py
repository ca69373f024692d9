"""What tests have shown of rules: which fired, and which comparisons were seen both true and false."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import msgspec

from virtpilot.model import Kind
from virtpilot.rules.language.clauses import parts
from virtpilot.rules.language.expression import Condition, Masks
from virtpilot.rules.language.records import Rule
from virtpilot.rules.signals.film.film import Film
from virtpilot.rules.signals.panel import Panel


class Observed(Protocol):
    """What is asked of the evaluator."""

    def measured(self, kind: Kind) -> Mapping[str, int]:
        """Return all subjects of a kind, each with the time of its newest sample."""

    def look(self, panel: Panel, ids: Sequence[str]) -> Masks:
        """Return of which subjects each condition of a panel is true and of which false now, a row a condition."""

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


class _Panel(NamedTuple):
    """Clauses of the rules about one kind, in order."""

    panel: Panel
    rules: Sequence[Rule]
    clauses: Sequence[Clause]


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
        self._panels = [panel for kind in Kind for panel in self._of(kind)]

    def _of(self, kind: Kind) -> Iterator[_Panel]:
        """Yield what is looked at of a kind: looked at closely all at once, else apart what goes by others."""
        own = [rule for rule in self.rules.values() if rule.on is kind]
        found: dict[object, list[Clause]] = {}
        for clause in (clause for rule in own for clause in self.clauses[rule.name]):
            one = Panel(kind, [clause.condition])
            found.setdefault(self.closely or (one.alone, one.asks), []).append(clause)
        for clauses in found.values():
            yield _Panel(Panel(kind, [clause.condition for clause in clauses]), own, clauses)

    def begin(self) -> None:
        """Start with another test."""
        self.readings = {}
        self._seen = {}

    def observe(self, evaluator: Observed, film: Film | None = None) -> None:
        """Note what each rule sees of each subject that was measured since the last call.

        A film that begins with just that has looked at most of it.
        """
        now = {kind: evaluator.measured(kind) for kind in {one.panel.kind for one in self._panels}}
        for panel, rules, clauses in self._panels:
            if film is not None and panel.alone:
                _count(clauses, *film.counts(panel, 0, 0))
                continue
            times, before = now[panel.kind], self._seen.get(panel.kind, {})
            ids = [subject_id for subject_id, time_ns in times.items() if before.get(subject_id, -1) < time_ns]
            true, false = evaluator.look(panel, ids)
            _count(clauses, true.sum(axis=1).tolist(), false.sum(axis=1).tolist())
            first = 0
            for rule in rules if self.closely else ():
                own = slice(first, first + len(self.clauses[rule.name]))
                self._read(rule, {name: times[name] for name in ids}, (true[own], false[own]), evaluator)
                first = own.stop
        self._seen |= now

    def look_ahead(self, film: Film, first: int, last: int) -> None:
        """Note what each rule sees at frames that are taken at once, the last included."""
        for panel, _rules, clauses in self._panels:
            if panel.kind in film.reels:
                _count(clauses, *film.counts(panel, first, last))
        self._seen |= {kind: film.newest(kind, last) for kind in film.reels if isinstance(kind, Kind)}

    def _read(self, rule: Rule, times: Mapping[str, int], found: Masks, evaluator: Observed) -> None:
        for place, (subject_id, time_ns) in enumerate(times.items()):
            pairs = zip(*(one[:, place].tolist() for one in found), strict=True)
            held = tuple(True if true else False if false else None for true, false in pairs)
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


def _count(clauses: Iterable[Clause], true: Iterable[int], false: Iterable[int]) -> None:
    for clause, held, failed in zip(clauses, true, false, strict=True):
        clause.true += held
        clause.false += failed
