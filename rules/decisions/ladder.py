"""The ladder: one rule's way through its remedies for one subject, as a frozen state and pure transitions.

    quiet ──fires──▶ wanting ──accepted──▶ commanded ──done──▶ measuring ──holds──▶ finished (effective)
      ▲                 ▲ refused by a guard: said             │refused,           │time is up: ineffective
      │                 │ once, wanted on                      │failed, none       ▼
      │                 └───────────────next rung──────────────┴───────────────────┤
      └──signal ends──── wanting, finished                        no rung left: finished (exhausted)

`finished` wants nothing until the signal ends and fires anew, or its cooldown has passed while it still fires. A
signal that is clearing neither ends nor advances a ladder. What comes twice, or late, changes nothing.
"""

from __future__ import annotations

import math
import re
from enum import StrEnum
from typing import Final

import msgspec
from msgspec.structs import replace

from virtpilot.model import Command, Decision, Outcome, Result, Signal, SignalState, Subject
from virtpilot.rules.language.records import Expect

MAX_SAID: Final = 32

_DIGITS: Final = re.compile(r"\d+(\.\d+)?")


class Phase(StrEnum):
    """Where a ladder stands."""

    QUIET = "quiet"
    WANTING = "wanting"
    COMMANDED = "commanded"
    MEASURING = "measuring"
    FINISHED = "finished"


