"""The ladder's states one transition at a time, and any order of events against it."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.thoroughness import examples
from virtpilot.action import Migrate
from virtpilot.model import Command, Kind, Outcome, Result, Signal, SignalState, Subject
from virtpilot.rules.decisions.ladder import MAX_SAID, Ladder, Phase

GUEST = Subject(Kind.VM, "g1", "g1", "h1")
RUNGS = 2
QUIET = Ladder(rule="starved", subject=GUEST)


def signal(state: SignalState, at_ns: int) -> Signal:
    return Signal(
        id=f"sg-{state}-{at_ns}",
        cause="sample",
        rule="starved",
        subject=GUEST,
        previous=SignalState.PENDING,
        state=state,
        at_ns=at_ns,
        inputs={"cpu_steal_ratio": 0.4},
    )


def command(number: int) -> Command:
    action = Migrate(guest="g1", target="h2", uri="qemu+tls://h2/system")
    return Command(
        id=f"cm-{number}", cause="dc", host="h1", action=action, rule="r", issued_ns=0, not_after_ns=9, epoch=1
    )


def outcome(command_id: str, result: Result, at_ns: int, cause: str = "cm") -> Outcome:
    return Outcome(
        id=f"oc-{command_id}-{result}-{at_ns}",
        cause=cause,
        command=command_id,
        host="h1",
        guest="g1",
        result=result,
        at_ns=at_ns,
    )


WANTING = QUIET.signalled(signal(SignalState.FIRING, 10))
COMMANDED = WANTING.commanded(command(1), 99, 20)
MEASURING = COMMANDED.answered(outcome("cm-1", Result.DONE, 30), RUNGS, measurable=True)
NEXT = MEASURING.climbed("oc-x", RUNGS, 40)
EXHAUSTED = NEXT.commanded(command(2), 99, 50).climbed("oc-y", RUNGS, 60)
EFFECTIVE = MEASURING.ended("effective", 40)


def test_a_firing_signal_wants_the_first_rung_because_of_itself() -> None:
    assert (WANTING.phase, WANTING.rung, WANTING.cause) == (Phase.WANTING, 0, "sg-firing-10")
    assert COMMANDED.before == {"cpu_steal_ratio": 0.4}


def test_each_way_up_the_ladder_names_its_cause() -> None:
    assert (NEXT.phase, NEXT.rung, NEXT.cause) == (Phase.WANTING, 1, "oc-x")
    assert (EXHAUSTED.phase, EXHAUSTED.note, EXHAUSTED.cause) == (Phase.FINISHED, "exhausted", "oc-y")


@pytest.mark.parametrize("result", [Result.REFUSED, Result.FAILED, Result.REVERTED])
def test_a_command_that_did_not_work_leads_to_the_next_rung(result: Result) -> None:
    told = outcome("cm-1", result, 30)
    climbed = COMMANDED.answered(told, RUNGS, measurable=True)
    assert (climbed.phase, climbed.rung, climbed.cause) == (Phase.WANTING, 1, told.id)


def test_a_remedy_without_expectation_is_over_when_it_is_done() -> None:
    assert COMMANDED.answered(outcome("cm-1", Result.DONE, 30), RUNGS, measurable=False).note == "done"


@pytest.mark.parametrize(
    ("ladder", "phase"),
    [
        (QUIET, Phase.QUIET),
        (WANTING, Phase.QUIET),
        (COMMANDED, Phase.COMMANDED),
        (MEASURING, Phase.MEASURING),
        (NEXT, Phase.QUIET),
        (EXHAUSTED, Phase.QUIET),
        (EFFECTIVE, Phase.QUIET),
    ],
)
def test_the_end_of_the_signal_ends_what_is_not_under_way(ladder: Ladder, phase: Phase) -> None:
    assert ladder.signalled(signal(SignalState.INACTIVE, 70)).phase is phase


def test_an_ended_signal_makes_a_finished_remedy_quiet_and_wants_no_next_one() -> None:
    over = MEASURING.signalled(signal(SignalState.INACTIVE, 70))
    assert over.ended("effective", 80).phase is Phase.QUIET
    assert over.climbed("oc", RUNGS, 80).phase is Phase.QUIET


@pytest.mark.parametrize("ladder", [WANTING, COMMANDED, MEASURING, NEXT, EXHAUSTED, EFFECTIVE])
def test_a_relapse_from_clearing_begins_nothing_anew(ladder: Ladder) -> None:
    clearing = ladder.signalled(signal(SignalState.CLEARING, 70))
    again = clearing.signalled(signal(SignalState.FIRING, 80))
    assert (clearing.phase, again.phase, again.rung, again.cause) == (
        ladder.phase,
        ladder.phase,
        ladder.rung,
        ladder.cause,
    )
    assert not clearing.firing


@pytest.mark.parametrize("ladder", [EXHAUSTED, EFFECTIVE])
def test_a_finished_ladder_waits_for_its_cooldown_or_a_new_signal(ladder: Ladder) -> None:
    end = ladder.since_ns
    assert ladder.cooled(100, end + 99) is ladder
    assert ladder.cooled(0, end + 10**18) is ladder
    assert ladder.signalled(signal(SignalState.CLEARING, 65)).cooled(100, end + 100).phase is Phase.FINISHED
    again = ladder.cooled(100, end + 100)
    assert (again.phase, again.rung, again.attempt, again.cause) == (Phase.WANTING, 0, 2, "sg-firing-10")
    anew = ladder.signalled(signal(SignalState.INACTIVE, 70)).signalled(signal(SignalState.FIRING, 80))
    assert (anew.phase, anew.rung, anew.cause) == (Phase.WANTING, 0, "sg-firing-80")


def test_a_refusal_is_said_once_a_reason_numbers_aside() -> None:
    ladder, news = WANTING.refused("cooldown", "43.5 s left")
    assert news
    assert ladder.refused("cooldown", "12 s left") == (ladder, False)
    ladder, news = ladder.refused("budget", "12 s left")
    assert news
    next_rung = ladder.commanded(command(1), 99, 20).climbed("oc", RUNGS, 30)
    assert next_rung.refused("cooldown", "1 s left")[1]


def test_reasons_without_end_are_not_kept_without_end() -> None:
    ladder = WANTING
    for number in range(100):
        ladder, _ = ladder.refused("placement", "x" * number)
    assert len(ladder.said) == MAX_SAID


class AnyOrder(RuleBasedStateMachine):
    """Throws signals and outcomes, new, repeated and stale ones, at a ladder."""

    def __init__(self) -> None:
        super().__init__()
        self.ladder = QUIET
        self.now = 0
        self.signals: list[Signal] = []
        self.outcomes: list[Outcome] = []

    def tick(self) -> int:
        self.now += 1
        return self.now

    @rule(state=st.sampled_from(list(SignalState)))
    def new_signal(self, state: SignalState) -> None:
        self.signals.append(signal(state, self.tick()))
        self.ladder = self.ladder.signalled(self.signals[-1])
        assert self.ladder.state is state

    @precondition(lambda self: self.signals)
    @rule(data=st.data())
    def old_signal(self, data: st.DataObject) -> None:
        assert self.ladder.signalled(data.draw(st.sampled_from(self.signals))) is self.ladder

    @precondition(lambda self: self.ladder.phase is Phase.WANTING)
    @rule()
    def accept(self) -> None:
        self.ladder = self.ladder.commanded(command(self.tick()), self.now + 9, self.now)
        assert self.ladder.phase is Phase.COMMANDED

    @precondition(lambda self: self.ladder.phase is not Phase.WANTING)
    @rule()
    def accept_what_is_not_wanted(self) -> None:
        assert self.ladder.commanded(command(self.tick()), self.now, self.now) is self.ladder
        assert self.ladder.refused("mode", "observe") == (self.ladder, False)

    @precondition(lambda self: self.ladder.command)
    @rule(result=st.sampled_from(list(Result)), measurable=st.booleans())
    def answer(self, result: Result, measurable: bool) -> None:
        cause = self.ladder.done if result in {Result.EFFECTIVE, Result.INEFFECTIVE} else self.ladder.command
        self.outcomes.append(outcome(self.ladder.command, result, self.tick(), cause))
        self.ladder = self.ladder.answered(self.outcomes[-1], RUNGS, measurable=measurable)

    @precondition(lambda self: self.outcomes)
    @rule(data=st.data())
    def old_outcome(self, data: st.DataObject) -> None:
        known = data.draw(st.sampled_from(self.outcomes))
        assert self.ladder.answered(known, RUNGS, measurable=True) is self.ladder

    @rule(cooldown=st.integers(0, 5))
    def cool(self, cooldown: int) -> None:
        self.ladder = self.ladder.cooled(cooldown, self.tick())

    @invariant()
    def holds(self) -> None:
        ladder = self.ladder
        assert 0 <= ladder.rung < RUNGS
        assert not (ladder.over and ladder.phase in {Phase.WANTING, Phase.FINISHED})
        assert bool(ladder.command) == (ladder.phase in {Phase.COMMANDED, Phase.MEASURING})
        assert ladder.cause or ladder.phase not in {Phase.WANTING, Phase.COMMANDED, Phase.MEASURING}


AnyOrder.TestCase.settings = settings(
    max_examples=examples(200), stateful_step_count=30, derandomize=True, deadline=None
)
TestAnyOrder = AnyOrder.TestCase
