"""What both matchers take and refuse, and how one steps in for the other."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Sequence
from typing import Any

import pytest

from tests.rules_decisions.matchers import HAS_DURABLE, NAMES, firing, firing_and_idle, idle, told
from virtpilot.rules.decisions.durable import DurableMatcher
from virtpilot.rules.decisions.fallback import FallbackMatcher
from virtpilot.rules.decisions.matcher import (
    Fact,
    MatcherFault,
    Name,
    Production,
    Var,
    choose,
    fact,
    pattern,
)
from virtpilot.rules.decisions.shard import Engine, load_engine
from virtpilot.rules.decisions.small import SmallMatcher

needs_durable = pytest.mark.skipif(not HAS_DURABLE, reason="durable-rules does not import here")


@pytest.mark.parametrize("attributes", [{"subject": -1}, {"subject": 2**31}, {"id": 1}, {"sid": 1}, {"Subject": 1}])
def test_only_small_numbers_under_plain_names_are_facts(attributes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"small integer|attribute"):
        fact(1, **attributes)


X, Y = Var("x"), Var("y")
BAD = {
    "no condition": [],
    "a free product": [pattern(1, a=X), pattern(2, a=Y)],
    "one fact for two conditions": [pattern(1, a=X, b=1), pattern(1, a=X)],
    "too many conditions": [pattern(1, a=X, b=number) for number in range(9)],
}


@pytest.mark.parametrize("case", BAD, ids=list(BAD))
def test_a_production_on_which_matchers_could_differ_is_refused(case: str) -> None:
    with pytest.raises(ValueError, match="p: "):
        Production("p", 0, tuple(BAD[case]))


def test_a_variable_stands_once_in_a_pattern() -> None:
    with pytest.raises(ValueError, match="twice"):
        pattern(1, a=X, b=X)


@pytest.mark.parametrize("name", NAMES)
def test_names_are_unique_and_facts_complete(name: Name) -> None:
    matcher = choose(name)
    production = Production("p", 0, (pattern(1, a=X, b=2),))
    with pytest.raises(ValueError, match="one name"):
        matcher.load([production, production])
    matcher.load([production])
    with pytest.raises(ValueError, match="lacks b"):
        matcher.assert_fact(fact(1, a=1))


@pytest.mark.parametrize("name", NAMES)
def test_a_consequence_is_told_once_and_again_when_it_becomes_true_anew(name: Name) -> None:
    matcher = choose(name)
    matcher.load(firing_and_idle(rules=1, rungs=1))
    matcher.assert_fact(firing(1, 0, 5))
    matcher.assert_fact(idle(5))
    matcher.assert_fact(idle(5))
    assert told(matcher.consequences()) == [("rule1/0", (firing(1, 0, 5), idle(5)))]
    assert matcher.consequences() == []
    matcher.retract_fact(idle(5))
    matcher.assert_fact(idle(5))
    matcher.retract_fact(idle(6))
    assert len(matcher.consequences()) == 1
    matcher.retract_fact(idle(5))
    matcher.assert_fact(idle(5))
    matcher.retract_fact(firing(1, 0, 5))
    assert matcher.consequences() == []


@pytest.mark.parametrize("name", NAMES)
def test_the_order_is_priority_then_production_then_subject(name: Name) -> None:
    matcher = choose(name)
    productions = [
        Production("low", 1, (pattern(2, subject=X),)),
        Production("high", 9, (pattern(2, subject=X),)),
        Production("high too", 9, (pattern(2, subject=X),)),
    ]
    matcher.load(productions)
    for subject in (30, 4, 17):
        matcher.assert_fact(idle(subject))
    assert [(one.production.name, one.value("x")) for one in matcher.consequences()] == [
        (name, subject) for name in ("high", "high too", "low") for subject in (4, 17, 30)
    ]


def test_without_durable_rules_auto_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any, **more: Any) -> Any:
        if name == "durable_rules_engine":
            raise ImportError("undefined symbol: PyEval_CallObject")
        return real(name, *rest, **more)

    monkeypatch.delitem(sys.modules, "durable_rules_engine", raising=False)
    monkeypatch.setattr(builtins, "__import__", refuse)
    monkeypatch.setattr("importlib.import_module", refuse)
    assert choose("auto").name == "small"
    with pytest.raises(ImportError):
        choose("durable")


@needs_durable
def test_auto_is_durable_where_it_imports() -> None:
    assert choose("auto").name == "durable"


class _Tripping:
    """The real engine, which fails at the n-th assertion."""

    def __init__(self, engine: Engine, at: int) -> None:
        self._engine = engine
        self._left = at
        self.error = engine.error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def assert_fact(self, handle: int, body: str) -> tuple[int, int]:
        self._left -= 1
        if not self._left:
            raise self.error("Could not assert fact, error code: 303")
        return self._engine.assert_fact(handle, body)


@needs_durable
@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_when_the_engine_fails_the_small_matcher_goes_on_with_the_facts(at: int) -> None:
    matcher = FallbackMatcher(DurableMatcher(_Tripping(load_engine(), at)))
    matcher.load(firing_and_idle(rules=1, rungs=1))
    facts: Sequence[Fact] = [firing(1, 0, 1), idle(1), firing(1, 0, 2), idle(2)]
    for known in facts:
        matcher.assert_fact(known)
    assert [one.value("subject") for one in matcher.consequences()] == [1, 2]
    assert matcher.name.startswith("small (durable-rules: ")
    matcher.retract_fact(idle(1))
    matcher.assert_fact(idle(1))
    assert [one.value("subject") for one in matcher.consequences()] == [1]


class _Broken(SmallMatcher):
    def assert_fact(self, fact: Fact) -> None:
        raise MatcherFault("broken")


def test_a_mistake_of_the_caller_is_no_fault_of_the_matcher() -> None:
    matcher = FallbackMatcher(_Broken())
    matcher.load(firing_and_idle(rules=1))
    matcher.assert_fact(idle(1))
    with pytest.raises(ValueError, match="lacks"):
        matcher.assert_fact(fact(1, rule=1))
    assert matcher.name == "small (broken)"


@needs_durable
def test_an_answer_that_cannot_be_read_is_a_fault() -> None:
    engine = load_engine()

    class Garbled(_Tripping):
        def start_action_for_state(self, handle: int, state: int) -> tuple[str, str] | None:
            return "{}", '{"r0": {"c0": 5}}'

    matcher = DurableMatcher(Garbled(engine, 99))
    matcher.load(firing_and_idle(rules=1))
    with pytest.raises(MatcherFault, match="cannot be read"):
        matcher.assert_fact(idle(1))
