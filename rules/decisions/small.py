"""The matcher of our own: hash joins over indexed facts, in plain Python, on every Python version."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import msgspec

from virtpilot.rules.decisions.matcher import (
    Consequence,
    Fact,
    Pattern,
    Production,
    Schema,
    conclude,
)
from virtpilot.rules.decisions.pending import Pending

_Index = tuple[int, tuple[str, ...]]


class _Step(msgspec.Struct, frozen=True):
    """How to find the facts for one condition: an index, and for each of its attributes a constant or a variable."""

    condition: int
    index: _Index
    sources: tuple[int | str, ...]


class _Entry(msgspec.Struct, frozen=True):
    """A production seen from one of its conditions: what to look up when a fact satisfies that one."""

    production: Production
    order: int
    condition: int
    steps: tuple[_Step, ...]


class SmallMatcher:
    """A forward-chaining matcher: a fact's arrival joins it with the facts that are there, through hash indexes.

    Asserting costs one look-up for each production that the fact may concern, and one for each match.
    """

    def __init__(self) -> None:
        self._facts: set[Fact] = set()
        self._schema = Schema(())
        self._pending = Pending()
        self._entries: dict[tuple[int, tuple[tuple[str, int], ...]], list[_Entry]] = {}
        self._constants: dict[int, set[tuple[str, ...]]] = {}
        self._indexes: dict[_Index, defaultdict[tuple[int, ...], set[Fact]]] = {}
        self._by_kind: dict[int, list[_Index]] = {}

    @property
    def name(self) -> str:
        """Which matcher this is."""
        return "small"

    def load(self, productions: Sequence[Production]) -> None:
        """Replace the productions; all facts and consequences are forgotten."""
        self._schema = Schema(productions)
        self._facts.clear()
        self._pending.clear()
        for store in (self._entries, self._constants, self._indexes, self._by_kind):
            store.clear()
        for order, production in enumerate(productions):
            for condition in range(len(production.conditions)):
                self._enter(_Entry(production, order, condition, _plan(production.conditions, condition)))

    def assert_fact(self, fact: Fact) -> None:
        """Say that something holds."""
        if fact in self._facts:
            return
        self._schema.check(fact)
        self._facts.add(fact)
        for index, key in self._keys(fact):
            self._indexes[index][key].add(fact)
        for entry in self._concerned(fact):
            for consequence in self._matches(entry, fact):
                self._pending.add(consequence)

    def retract_fact(self, fact: Fact) -> None:
        """Say that it holds no longer."""
        if fact not in self._facts:
            return
        self._facts.discard(fact)
        for index, key in self._keys(fact):
            bucket = self._indexes[index][key]
            bucket.discard(fact)
            if not bucket:
                del self._indexes[index][key]
        self._pending.drop(fact)

    def consequences(self) -> list[Consequence]:
        """Return what has become true since the last call and still is, sorted."""
        return self._pending.drain()

    def _enter(self, entry: _Entry) -> None:
        condition = entry.production.conditions[entry.condition]
        self._entries.setdefault((condition.kind, condition.constants), []).append(entry)
        self._constants.setdefault(condition.kind, set()).add(tuple(name for name, _ in condition.constants))
        for step in entry.steps:
            if step.index not in self._indexes:
                self._indexes[step.index] = defaultdict(set)
                self._by_kind.setdefault(step.index[0], []).append(step.index)

    def _keys(self, fact: Fact) -> Iterator[tuple[_Index, tuple[int, ...]]]:
        values = dict(fact.attributes)
        for index in self._by_kind.get(fact.kind, ()):
            yield index, tuple(values[name] for name in index[1])

    def _concerned(self, fact: Fact) -> Iterator[_Entry]:
        values = dict(fact.attributes)
        for names in self._constants.get(fact.kind, ()):
            yield from self._entries.get((fact.kind, tuple((name, values[name]) for name in names)), ())

    def _matches(self, entry: _Entry, fact: Fact) -> Iterator[Consequence]:
        bound = _bind(entry.production.conditions[entry.condition], fact, {})
        if bound is None:
            return
        for chosen in self._join(entry, 0, bound, {entry.condition: fact}):
            facts = tuple(chosen[number] for number in range(len(chosen)))
            yield conclude(entry.production, entry.order, facts)

    def _join(
        self, entry: _Entry, depth: int, bound: dict[str, int], chosen: dict[int, Fact]
    ) -> Iterator[dict[int, Fact]]:
        if depth == len(entry.steps):
            yield chosen
            return
        step = entry.steps[depth]
        key = tuple(source if isinstance(source, int) else bound[source] for source in step.sources)
        for candidate in self._indexes[step.index].get(key, ()):
            more = _bind(entry.production.conditions[step.condition], candidate, bound)
            if more is not None:
                yield from self._join(entry, depth + 1, more, {**chosen, step.condition: candidate})


def _plan(conditions: tuple[Pattern, ...], start: int) -> tuple[_Step, ...]:
    """Return the order in which the other conditions are looked up: always one that shares a bound variable."""
    bound = {variable for _, variable in conditions[start].variables}
    left = [number for number in range(len(conditions)) if number != start]
    steps = []
    while left:
        number = next(n for n in left if bound & {variable for _, variable in conditions[n].variables})
        left.remove(number)
        condition = conditions[number]
        known: list[tuple[str, int | str]] = [*condition.constants]
        known += [(name, variable) for name, variable in condition.variables if variable in bound]
        known.sort(key=lambda item: item[0])
        index = (condition.kind, tuple(name for name, _ in known))
        steps.append(_Step(number, index, tuple(source for _, source in known)))
        bound |= {variable for _, variable in condition.variables}
    return tuple(steps)


def _bind(condition: Pattern, fact: Fact, bound: dict[str, int]) -> dict[str, int] | None:
    """Return the bindings with the fact's own added, or None where it contradicts them."""
    values = dict(fact.attributes)
    more = dict(bound)
    for name, variable in condition.variables:
        if more.setdefault(variable, values[name]) != values[name]:
            return None
    return more
