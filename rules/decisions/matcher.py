"""The seam of the second stage: a forward-chaining matcher over facts with small integer attributes.

A fact says that something holds (this rule fires on that guest); a production names a conjunction of facts that share
variables; a consequence is a production that has become true, with the facts that made it so. Identifiers (rule names,
subject ids) are interned to integers by the caller. There is no negation: what is missing is said by a positive fact
that its owner retracts, because negation is what the C engine gets wrong (docs/design/0002-two-matchers.md).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, Literal, Protocol

import msgspec
import structlog

from virtpilot.errors import VirtpilotError

_log = structlog.get_logger(__name__)

Name = Literal["auto", "durable", "small"]

LARGEST: Final = 2**31 - 2
MAX_CONDITIONS: Final = 8

_NAME: Final = re.compile(r"[a-z][a-z_]{0,30}")
_RESERVED: Final = frozenset({"id", "sid", "kind"})


class MatcherFault(VirtpilotError):
    """A matcher's engine failed; what it knows can no longer be trusted."""


class Fact(msgspec.Struct, frozen=True, order=True):
    """Something that holds: a kind and named integers, sorted by name; make one with `fact`."""

    kind: int
    attributes: tuple[tuple[str, int], ...]

    def __getitem__(self, name: str) -> int:
        for known, value in self.attributes:
            if known == name:
                return value
        raise KeyError(name)


class Var(msgspec.Struct, frozen=True, order=True):
    """A variable: the same value wherever its name stands in one production."""

    name: str


class Pattern(msgspec.Struct, frozen=True, order=True):
    """What a condition asks of one fact; attributes that it does not name may have any value."""

    kind: int
    constants: tuple[tuple[str, int], ...] = ()
    variables: tuple[tuple[str, str], ...] = ()


class Production(msgspec.Struct, frozen=True):
    """A named conjunction of patterns; raises ValueError where the two matchers could not agree on it.

    Each condition after the first shares a variable with an earlier one (a free product grows without bound), and two
    conditions of one kind differ in a constant (else one fact could stand for both).
    """

    name: str
    priority: int
    conditions: tuple[Pattern, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.conditions) <= MAX_CONDITIONS:
            raise ValueError(f"{self.name}: a production has 1 to {MAX_CONDITIONS} conditions")
        bound: set[str] = set()
        for index, condition in enumerate(self.conditions):
            names = {variable for _, variable in condition.variables}
            if index and not names & bound:
                raise ValueError(f"{self.name}: condition {index + 1} shares no variable with an earlier one")
            bound |= names
            for other in self.conditions[:index]:
                if other.kind == condition.kind and not _exclusive(other, condition):
                    raise ValueError(f"{self.name}: one fact could satisfy condition {index + 1} and an earlier one")


class Consequence(msgspec.Struct, frozen=True):
    """A production that is true through these facts, one for each condition in order, with its variables' values."""

    production: Production
    order: int
    facts: tuple[Fact, ...]
    bindings: tuple[tuple[str, int], ...]

    @property
    def rank(self) -> tuple[int, int, tuple[tuple[str, int], ...], tuple[Fact, ...]]:
        """What consequences are sorted by: priority, the production's place, the variables' values, the facts."""
        return (-self.production.priority, self.order, self.bindings, self.facts)

    def value(self, variable: str) -> int:
        """Return a variable's value; raises KeyError."""
        return dict(self.bindings)[variable]


class Matcher(Protocol):
    """Tells which productions become true as facts come and go. Raises MatcherFault when its engine fails."""

    @property
    def name(self) -> str:
        """Which one this is, for `status`."""

    def load(self, productions: Sequence[Production]) -> None:
        """Replace the productions (unique names, else ValueError); all facts and consequences are forgotten."""

    def assert_fact(self, fact: Fact) -> None:
        """Say that something holds; saying it again changes nothing. Raises ValueError as `Schema.check` does."""

    def retract_fact(self, fact: Fact) -> None:
        """Say that it holds no longer, and drop what was concluded from it; an unknown fact changes nothing."""

    def consequences(self) -> list[Consequence]:
        """Return what has become true since the last call and still is, each once.

        Sorted: the higher priority first, then the order of the productions, then the values of their variables in
        the order in which the conditions name them (so: the subject), then the facts.
        """


