"""Both matchers are held to one another, and to the brute-force meaning of their Protocol, on random rule sets."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

from tests.rules_decisions.matchers import HAS_DURABLE, Oracle, both, production_sets, steps, told
from tests.thoroughness import examples
from virtpilot.rules.decisions.matcher import Fact, Matcher, Production, choose

needs_durable = pytest.mark.skipif(not HAS_DURABLE, reason="durable-rules does not import here")
Steps = list[tuple[str, Fact | None]]


def run(matcher: Matcher | Oracle, script: Steps) -> list[object]:
    story: list[object] = []
    for verb, known in script:
        if known is None:
            story.append(told(matcher.consequences()))
        elif verb == "assert":
            matcher.assert_fact(known)
        else:
            matcher.retract_fact(known)
    return [*story, told(matcher.consequences())]


def compare(productions: list[Production], script: Steps) -> None:
    durable, small = both()
    durable.load(productions)
    small.load(productions)
    assert run(durable, script) == run(small, script)


@needs_durable
@settings(max_examples=300, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(production_sets(), steps)
def test_durable_and_small_tell_the_same_in_the_same_order(productions: list[Production], script: Steps) -> None:
    compare(productions, script)


@needs_durable
@pytest.mark.slow
@pytest.mark.long
@settings(max_examples=10_000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(production_sets(), steps)
def test_durable_and_small_tell_the_same_in_ten_thousand_stories(productions: list[Production], script: Steps) -> None:
    compare(productions, script)


@settings(max_examples=examples(100), derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(production_sets(), steps)
def test_small_tells_what_the_productions_mean(productions: list[Production], script: Steps) -> None:
    small = choose("small")
    small.load(productions)
    script = script[:16]
    assert run(small, script) == run(Oracle(productions), script)
