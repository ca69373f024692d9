"""One durable-rules ruleset of bounded size, spoken to through the engine's own entry points.

The Python host above the engine is left out on purpose: it starts two chains of timer threads and swallows what an
action raises. Here a result is fetched, read and completed in the calling thread, and every error code is looked at.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Protocol, TypeVar, cast

import msgspec

from virtpilot.rules.decisions.matcher import Fact, MatcherFault, Pattern, Production

MAX_CONDITIONS: Final = 112
# The engine keeps the conditions that one fact satisfies on a stack of 64 and refuses the fact beyond.
MAX_CONDITIONS_OF_ONE_KIND: Final = 56
SID: Final = 1
STATE_ID: Final = f"sid-{SID}"

_STORED: Final = 0
_MATCHED_NOTHING: Final = 1
_DUMMY: Final = 2**31 - 1
_Result = dict[str, dict[str, dict[str, int]]]
_decoder = msgspec.json.Decoder(_Result)
_T = TypeVar("_T")


class Engine(Protocol):
    """The part of the C module that is used; handles and states are numbers of its own."""

    error: type[Exception]

    def create_ruleset(self, name: str, definition: str, /) -> int:
        """Return the handle of a new ruleset."""

    def assert_fact(self, handle: int, fact: str, /) -> tuple[int, int]:
        """Return a result code and the state."""

    def retract_fact(self, handle: int, fact: str, /) -> tuple[int, int]:
        """Return a result code and the state."""

    def start_action_for_state(self, handle: int, state: int, /) -> tuple[str, str] | None:
        """Return the state and the first match, or None."""

    def complete_and_start_action(self, handle: int, state: int, /) -> str | None:
        """Return the next match, or None."""


class Numbers(Protocol):
    """Where the numbers of facts come from."""

    def take(self) -> int:
        """Return a number that the engine can tell from every other one in use."""

    def give(self, number: int) -> None:
        """Take a number back."""


def load_engine() -> Engine:
    """Return the C module; raises ImportError where it was not built or, on Python 3.13, does not load."""
    return cast(Engine, importlib.import_module("durable_rules_engine"))


class Match(msgspec.Struct, frozen=True):
    """A production of the shard, by its place there, and the numbers of the facts that satisfy its conditions."""

    place: int
    numbers: tuple[int, ...]


class Shard:
    """Some productions in one ruleset with one session.

    `wash` answers the engine's worst flaw. A match that was told leaves its frame marked as in dispatch and its place
    in the lists of its facts; when such a fact is retracted, the engine walks that dead frame and, where an earlier
    retraction has emptied it, on into whatever lies behind. So before the first retraction after a match, dummy facts
    take the dead frames over and are retracted untold, which leaves them unmarked.
    """

    def __init__(self, engine: Engine, name: str, productions: tuple[Production, ...], numbers: Numbers) -> None:
        self.productions = productions
        self.kinds = frozenset(condition.kind for production in productions for condition in production.conditions)
        self._engine = engine
        self._numbers = numbers
        self._dirty: dict[int, int] = {}
        self._handle = self._call(lambda: engine.create_ruleset(name, _definition(productions)))

    def assert_fact(self, number: int, fact: Fact) -> list[Match] | None:
        """Return the matches that a fact completes, or None where it satisfies no condition (and was not kept)."""
        code, state = self._assert(number, fact.kind, fact.attributes)
        if code == _MATCHED_NOTHING:
            return None
        _expect(code, "assert")
        matches = [_match(raw) for raw in self._results(state)]
        batch: dict[int, int] = {}
        for match in matches:
            batch[match.place] = batch.get(match.place, 0) + 1
        for place, count in batch.items():
            self._dirty[place] = max(self._dirty.get(place, 0), count)
        return matches

    def retract_fact(self, number: int) -> None:
        """Forget a fact."""
        self._wash()
        self._retract(number)

    def _call(self, call: Callable[[], _T]) -> _T:
        try:
            return call()
        except (self._engine.error, MemoryError) as error:
            raise MatcherFault(f"durable-rules: {error!r}") from error

    def _assert(self, number: int, kind: int, attributes: Iterable[tuple[str, int]]) -> tuple[int, int]:
        rest = "".join(f',"{name}":{value}' for name, value in attributes)
        body = f'{{"sid":{SID},"id":{number},"kind":{kind}{rest}}}'
        return self._call(lambda: self._engine.assert_fact(self._handle, body))

    def _retract(self, number: int) -> None:
        body = f'{{"sid":{SID},"id":{number}}}'
        code, _ = self._call(lambda: self._engine.retract_fact(self._handle, body))
        _expect(code, "retract")

    def _results(self, state: int) -> Iterator[str]:
        started = self._call(lambda: self._engine.start_action_for_state(self._handle, state))
        raw = started[1] if started else None
        while raw is not None:
            yield raw
            raw = self._call(lambda: self._engine.complete_and_start_action(self._handle, state))

    def _wash(self) -> None:
        for place, frames in self._dirty.items():
            first, *others = self.productions[place].conditions
            dummies = [first] * frames + others
            numbers = [self._numbers.take() for _ in dummies]
            for number, condition in zip(numbers, dummies, strict=True):
                _expect(self._assert(number, condition.kind, _dummy(condition))[0], "assert")
            for number in numbers:
                self._retract(number)
                self._numbers.give(number)
        self._dirty.clear()


def pack(productions: Iterable[Production]) -> list[tuple[Production, ...]]:
    """Return the productions in order, cut into rulesets that the engine bears."""
    shards: list[tuple[Production, ...]] = []
    current: list[Production] = []
    for production in productions:
        if current and not _fits([*current, production]):
            shards.append(tuple(current))
            current = []
        current.append(production)
    return [*shards, tuple(current)] if current else shards


def _fits(productions: list[Production]) -> bool:
    kinds: dict[int, int] = {}
    for production in productions:
        for condition in production.conditions:
            kinds[condition.kind] = kinds.get(condition.kind, 0) + 1
    return sum(kinds.values()) <= MAX_CONDITIONS and max(kinds.values()) <= MAX_CONDITIONS_OF_ONE_KIND


def _definition(productions: tuple[Production, ...]) -> str:
    rules = {f"r{place}": {"all": _conditions(production)} for place, production in enumerate(productions)}
    return msgspec.json.encode(rules).decode()


def _conditions(production: Production) -> list[object]:
    owners: dict[str, tuple[int, str]] = {}
    conditions: list[object] = []
    for place, condition in enumerate(production.conditions):
        terms: list[dict[str, object]] = [{"kind": condition.kind}]
        terms += [{name: value} for name, value in condition.constants]
        for name, variable in condition.variables:
            owner = owners.setdefault(variable, (place, name))
            if owner[0] != place:
                terms.append({name: {f"c{owner[0]}": owner[1]}})
        conditions.append({f"c{place}": {"$and": terms}})
    return conditions


def _dummy(condition: Pattern) -> Iterator[tuple[str, int]]:
    yield from condition.constants
    for name, _ in condition.variables:
        yield name, _DUMMY


def _match(raw: str) -> Match:
    try:
        ((rule, frames),) = _decoder.decode(raw).items()
        return Match(int(rule[1:]), tuple(frames[f"c{place}"]["id"] for place in range(len(frames))))
    except (msgspec.MsgspecError, KeyError, ValueError) as error:
        raise MatcherFault(f"durable-rules told a match that cannot be read: {error}") from error


def _expect(code: int, call: str) -> None:
    if code != _STORED:
        raise MatcherFault(f"durable-rules answered {call} with code {code}")