def choose(name: Name) -> Matcher:
    """Return a matcher: `durable` and `small` are exactly that, `auto` is the best that runs here.

    `durable` raises ImportError where durable-rules cannot be imported (Python 3.13 on); `auto` takes `small` there,
    and also goes on with `small` when durable-rules fails while it runs.
    """
    # both implement this module's Protocol
    from virtpilot.rules.decisions.durable import DurableMatcher
    from virtpilot.rules.decisions.fallback import FallbackMatcher
    from virtpilot.rules.decisions.small import SmallMatcher

    if name == "small":
        return SmallMatcher()
    if name == "durable":
        return DurableMatcher()
    try:
        return FallbackMatcher(DurableMatcher())
    except ImportError as error:
        _log.info("durable-rules cannot be imported, using the small matcher", error=str(error))
        return SmallMatcher()


def fact(kind: int, **attributes: int) -> Fact:
    """Return a fact; raises ValueError for a name or number that not every matcher takes."""
    return Fact(_number(kind), _named(attributes))


def pattern(kind: int, **attributes: int | Var) -> Pattern:
    """Return a pattern of constants and variables; raises ValueError like `fact`, or where a variable comes twice."""
    constants = {name: value for name, value in attributes.items() if not isinstance(value, Var)}
    variables = {name: value.name for name, value in attributes.items() if isinstance(value, Var)}
    if len(set(variables.values())) != len(variables):
        raise ValueError("a variable comes twice in one pattern")
    _named(dict.fromkeys(variables, 0))
    return Pattern(_number(kind), _named(constants), tuple(sorted(variables.items())))


def conclude(production: Production, order: int, facts: tuple[Fact, ...]) -> Consequence:
    """Return the consequence of a production whose conditions these facts satisfy, in order."""
    bindings: dict[str, int] = {}
    for condition, known in zip(production.conditions, facts, strict=True):
        for name, variable in condition.variables:
            bindings.setdefault(variable, known[name])
    return Consequence(production, order, facts, tuple(bindings.items()))


class Schema:
    """What the productions ask of facts; raises ValueError where two productions have one name."""

    def __init__(self, productions: Sequence[Production]) -> None:
        if len({production.name for production in productions}) != len(productions):
            raise ValueError("two productions have one name")
        self._asked: dict[int, set[str]] = {}
        for condition in (condition for production in productions for condition in production.conditions):
            asked = self._asked.setdefault(condition.kind, set())
            asked.update(name for name, _ in (*condition.constants, *condition.variables))

    def check(self, fact: Fact) -> None:
        """Raise ValueError where a fact lacks an attribute that a pattern of its kind names."""
        lacking = self._asked.get(fact.kind, set()) - {name for name, _ in fact.attributes}
        if lacking:
            raise ValueError(f"a fact of kind {fact.kind} lacks {', '.join(sorted(lacking))}")


def _named(attributes: dict[str, int]) -> tuple[tuple[str, int], ...]:
    for name in attributes:
        if not _NAME.fullmatch(name) or name in _RESERVED:
            raise ValueError(f"{name!r} cannot be an attribute")
    return tuple((name, _number(value)) for name, value in sorted(attributes.items()))


def _number(value: int) -> int:
    if not 0 <= value <= LARGEST:
        raise ValueError(f"{value} is not a small integer")
    return int(value)


def _exclusive(one: Pattern, other: Pattern) -> bool:
    constants = dict(other.constants)
    return any(name in constants and constants[name] != value for name, value in one.constants)
