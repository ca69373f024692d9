"""What holds of every story: restarts, duplicates and the choice of the matcher change nothing that is said."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

from tests.rules_decisions.matchers import HAS_DURABLE
from tests.rules_decisions.world import Step, World, play, scripts
from tests.thoroughness import examples
from virtpilot.model import Command, Decision, Outcome, Result
from virtpilot.rules.decisions.decider import Decider
from virtpilot.rules.decisions.matcher import Name, choose
from virtpilot.rules.language import RuleSet

quickly = settings(
    max_examples=examples(150), derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def using(name: Name) -> type[Decider]:
    def make(rules: RuleSet) -> Decider:
        return Decider(rules, choose(name))

    return make  # type: ignore[return-value]


@quickly
@given(scripts)
def test_a_restart_at_every_step_changes_nothing(script: list[Step]) -> None:
    steady = play(World(using("small")), script)
    assert play(World(using("small"), restart=using("small")), script) == steady


@quickly
@given(scripts)
def test_everything_delivered_again_and_again_changes_nothing(script: list[Step]) -> None:
    assert play(World(using("small"), twice=True), script) == play(World(using("small")), script)


@pytest.mark.skipif(not HAS_DURABLE, reason="durable-rules does not import here")
@settings(quickly, max_examples=examples(60))
@given(scripts)
def test_both_matchers_lead_to_the_same_decisions(script: list[Step]) -> None:
    steady = play(World(using("small")), script)
    assert play(World(using("durable")), script) == steady


@pytest.mark.skipif(not HAS_DURABLE, reason="durable-rules does not import here")
@settings(quickly, max_examples=10)
@given(scripts)
def test_a_restart_may_change_the_matcher(script: list[Step]) -> None:
    assert play(World(using("small"), restart=using("durable")), script) == play(World(using("small")), script)


@quickly
@given(scripts)
def test_every_cause_is_the_record_that_led_to_it(script: list[Step]) -> None:
    world = World(using("small"))
    log = play(world, script)
    told = {record.id for record in world.past} | {one.id for one in log if isinstance(one, Decision | Command)}
    for record in log:
        if isinstance(record, Decision | Command | Outcome):
            assert record.cause in told
    rungs = [one for one in log if isinstance(one, Decision) and one.rung]
    failures = {Result.INEFFECTIVE, Result.FAILED, Result.REFUSED, Result.REVERTED}
    results = {record.id: record.result for record in world.past if isinstance(record, Outcome)}
    assert all(results[one.cause] in failures for one in rungs)


@quickly
@given(scripts)
def test_when_all_is_over_nothing_is_kept(script: list[Step]) -> None:
    world = World(using("small"))
    play(world, script)
    world.meter.gone |= {"g1", "g2"}
    for _ in range(8):
        world.wait(10_000)
    document = world.decider.snapshot()
    held = ("ladders", "flights", "leases", "releases", "exhausted")
    assert not any(document[name] for name in held)
    assert not world.decider._changes
    assert world.decider._agenda.size == 0
