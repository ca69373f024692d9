"""The second stage from signal to effect: with the real evaluator where samples matter, on either matcher."""

from __future__ import annotations

import json

import pytest

from tests.rules_decisions.matchers import NAMES
from tests.rules_decisions.world import ALL, CROWDED, SLOW, START_NS, STARVED, Meter, World, ruleset
from virtpilot.action import SetKnob
from virtpilot.clock import SECOND, seconds
from virtpilot.errors import StateError
from virtpilot.model import Command, Decision, Outcome, Result, Sample, SignalState
from virtpilot.rules.decisions.decider import Decider, Exhausted, Release, Want
from virtpilot.rules.decisions.matcher import Name, choose
from virtpilot.rules.language import RuleSet
from virtpilot.rules.signals.evaluator import Evaluator

FIRING, INACTIVE, CLEARING = SignalState.FIRING, SignalState.INACTIVE, SignalState.CLEARING


def small(rules: RuleSet) -> Decider:
    return Decider(rules, choose("small"))


def kinds(log: list[object]) -> list[str]:
    return [
        f"{one.result}" if isinstance(one, Outcome) else type(one).__name__.lower()
        for one in log
        if not isinstance(one, Decision)
    ]


@pytest.fixture(params=NAMES)
def world(request: pytest.FixtureRequest) -> World:
    name: Name = request.param
    return World(lambda rules: Decider(rules, choose(name)), ruleset(STARVED))


def test_shares_then_a_move_then_the_effect(world: World) -> None:
    world.signal("starved", "g1", FIRING)
    world.answer(Result.DONE)
    world.wait(121)
    assert kinds(world.log) == ["command", "ineffective", "release"]
    world.give_back()
    assert kinds(world.log)[3:] == ["command"]
    world.answer(Result.DONE)
    world.hold("g1", True)
    assert kinds(world.log)[4:] == ["effective"]
    effective = next(one for one in world.log if isinstance(one, Outcome) and one.result is Result.EFFECTIVE)
    done = next(one for one in world.past if one.id == effective.cause)
    assert isinstance(done, Outcome)
    assert done.result is Result.DONE
    assert effective.before["cpu_steal_ratio"] < effective.after["cpu_steal_ratio"]
    second = [one for one in world.log if isinstance(one, Decision)][1]
    ineffective = next(one for one in world.log if isinstance(one, Outcome) and one.result is Result.INEFFECTIVE)
    release = next(one for one in world.log if isinstance(one, Release))
    assert second.cause == release.cause == ineffective.id
    assert ineffective.reason == "cpu_steal_ratio < 8% did not hold within 120 s"


def test_the_next_rung_does_not_wait_for_ever_for_a_knob_to_come_back(world: World) -> None:
    world.signal("starved", "g1", FIRING)
    world.answer(Result.DONE)
    world.wait(121)
    world.wait(5)
    assert kinds(world.log)[3:] == []
    world.wait(6)
    assert kinds(world.log)[3:] == ["command"]


def test_after_the_last_rung_it_is_exhausted_once_until_the_cooldown_is_over(world: World) -> None:
    world.signal("starved", "g1", FIRING)
    world.answer(Result.REFUSED)
    world.answer(Result.FAILED)
    world.wait(300)
    world.wait(299)
    assert kinds(world.log) == ["command", "command", "exhausted"]
    exhausted = world.log[-1]
    assert isinstance(exhausted, Exhausted)
    assert (exhausted.rule, exhausted.rung) == ("starved", 1)
    world.wait(2)
    assert kinds(world.log)[3:] == ["command"]
    assert [one for one in world.log if isinstance(one, Decision)][-1].rung == 0


def test_a_host_that_never_answers_fails_the_command(world: World) -> None:
    world.signal("starved", "g1", FIRING)
    world.wait(40)
    assert kinds(world.log) == ["command"]
    world.wait(6)
    assert kinds(world.log) == ["command", "failed", "release"]
    failed = world.log[2]
    assert isinstance(failed, Outcome)
    assert failed.reason == "no outcome from h1"
    late = world.answer(Result.DONE)
    assert late is not None
    assert world.decider.snapshot()["leases"] == {}


def test_a_migration_may_take_long_before_it_counts_as_lost() -> None:
    world = World(small, ruleset(CROWDED))
    world.signal("crowded", "g1", FIRING)
    world.wait(1800)
    assert kinds(world.log) == ["command"]
    world.wait(31)
    assert kinds(world.log) == ["command", "failed", "exhausted"]


def test_a_signal_that_ends_while_measuring_ends_quietly_or_effectively(world: World) -> None:
    for guest, truth in (("g1", False), ("g2", True)):
        world.signal("starved", guest, FIRING)
        world.answer(Result.DONE)
        world.meter.truth[guest] = truth
        world.signal("starved", guest, INACTIVE)
        world.wait(600)
    assert kinds(world.log) == ["command", "command", "effective"]