class Ladder(msgspec.Struct, frozen=True, kw_only=True):
    """One rule on one subject; every transition returns the ladder after it, the same one where nothing changes."""

    rule: str
    subject: Subject
    phase: Phase = Phase.QUIET
    rung: int = 0
    attempt: int = 0
    cause: str = ""
    since_ns: int = 0
    note: str = ""
    signal: str = ""
    signal_ns: int = 0
    state: SignalState = SignalState.INACTIVE
    inputs: dict[str, float] = {}
    said: tuple[str, ...] = ()
    command: str = ""
    host: str = ""
    until_ns: int = 0
    before: dict[str, float] = {}
    done: str = ""
    done_ns: int = 0
    away_ns: int = 0

    @property
    def firing(self) -> bool:
        """Whether the signal fires, and is not clearing."""
        return self.state is SignalState.FIRING

    @property
    def over(self) -> bool:
        """Whether the signal has ended."""
        return self.state in {SignalState.INACTIVE, SignalState.PENDING}

    @property
    def idle(self) -> bool:
        """Whether no command is out and no effect is awaited."""
        return self.phase not in {Phase.COMMANDED, Phase.MEASURING}

    def meant_by(self, decision: Decision) -> bool:
        """Tell whether a decision is on the rung that is wanted now."""
        return (self.rung, self.cause) == (decision.rung, decision.cause)

    def signalled(self, signal: Signal) -> Ladder:
        """Take a transition of the signal; an older one or the same again changes nothing."""
        if signal.at_ns < self.signal_ns or signal.id == self.signal:
            return self
        taken = replace(self, signal=signal.id, signal_ns=signal.at_ns, state=signal.state, subject=signal.subject)
        if taken.firing:
            taken = replace(taken, inputs=signal.inputs)
            return _started(taken) if self.phase is Phase.QUIET else taken
        return _rested(taken) if taken.over else taken

    def refused(self, guard: str, reason: str) -> tuple[Ladder, bool]:
        """Take a guard's refusal of what is wanted; True where it has to be said: numbers aside, a new reason."""
        key = _DIGITS.sub("#", f"{guard}: {reason}")
        if self.phase is not Phase.WANTING or key in self.said or len(self.said) >= MAX_SAID:
            return self, False
        return replace(self, said=(*self.said, key)), True

    def commanded(self, command: Command, until_ns: int, now_ns: int) -> Ladder:
        """Take the command for what is wanted; without an outcome until `until_ns` it counts as failed."""
        if self.phase is not Phase.WANTING:
            return self
        return replace(
            self,
            phase=Phase.COMMANDED,
            command=command.id,
            host=command.host,
            until_ns=until_ns,
            before=self.inputs,
            since_ns=now_ns,
        )

    def answered(self, outcome: Outcome, rungs: int, *, measurable: bool) -> Ladder:
        """Take the outcome of its command; `measurable` says whether the rung has an expectation."""
        if outcome.command != self.command or not self.command:
            return self
        if self.phase is Phase.COMMANDED:
            return self._told(outcome, rungs, measurable=measurable)
        if self.phase is Phase.MEASURING and outcome.cause == self.done:
            if outcome.result is Result.EFFECTIVE:
                return self.ended("effective", outcome.at_ns)
            if outcome.result is Result.INEFFECTIVE:
                return self.climbed(outcome.id, rungs, outcome.at_ns)
        return self

    def _told(self, outcome: Outcome, rungs: int, *, measurable: bool) -> Ladder:
        match outcome.result:
            case Result.DONE if measurable:
                return replace(
                    self, phase=Phase.MEASURING, done=outcome.id, done_ns=outcome.at_ns, since_ns=outcome.at_ns
                )
            case Result.DONE:
                return self.ended("done", outcome.at_ns)
            case Result.REFUSED | Result.FAILED | Result.REVERTED:
                return self.climbed(outcome.id, rungs, outcome.at_ns)
        return self

    def climbed(self, cause: str, rungs: int, now_ns: int) -> Ladder:
        """Leave a rung that did not help, because of the outcome `cause`: the next one, or exhausted."""
        if self.over:
            return _quiet(self)
        if self.rung + 1 >= rungs:
            return replace(self.ended("exhausted", now_ns), cause=cause)
        return replace(
            _quiet(self), phase=Phase.WANTING, rung=self.rung + 1, attempt=self.attempt, cause=cause, since_ns=now_ns
        )

    def ended(self, note: str, now_ns: int) -> Ladder:
        """Finish; with the signal over there is nothing to wait for."""
        if self.over:
            return _quiet(self)
        return replace(_quiet(self), phase=Phase.FINISHED, rung=self.rung, note=note, since_ns=now_ns)

    def next_ns(self, expect: Expect | None, cooldown_ns: int) -> float:
        """Return when time alone may take it further; 0 for at any moment, infinite for never."""
        match self.phase:
            case Phase.WANTING | Phase.COMMANDED:
                return 0
            case Phase.MEASURING:
                return self.done_ns + expect.within_ns if expect is not None else 0
            case Phase.FINISHED if self.firing and cooldown_ns:
                return self.since_ns + cooldown_ns
        return math.inf

    def cooled(self, cooldown_ns: int, now_ns: int) -> Ladder:
        """Begin again when the cooldown has passed and the signal still fires; without a cooldown never."""
        if self.phase is Phase.FINISHED and self.firing and 0 < cooldown_ns <= now_ns - self.since_ns:
            return _started(self)
        return self

    def stopped(self, now_ns: int) -> Ladder:
        """Want the rung again whose command is being stopped for another's sake; what it did counts for nothing."""
        if self.phase is not Phase.COMMANDED or self.over:
            return self
        return replace(
            _quiet(self), phase=Phase.WANTING, rung=self.rung, attempt=self.attempt, cause=self.cause, since_ns=now_ns
        )

    def restarted(self) -> Ladder:
        """Forget the way so far: the rule has other remedies now."""
        return _started(self) if self.firing else _quiet(self)


def _started(ladder: Ladder) -> Ladder:
    return replace(
        _quiet(ladder),
        phase=Phase.WANTING,
        attempt=ladder.attempt + 1,
        cause=ladder.signal,
        since_ns=ladder.signal_ns,
    )


def _rested(ladder: Ladder) -> Ladder:
    return _quiet(ladder) if ladder.phase in {Phase.WANTING, Phase.FINISHED} else ladder


def _quiet(ladder: Ladder) -> Ladder:
    return Ladder(
        rule=ladder.rule,
        subject=ladder.subject,
        attempt=ladder.attempt,
        signal=ladder.signal,
        signal_ns=ladder.signal_ns,
        since_ns=ladder.signal_ns,
        state=ladder.state,
        inputs=ladder.inputs,
        away_ns=ladder.away_ns,
    )
