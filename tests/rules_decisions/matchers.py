"""Productions and facts for the tests of the matchers: what the ladder uses, and wilder ones."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from itertools import product

import pytest
from hypothesis import strategies as st

from virtpilot.rules.decisions.matcher import (
    Consequence,
    Fact,
    Matcher,
    Pattern,
    Production,
    Var,
    choose,
    conclude,
    fact,
    pattern,
)

KINDS = {1: ("rule", "rung", "subject"), 2: ("subject",), 3: ("guest", "subject"), 4: ("host", "state")}
HAS_DURABLE = sys.version_info < (3, 13) and importlib.util.find_spec("durable_rules_engine") is not None
NAMES = [
    "small",
    pytest.param("durable", marks=pytest.mark.skipif(not HAS_DURABLE, reason="durable-rules does not import here")),
]
SUBJECT = Var("subject")


def both() -> tuple[Matcher, Matcher]:
    """Return the two matchers, durable first."""
    return choose("durable"), choose("small")


def firing_and_idle(rules: int, rungs: int = 2) -> list[Production]:
    """Return what the decider makes of `rules` rules."""
    return [
        Production(
            f"rule{rule}/{rung}",
            priority=rule % 7,
            conditions=(pattern(1, rule=rule, rung=rung, subject=SUBJECT), pattern(2, subject=SUBJECT)),
        )
        for rule, rung in product(range(1, rules + 1), range(rungs))
    ]


def firing(rule: int, rung: int, subject: int) -> Fact:
    return fact(1, rule=rule, rung=rung, subject=subject)


def idle(subject: int) -> Fact:
    return fact(2, subject=subject)


def told(consequences: Sequence[Consequence]) -> list[tuple[str, tuple[Fact, ...]]]:
    return [(consequence.production.name, consequence.facts) for consequence in consequences]


values = st.integers(min_value=0, max_value=3)


@st.composite
def facts(draw: st.DrawFn) -> Fact:
    kind = draw(st.sampled_from(sorted(KINDS)))
    return fact(kind, **{name: draw(values) for name in KINDS[kind]})


@st.composite
def patterns(draw: st.DrawFn) -> Pattern:
    kind = draw(st.sampled_from(sorted(KINDS)))
    free = ["x", "y", "z"]
    chosen: dict[str, int | Var] = {}
    for name in KINDS[kind]:
        match draw(st.sampled_from(["constant", "variable", "variable", "any"])):
            case "constant":
                chosen[name] = draw(values)
            case "variable":
                variable = draw(st.sampled_from(free))
                free.remove(variable)
                chosen[name] = Var(variable)
    return pattern(kind, **chosen)


def _valid(name: str, priority: int, conditions: tuple[Pattern, ...]) -> Production | None:
    try:
        return Production(name, priority, conditions)
    except ValueError:
        return None


@st.composite
def production_sets(draw: st.DrawFn) -> list[Production]:
    drafts = draw(st.lists(st.lists(patterns(), min_size=1, max_size=4), min_size=1, max_size=8))
    made = [_valid(f"p{n}", draw(st.integers(-2, 2)), tuple(conditions)) for n, conditions in enumerate(drafts)]
    return [production for production in made if production]


steps = st.lists(
    st.one_of(st.tuples(st.just("assert"), facts()), st.tuples(st.just("retract"), facts()), st.just(("drain", None))),
    max_size=60,
)


class Oracle:
    """The semantics by brute force: all that is true, less what was true all along since it was told."""

    def __init__(self, productions: Sequence[Production]) -> None:
        self._productions = productions
        self._facts: set[Fact] = set()
        self._told: set[Consequence] = set()

    def assert_fact(self, known: Fact) -> None:
        self._facts.add(known)

    def retract_fact(self, known: Fact) -> None:
        self._facts.discard(known)
        self._told = {consequence for consequence in self._told if known not in consequence.facts}

    def consequences(self) -> list[Consequence]:
        new = sorted(self._true() - self._told, key=lambda consequence: consequence.rank)
        self._told |= set(new)
        return new

    def _true(self) -> set[Consequence]:
        return {
            conclude(production, order, chosen)
            for order, production in enumerate(self._productions)
            for chosen in product(self._facts, repeat=len(production.conditions))
            if _satisfied(production, chosen)
        }


def _satisfied(production: Production, chosen: tuple[Fact, ...]) -> bool:
    bound: dict[str, int] = {}
    for condition, known in zip(production.conditions, chosen, strict=True):
        if known.kind != condition.kind or any(known[name] != value for name, value in condition.constants):
            return False
        if any(bound.setdefault(variable, known[name]) != known[name] for name, variable in condition.variables):
            return False
    return True
