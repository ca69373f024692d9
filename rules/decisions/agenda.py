"""What is wanted: the ladders' facts on one side of the matcher, its consequences on the other.

A rung is wanted when its rule fires on a subject and nothing is in flight there: firing(rule, subject, rung) and
idle(subject). A want stands until one of its facts is retracted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from enum import IntEnum
from typing import Final

from virtpilot.rules.decisions.matcher import Fact, Matcher, Pattern, Production, Var, fact, pattern

Key = tuple[str, str]


class FactKind(IntEnum):
    """What a fact says."""

    FIRING = 1
    IDLE = 2


SUBJECT: Final = Var("subject")


class Agenda:
    """Interns names to numbers, asserts and retracts facts, and keeps the wants that follow."""

    def __init__(self, matcher: Matcher) -> None:
        self._matcher = matcher
        self._rules: dict[str, int] = {}
        self._numbers: dict[str, int] = {}
        self._subjects: dict[int, str] = {}
        self._next = 1
        self._firing: dict[Key, Fact] = {}
        self._count: dict[str, int] = {}
        self._idle: dict[str, Fact] = {}
        self._meanings: dict[str, tuple[str, int]] = {}
        self._standing: dict[str, dict[str, int]] = {}

    def load(self, rules: Iterable[tuple[str, int, int]]) -> None:
        """Replace the rules, each a name, a priority and a number of rungs; every fact and want is forgotten."""
        rules = list(rules)
        for name, _, _ in rules:
            # a rule keeps its number, so that a reload leaves the productions of the others as they are
            self._rules.setdefault(name, len(self._rules))
        for store in (self._numbers, self._subjects, self._firing, self._count, self._idle, self._standing):
            store.clear()
        self._meanings = {f"{name}/{rung}": (name, rung) for name, _, rungs in rules for rung in range(rungs)}
        self._matcher.load(
            [
                Production(f"{name}/{rung}", priority, _conditions(self._rules[name], rung))
                for name, priority, rungs in rules
                for rung in range(rungs)
            ]
        )

    def settle(self, key: Key, rung: int | None, *, idle: bool) -> None:
        """Say that a rule fires on a subject and is at `rung`, or (None) that it wants nothing; whether it is idle."""
        rule, subject = key
        known = self._firing.get(key)
        new = None if rung is None else self._say(rule, subject, rung)
        if known is not None and known != new:
            self._retract(key, known)
        if new is not None and known != new:
            self._firing[key] = new
            self._count[subject] = self._count.get(subject, 0) + 1
            self._matcher.assert_fact(new)
        self.rest(subject, idle=idle)

    def rest(self, subject: str, *, idle: bool) -> None:
        """Say whether nothing is in flight on a subject; of one that nothing fires on, nothing is said."""
        if subject not in self._count:
            self._forget(subject)
        elif idle and subject not in self._idle:
            self._idle[subject] = fact(FactKind.IDLE, subject=self._numbers[subject])
            self._matcher.assert_fact(self._idle[subject])
        elif not idle and subject in self._idle:
            self._matcher.retract_fact(self._idle.pop(subject))
            self._standing.pop(subject, None)

    def wanted(self, about: Collection[str] | None = None) -> list[tuple[Key, int]]:
        """Return the rung that each rule wants, as the matcher has concluded, for all subjects or for some."""
        for consequence in self._matcher.consequences():
            rule, rung = self._meanings[consequence.production.name]
            subject = self._subjects[consequence.value(SUBJECT.name)]
            self._standing.setdefault(subject, {})[rule] = rung
        subjects = self._standing if about is None else [subject for subject in about if subject in self._standing]
        return [((rule, subject), rung) for subject in subjects for rule, rung in self._standing[subject].items()]

    @property
    def size(self) -> int:
        """How many facts hold."""
        return len(self._firing) + len(self._idle)

    def _say(self, rule: str, subject: str, rung: int) -> Fact:
        if subject not in self._numbers:
            self._numbers[subject] = self._next
            self._subjects[self._next] = subject
            self._next += 1
        return fact(FactKind.FIRING, rule=self._rules[rule], rung=rung, subject=self._numbers[subject])

    def _retract(self, key: Key, known: Fact) -> None:
        self._matcher.retract_fact(known)
        del self._firing[key]
        rule, subject = key
        standing = self._standing.get(subject)
        if standing is not None:
            standing.pop(rule, None)
            if not standing:
                del self._standing[subject]
        self._count[subject] -= 1
        if not self._count[subject]:
            del self._count[subject]

    def _forget(self, subject: str) -> None:
        if subject in self._idle:
            self._matcher.retract_fact(self._idle.pop(subject))
        self._standing.pop(subject, None)
        number = self._numbers.pop(subject, None)
        if number is not None:
            del self._subjects[number]


def _conditions(rule: int, rung: int) -> tuple[Pattern, Pattern]:
    return (
        pattern(FactKind.FIRING, rule=rule, rung=rung, subject=SUBJECT),
        pattern(FactKind.IDLE, subject=SUBJECT),
    )
