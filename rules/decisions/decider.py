"""The second stage: signals and outcomes in; wanted remedies, measured effects and knobs to give back out.

on_signal, on_outcome ──▶ ladders ──facts──▶ matcher ──consequences──▶ arbiter ──▶ wants
▲                                                      │
└── measure (the effect, by samples after it) ◀── on_decision
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from virtpilot.clock import seconds
from virtpilot.model import Command, Decision, Mode, Outcome, Result, Signal
from virtpilot.rules.decisions.agenda import Agenda, Key
from virtpilot.rules.decisions.arbiter import arbitrate
from virtpilot.rules.decisions.effect import Verdict, judge, lost, measured, read
from virtpilot.rules.decisions.flights import Flight, Flights
from virtpilot.rules.decisions.holdings import Holdings
from virtpilot.rules.decisions.ladder import Ladder, Phase
from virtpilot.rules.decisions.matcher import Matcher
from virtpilot.rules.decisions.options import DecisionOptions
from virtpilot.rules.decisions.saved import changed, checked, document, slot_of
from virtpilot.rules.decisions.shelf import Shelf
from virtpilot.rules.decisions.want import (
    Exhausted,
    Measurements,
    Release,
    Want,
    knob_of,
    relative_change,
    signature,
)
from virtpilot.rules.language.records import AllocateRemedy, Expect, Remedy, Rule, RuleSet

__all__ = ["Decider", "DecisionOptions", "Exhausted", "Release", "Want"]

_SWEEPS: Final = 60


class Decider:
    """Keeps a ladder for each rule and subject, and wants only what the matcher concludes from their facts."""

    def __init__(self, ruleset: RuleSet, matcher: Matcher, options: DecisionOptions | None = None) -> None:
        self.options = options or DecisionOptions()
        self._matcher = matcher
        self._agenda = Agenda(matcher)
        self._flights, self._shelf = Flights(), Shelf()
        self.agreed: Collection[tuple[str, str, str, int]] = frozenset()  # rule, subject, cause, rung: approved of
        self.holdings = Holdings()
        self._exhausted: list[Exhausted] = []
        self._changes: dict[Key, float] = {}
        self._parked: set[Key] = set()
        self._queued: tuple[tuple[Release, ...], tuple[Exhausted, ...]] = ((), ())
        self._next_sweep_ns = 0
        self._set_rules(ruleset)

    @property
    def matcher(self) -> str:
        """Which matcher runs, for `status`."""
        return self._matcher.name

    def awaited(self) -> set[str]:
        """Return the subjects on which a command is out or an effect is measured."""
        phases = (Phase.COMMANDED, Phase.MEASURING)
        return {ladder.subject.id for phase in phases for _key, ladder in self._shelf.in_phase(phase)}

    def effects(self) -> list[tuple[Expect, str, bool]]:
        """Return the effects that are looked for, of whom, and whether the signal is over."""
        found = self._shelf.in_phase(Phase.MEASURING)
        return [(e, key[1], one.over) for key, one in found if (e := self._remedy(key).expect) is not None]

    def next_ns(self, wanted_ns: float = 0) -> float:
        """Return when something may change though no sample, signal or outcome comes; 0: at any moment, inf: never.

        `wanted_ns` is when what is wanted may be decided otherwise than it was.
        """
        awake = ((key, one) for key, one in self._shelf.items() if key not in self._parked)
        ladders = (
            wanted_ns
            if one.phase is Phase.WANTING
            else one.next_ns(self._remedy(key).expect, self._rules[key[0]].cooldown_ns)
            for key, one in awake
        )
        leases = (lease.until_ns for lease in self.holdings.leases.values())
        at_any_moment = self.holdings.releases or self._exhausted or any(self._flights)
        return 0 if at_any_moment else min((*leases, *ladders), default=math.inf)

    def on_signal(self, signal: Signal) -> None:
        """Take a signal's transition; duplicates and older ones change nothing."""
        rule = self._rules.get(signal.rule)
        if rule is None or not rule.remedies:
            return
        key = (signal.rule, signal.subject.id)
        known = self._shelf.get(key) or Ladder(rule=signal.rule, subject=signal.subject)
        self._put(key, known.signalled(signal))

    def on_decision(self, decision: Decision, command: Command | None, now_ns: int) -> bool:
        """Take what was decided on a want; True where it is news.

        A refusal for a reason (numbers aside) that was said before on this rung is no news: publish it not again.
        """
        key = (decision.rule, decision.subject.id)
        ladder = self._shelf.get(key)
        if ladder is None or ladder.phase is not Phase.WANTING or not ladder.meant_by(decision):
            return False
        if command is None:
            ladder, news = ladder.refused(decision.guard, decision.reason)
            if news:
                self._put(key, ladder)
            if decision.guard == "mode" and self._rules[key[0]].mode is Mode.OBSERVE:
                # Only other rules can change that: it need not be tried again.
                self._parked.add(key)
            return news
        until_ns = command.not_after_ns + self.options.grace_ns(command.action)
        self._flights.add(Flight(subject=decision.subject.id, command=command.id, since_ns=now_ns, until_ns=until_ns))
        self._put(key, ladder.commanded(command, until_ns, now_ns))
        return True

    def divided(self, decision: Decision, commands: Sequence[Command], now_ns: int) -> None:
        """Take a division that was decided on, with a command for each guest; the last one's outcome ends the rung."""
        key = (decision.rule, decision.subject.id)
        self.on_decision(decision, commands[-1], now_ns)
        ladder, remedy = self._shelf.get(key), self._rules[key[0]].remedies[decision.rung]
        if ladder is not None and ladder.command == commands[-1].id and isinstance(remedy, AllocateRemedy):
            self.holdings.divided(ladder, remedy, self._rules[key[0]].priority, commands)

    def on_outcome(self, outcome: Outcome) -> None:
        """Take an agent's word on a command, or a measured effect that comes back; duplicates change nothing."""
        landed = self._flights.landed(outcome)
        if (key := self._shelf.commanded(outcome.command)) is not None:
            self._take(key, outcome)
        if outcome.result is Result.REVERTED:
            self.holdings.end(lambda lease: lease.command == outcome.command)
        elif outcome.result in {Result.REFUSED, Result.FAILED}:
            self.holdings.end(lambda lease: bool(lease.division) and lease.command == outcome.command)
        self._rest(landed)

    def stopped(self, command: str, now_ns: int) -> None:
        """Take it that a command is being stopped for another's sake: its rung is wanted again once it has ended."""
        key = self._shelf.commanded(command)
        if key is not None:
            self._put(key, self._shelf[key].stopped(now_ns))

    def wants(
        self, now_ns: int, about: Collection[str] | None = None
    ) -> tuple[tuple[Want, ...], list[tuple[Want, str]]]:
        """Return what is wanted now, and what lost to another owner of the knob or guest with the reason.

        With `about` only what is wanted for these subjects: they have news, and time is looked at by another call.
        """
        if about is None:
            self._pass(now_ns)
        wanted = [self._want(key, rung) for key, rung in self._agenda.wanted(about) if key not in self._parked]
        return arbitrate(wanted, self.holdings.leases, self._change_of, self._order)

    def holder(self, guest: str, knob: str) -> str:
        """Return the rule that holds a guest's knob, "" where none does."""
        lease = self.holdings.leases.get((guest, knob))
        return lease.rule if lease is not None else ""

    def measure(self, now_ns: int, evaluator: Measurements, about: Collection[str] | None = None) -> list[Outcome]:
        """Return the effects that are known now, and a failure for each command whose outcome never came.

        With `about` only those of these subjects.
        """
        outcomes = []
        for key, ladder in self._shelf.in_phase(Phase.COMMANDED, about):
            if now_ns > ladder.until_ns:
                outcomes.append(self._lost(key, ladder, now_ns))
        for key, ladder in self._shelf.in_phase(Phase.MEASURING, about):
            outcomes += self._effect(key, ladder, now_ns, evaluator)
        for key, ladder in self._shelf.in_phase(Phase.WANTING, about):
            if key not in self._parked:
                self._look(key, ladder, evaluator)
        if about is None:
            self._sweep(now_ns, evaluator)
        return outcomes

    def _sweep(self, now_ns: int, evaluator: Measurements) -> None:
        """Forget what is over, now and then; also soon when the clock was set back."""
        span_ns = seconds(self.options.forget_after_s)
        if 0 < self._next_sweep_ns - now_ns <= span_ns // _SWEEPS:
            return
        self._next_sweep_ns = now_ns + span_ns // _SWEEPS
        for key, ladder in self._shelf.items():
            if ladder.idle and now_ns - ladder.signal_ns > span_ns:
                self._forget(key, now_ns, evaluator)

    def releases(self, now_ns: int) -> list[Release]:  # noqa: ARG002 - the contract's: each call has the time
        """Return the knobs to give back now, each once."""
        return self.holdings.due()

    def exhausted(self) -> list[Exhausted]:
        """Return the ladders that came to their end with the signal still firing, each once."""
        said, self._exhausted = self._exhausted, []
        return said

    def reload(self, ruleset: RuleSet) -> None:
        """Take other rules; a rule whose signal and remedies stay the same keeps its state, others start afresh."""
        old = self._signatures
        self._set_rules(ruleset)
        self._parked.clear()
        for key, ladder in self._shelf.items():
            self._keep_or_reset(key, ladder, old.get(key[0]))

    def saved(self) -> dict[str, object]:
        """Return the whole state, as msgspec writes it; `changes` counts from here."""
        list(self.changes())
        return document(self._shelf, self._flights, self.holdings, self._signatures, self._exhausted)

    def snapshot(self) -> dict[str, Any]:
        """Return the whole state, JSON-able."""
        whole: dict[str, Any] = msgspec.to_builtins(self.saved())
        return whole

    def changes(self) -> Iterator[tuple[tuple[str, ...], object]]:
        """Yield what has changed since the last call, rules apart, as (path in the state, new value or None)."""
        yield from changed(self._shelf, self._flights, self.holdings)
        if self._queued != (queued := (tuple(self.holdings.releases), tuple(self._exhausted))):
            self._queued = queued
            yield ("releases",), self.holdings.releases
            yield ("exhausted",), self._exhausted

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Take up a snapshot's state; rules that have changed since start afresh. Raises StateError."""
        state = checked(snapshot)
        self._flights, self._shelf = Flights(), Shelf()
        for flight in state.flights.values():
            self._flights.add(flight)
        self.holdings = Holdings({slot_of(slot): lease for slot, lease in state.leases.items()}, state.releases)
        self._exhausted = state.exhausted
        for ladder in state.ladders.values():
            self._shelf.put((ladder.rule, ladder.subject.id), ladder)
        self._changes.clear()
        self._parked.clear()
        self._load_agenda()
        for key, ladder in self._shelf.items():
            self._keep_or_reset(key, ladder, state.rules.get(key[0]))

    def _set_rules(self, ruleset: RuleSet) -> None:
        self._rules: dict[str, Rule] = {rule.name: rule for rule in ruleset.rules}
        self._order = {rule.name: place for place, rule in enumerate(ruleset.rules)}
        self._signatures = {rule.name: signature(rule) for rule in ruleset.rules}
        self._load_agenda()

    def _load_agenda(self) -> None:
        self._agenda.load((rule.name, rule.priority, len(rule.remedies)) for rule in self._rules.values())

    def _keep_or_reset(self, key: Key, ladder: Ladder, old: tuple[str, str] | None) -> None:
        new = self._signatures.get(key[0])
        if old is None or new is None or old[0] != new[0] or not self._rules[key[0]].remedies:
            # its signal starts afresh too, and will say so
            self._drop(key)
        elif old[1] != new[1]:
            self._put(key, ladder.restarted())
        else:
            self._settle(key, ladder)

    def _put(self, key: Key, ladder: Ladder) -> None:
        known = self._shelf.get(key)
        if ladder is known or (known is None and ladder.phase is Phase.QUIET):
            return
        self._shelf.put(key, ladder)
        self._parked.discard(key)
        if ladder.phase is not Phase.WANTING:
            self._changes.pop(key, None)
        self._settle(key, ladder)

    def _settle(self, key: Key, ladder: Ladder) -> None:
        rung = ladder.rung if ladder.phase is Phase.WANTING and ladder.firing else None
        self._agenda.settle(key, rung, idle=not self._flights.busy(key[1]))

    def _rest(self, subjects: Iterable[str]) -> None:
        for subject in subjects:
            self._agenda.rest(subject, idle=not self._flights.busy(subject))

    def _drop(self, key: Key) -> None:
        self._shelf.drop(key)
        self._parked.discard(key)
        self._changes.pop(key, None)
        self._agenda.settle(key, None, idle=not self._flights.busy(key[1]))

    def _take(self, key: Key, outcome: Outcome) -> None:
        ladder, remedy = self._shelf[key], self._remedy(key)
        rungs = len(self._rules[key[0]].remedies)
        moved = ladder.answered(outcome, rungs, measurable=remedy.expect is not None)
        if moved is ladder:
            return
        if outcome.result is Result.DONE:
            self.holdings.done(ladder, remedy, self._rules[key[0]].priority, outcome.at_ns)
        if outcome.result is Result.INEFFECTIVE:
            self._give_back(ladder, remedy, outcome)
        self._advance(key, moved)

    def _advance(self, key: Key, ladder: Ladder) -> None:
        if ladder.note == "exhausted":
            ended = Exhausted(
                cause=ladder.cause,
                rule=ladder.rule,
                subject=ladder.subject,
                rung=ladder.rung,
                priority=self._rules[key[0]].priority,
                at_ns=ladder.since_ns,
            )
            self._exhausted.append(ended)
        self._put(key, ladder)

    def _give_back(self, ladder: Ladder, remedy: Remedy, outcome: Outcome) -> None:
        until_ns = outcome.at_ns + seconds(self.options.release_grace_s)
        for release in self.holdings.give_back(ladder, remedy, outcome):
            self._flights.add(
                Flight(
                    subject=release.guest,
                    command=release.command,
                    since_ns=outcome.at_ns,
                    until_ns=until_ns,
                    release=True,
                )
            )

    def _lost(self, key: Key, ladder: Ladder, now_ns: int) -> Outcome:
        remedy = self._remedy(key)
        outcome = lost(ladder, remedy, now_ns)
        self._flights.end(ladder.command)
        self._give_back(ladder, remedy, outcome)
        self._advance(key, ladder.climbed(outcome.id, len(self._rules[key[0]].remedies), now_ns))
        return outcome

    def _effect(self, key: Key, ladder: Ladder, now_ns: int, evaluator: Measurements) -> list[Outcome]:
        rule, remedy = self._rules[key[0]], self._remedy(key)
        verdict = judge(ladder, remedy.expect, now_ns, evaluator) if remedy.expect else Verdict.MOOT
        if verdict is Verdict.OPEN:
            return []
        if verdict is Verdict.MOOT:
            self._advance(key, ladder.ended("", now_ns))
            return []
        row = evaluator.row(ladder.subject.kind, key[1])
        fresh = row is not None and row.time_ns > ladder.done_ns
        after = read(rule, remedy, key[1], evaluator) if fresh else {}
        result = Result.EFFECTIVE if verdict is Verdict.EFFECTIVE else Result.INEFFECTIVE
        outcome = measured(ladder, remedy, result, now_ns, after)
        self._take(key, outcome)
        return [outcome]

    def _look(self, key: Key, ladder: Ladder, evaluator: Measurements) -> None:
        """Keep what a decision is based on up to date while a remedy is wanted."""
        remedy = self._remedy(key)
        self._changes[key] = relative_change(remedy, ladder.subject, evaluator)
        inputs = read(self._rules[key[0]], remedy, key[1], evaluator)
        if inputs and inputs != ladder.inputs:
            self._shelf.put(key, msgspec.structs.replace(ladder, inputs=inputs))

    def _forget(self, key: Key, now_ns: int, evaluator: Measurements) -> None:
        """Drop a ladder that is quiet, or whose subject has been away for long."""
        ladder = self._shelf[key]
        away = evaluator.row(ladder.subject.kind, ladder.subject.id) is None
        away_ns = (ladder.away_ns or now_ns) if away else 0
        if ladder.phase is Phase.QUIET or (away and now_ns - away_ns > seconds(self.options.forget_after_s)):
            self._drop(key)
        elif away_ns != ladder.away_ns:
            self._shelf.put(key, msgspec.structs.replace(ladder, away_ns=away_ns))

    def _pass(self, now_ns: int) -> None:
        """Let time pass: overdue operations, leases that ended, cooldowns that are over."""
        self._rest(self._flights.expire(now_ns))
        self.holdings.expire(now_ns)
        for key, ladder in self._shelf.in_phase(Phase.FINISHED):
            cooled = ladder.cooled(self._rules[key[0]].cooldown_ns, now_ns)
            if cooled is not ladder:
                self._put(key, cooled)

    def _remedy(self, key: Key) -> Remedy:
        return self._rules[key[0]].remedies[self._shelf[key].rung]

    def _want(self, key: Key, rung: int) -> Want:
        rule, ladder = self._rules[key[0]], self._shelf[key]
        remedy = rule.remedies[rung]
        return Want(
            cause=ladder.cause,
            rule=rule.name,
            subject=ladder.subject,
            rung=rung,
            attempt=ladder.attempt,
            remedy=remedy,
            priority=rule.priority,
            knob=knob_of(remedy),
            severity=rule.severity,
            mode=Mode.ACT if (*key, ladder.cause, rung) in self.agreed else rule.mode,
            cooldown=rule.cooldown,
            since_ns=ladder.since_ns,
            budgets=rule.budgets,
            blocked=any(not said.startswith("arbiter:") for said in ladder.said),
        )

    def _change_of(self, want: Want) -> float:
        return self._changes.get((want.rule, want.subject.id), math.inf)