def test_nothing_is_wanted_while_the_signal_is_clearing(world: World) -> None:
    world.allow(False)
    world.signal("starved", "g1", FIRING)
    world.signal("starved", "g1", CLEARING)
    assert world.decider.wants(world.now_ns) == ((), [])
    world.signal("starved", "g1", FIRING)
    assert len(world.decider.wants(world.now_ns)[0]) == 1


def test_a_refusal_is_said_once_and_the_want_stays(world: World) -> None:
    world.allow(False)
    world.signal("starved", "g1", FIRING)
    for _ in range(5):
        world.wait(1)
    assert len(world.log) == 1
    (want,), _ = world.decider.wants(world.now_ns)
    assert want.blocked
    world.allow(True)
    assert kinds(world.log) == ["command"]


def test_what_is_wanted_comes_from_the_matcher_alone() -> None:
    matcher = choose("small")
    decider = Decider(ruleset(STARVED), matcher)
    world = World(lambda rules: decider, ruleset(STARVED))
    world.allow(False)
    world.signal("starved", "g1", FIRING)
    matcher.load([])  # behind the decider's back
    decider._agenda._standing.clear()
    assert decider.wants(world.now_ns) == ((), [])


def test_two_rules_on_one_guest_take_turns() -> None:
    world = World(small, ruleset(STARVED, SLOW))
    world.allow(False)
    world.signal("starved", "g1", FIRING)
    world.signal("slow", "g1", FIRING)
    world.allow(True)
    decisions = [one for one in world.log if isinstance(one, Decision)]
    # equal priority, both set cpu_shares: times 1.5 is the smaller change
    assert [one.rule for one in decisions if one.accepted] == ["slow"]
    assert any(one.rule == "starved" and one.guard == "arbiter" for one in decisions)
    world.answer(Result.DONE)
    reasons = [one.reason for one in world.log if isinstance(one, Decision) and one.rule == "starved"]
    assert "slow (priority 70) holds cpu_shares" in reasons


def test_a_lease_that_has_passed_to_another_rule_is_not_given_back() -> None:
    urgent = SLOW.replace("priority: 70", "priority: 90")
    world = World(small, ruleset(STARVED, urgent))
    world.signal("starved", "g1", FIRING)
    world.answer(Result.DONE)
    world.wait(100)
    world.signal("slow", "g1", FIRING)
    world.answer(Result.DONE)
    world.wait(21)
    assert kinds(world.log) == ["command", "command", "ineffective", "command"]
    world.wait(40)
    (release,) = [one for one in world.log if isinstance(one, Release)]
    assert release.rule == "slow"


def test_a_lease_keeps_others_off_until_it_ends() -> None:
    world = World(small, ruleset(STARVED, SLOW))
    world.signal("slow", "g1", FIRING)
    world.answer(Result.DONE)
    world.hold("g1", True)
    world.signal("starved", "g1", FIRING)
    world.wait(298)
    assert kinds(world.log) == ["command", "effective"]
    world.wait(3)
    assert kinds(world.log) == ["command", "effective", "command"]


def test_a_lease_that_the_agent_ended_is_not_given_back_again() -> None:
    world = World(small, ruleset(STARVED))
    world.signal("starved", "g1", FIRING)
    command = world.open[0][0]
    world.answer(Result.DONE)
    world.deliver(world._outcome(command, "g1", Result.REVERTED))
    world.wait(121)
    assert kinds(world.log) == ["command", "ineffective", "command"]


def test_nothing_else_is_wanted_of_a_guest_while_something_is_in_flight_there() -> None:
    world = World(small, ruleset(STARVED, CROWDED))
    world.allow(False)
    world.signal("crowded", "g1", FIRING)
    assert len(world.decider.wants(world.now_ns)[0]) == 1
    world.allow(True)
    world.signal("starved", "g1", FIRING)
    assert world.decider.wants(world.now_ns) == ((), [])
    world.answer(Result.DONE)
    assert [one.rule for one in world.log if isinstance(one, Decision) and one.accepted] == ["crowded", "starved"]


def test_a_want_that_stood_falls_when_another_rule_takes_the_guest() -> None:
    world = World(small, ruleset(STARVED, CROWDED))
    world.allow(False)
    world.signal("crowded", "g1", FIRING)
    world.signal("starved", "g1", FIRING)
    world.allow(True)
    assert world.decider.wants(world.now_ns) == ((), [])


def test_the_effect_is_measured_by_samples_after_the_outcome_only() -> None:
    rules = ruleset(STARVED)
    evaluator = Evaluator(rules)
    world = World(small, rules)
    sample(evaluator, START_NS, 0.01)
    world.signal("starved", "g1", FIRING)
    done = world.answer(Result.DONE)
    assert done is not None
    decider = world.decider
    assert decider.measure(done.at_ns + 1, evaluator) == []
    sample(evaluator, done.at_ns + SECOND, 0.20)
    assert decider.measure(done.at_ns + 2 * SECOND, evaluator) == []
    sample(evaluator, done.at_ns + 3 * SECOND, 0.05)
    (effective,) = decider.measure(done.at_ns + 3 * SECOND, evaluator)
    assert (effective.result, effective.after) == (Result.EFFECTIVE, {"cpu_steal_ratio": 0.05})


def test_an_effect_that_could_not_be_measured_says_so() -> None:
    rules = ruleset(STARVED)
    evaluator = Evaluator(rules)
    world = World(small, rules)
    sample(evaluator, START_NS, 0.01)
    world.signal("starved", "g1", FIRING)
    done = world.answer(Result.DONE)
    assert done is not None
    (blind,) = world.decider.measure(done.at_ns + seconds(121), evaluator)
    assert (blind.result, blind.after) == (Result.INEFFECTIVE, {})
    assert blind.reason == "cpu_steal_ratio < 8% could not be measured within 120 s"


def sample(evaluator: Evaluator, time_ns: int, steal: float) -> None:
    tags = {"cluster": "c", "host": "h1", "vm": "g1", "name": "g1"}
    evaluator.feed([Sample("vm", tags, {"cpu_steal_ratio": steal}, time_ns)], "h1/b/1")


def test_a_reload_keeps_what_has_not_changed_and_restarts_what_has() -> None:
    world = World(small, ALL)
    world.allow(False)
    for rule in ("starved", "slow", "crowded"):
        world.signal(rule, "g1", FIRING)
    new_remedies = SLOW.replace("current * 1.5", "current * 3").replace("mode: act", "mode: observe")
    new_signal = CROWDED.replace("> 90%", "> 95%")
    world.decider.reload(ruleset(new_signal, new_remedies, STARVED))
    ladders = {one["rule"]: one for one in world.decider.snapshot()["ladders"].values()}
    assert (ladders["starved"]["attempt"], bool(ladders["starved"]["said"])) == (1, True)
    assert (ladders["slow"]["attempt"], bool(ladders["slow"]["said"])) == (2, False)
    assert "crowded" not in ladders
    wanted = world.decider.wants(world.now_ns)
    assert {one.rule for one in [*wanted[0], *(want for want, _ in wanted[1])]} == {"starved", "slow"}


def test_a_reload_leaves_what_is_in_flight_in_flight() -> None:
    world = World(small, ruleset(STARVED, CROWDED))
    world.signal("starved", "g1", FIRING)
    world.signal("crowded", "g1", FIRING)
    world.decider.reload(ruleset(CROWDED))
    assert world.decider.wants(world.now_ns) == ((), [])
    world.answer(Result.DONE)
    decisions = [one for one in world.log if isinstance(one, Decision)]
    assert [one.rule for one in decisions if one.accepted] == ["starved", "crowded"]


def test_a_rule_without_remedies_wants_nothing() -> None:
    world = World(small, ruleset(STARVED.partition("    remedies")[0]))
    world.signal("starved", "g1", FIRING)
    assert world.log == []


@pytest.mark.parametrize(
    "damage",
    [{"version": 1}, {"ladders": 5}, {"ladders": {"x g1": {"rule": "x"}}}, {"unknown": 1}],
)
def test_a_damaged_snapshot_is_refused_and_changes_nothing(damage: dict[str, object]) -> None:
    world = World(small, ALL)
    world.signal("starved", "g1", FIRING)
    before = world.decider.snapshot()
    with pytest.raises(StateError, match="decisions"):
        world.decider.restore(before | damage)
    assert world.decider.snapshot() == before


def test_a_snapshot_is_json() -> None:
    world = World(small, ALL)
    for rule in ("starved", "slow", "crowded"):
        world.signal(rule, "g1", FIRING)
    world.answer(Result.DONE)
    assert json.loads(json.dumps(world.decider.snapshot(), allow_nan=False)) is not None


def test_a_decision_on_what_is_wanted_no_more_is_no_news() -> None:
    world = World(small, ruleset(STARVED))
    world.signal("starved", "g1", FIRING)
    decision, command = world.log[0], world.log[1]
    assert isinstance(decision, Decision)
    assert isinstance(command, Command)
    assert not world.decider.on_decision(decision, command, world.now_ns)
    assert isinstance(command.action, SetKnob)


@pytest.mark.parametrize("name", NAMES)
def test_many_guests_come_and_go_without_a_trace(name: Name) -> None:
    decider = Decider(ALL, choose(name))
    world = World(lambda rules: decider, ALL)
    world.allow(False)
    for number in range(200):
        world.signal("starved", f"guest-{number}", FIRING)
        world.signal("starved", f"guest-{number}", INACTIVE)
    world.wait(3700)
    assert decider.snapshot()["ladders"] == {}
    assert decider._agenda.size == 0
    assert not decider._agenda._numbers


def test_a_want_tells_what_a_decision_needs() -> None:
    world = World(small, ruleset(STARVED))
    world.allow(False)
    world.signal("starved", "g1", FIRING)
    (want,), _ = world.decider.wants(world.now_ns)
    assert isinstance(want, Want)
    assert (want.knob, want.rung, want.priority, want.mode, want.cooldown.up_ns) == (
        "cpu_shares",
        0,
        70,
        "act",
        seconds(600),
    )
    assert isinstance(Meter().knob("g1", "cpu_shares"), tuple)
