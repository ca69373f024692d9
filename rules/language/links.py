"""Rules that read each other's signals: each must be there, be about the right subjects, and in no ring."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import Final

import msgspec

from virtpilot.errors import Problem
from virtpilot.model import Kind
from virtpilot.rules.language.expression import condition
from virtpilot.rules.language.functions import OVERRIDE
from virtpilot.rules.language.nearest import hint
from virtpilot.rules.language.records import Rule, Severity

# About whom a rule may be whose signal is asked of a subject of this kind.
_SEEN_FROM: Final = {
    Kind.VM: {Kind.VM, Kind.HOST, Kind.CLUSTER},
    Kind.HOST: {Kind.HOST, Kind.CLUSTER},
    Kind.CLUSTER: {Kind.CLUSTER},
}
MAINTENANCE: Final = "maintenance"
MAX_PROBLEMS: Final = 100
"""Looking for the nearest name takes its time."""
_MEMBERS: Final = {Kind.VM: "vms", Kind.HOST: "hosts"}


class Mention(msgspec.Struct, frozen=True):
    """A rule's signal named in another rule, asked of subjects of a kind, with its place."""

    rule: str
    signal: str
    on: Kind
    file: str
    line: int
    column: int

    def problem(self, message: str) -> Problem:
        """Return a mistake at this place."""
        return Problem(self.file, self.line, self.column, message)


def broken(rules: Iterable[Rule], mentions: Iterable[Mention], names: Set[str]) -> list[Problem]:
    """Return every mention of a signal that cannot be read; `names` has the rules with mistakes too."""
    kinds, known = {rule.name: rule.on for rule in rules}, sorted(names)
    problems: list[Problem] = []
    for mention in mentions:
        if len(problems) >= MAX_PROBLEMS:
            break
        kind = kinds.get(mention.signal)
        if mention.signal not in names:
            problems.append(mention.problem(f"there is no rule `{mention.signal}`{hint(mention.signal, known)}"))
        elif kind is not None and kind not in _SEEN_FROM[mention.on]:
            count = f"count({_MEMBERS[kind]} where signals.{mention.signal}) > 0"
            problems.append(mention.problem(f"`{mention.signal}` is about each {kind}: write `{count}`"))
    return problems + _rings(mentions)


def built_in(mentions: Iterable[Mention], names: Set[str]) -> list[Rule]:
    """Return the rule `maintenance`, where some rule names it and none is called so: of guests whose tag says so."""
    if MAINTENANCE in names or all(mention.signal != MAINTENANCE for mention in mentions):
        return []
    when = condition(f'tags.{OVERRIDE}{MAINTENANCE} == "true"', Kind.VM)
    about = "Somebody works on the guest: its metadata says so."
    return [Rule(name=MAINTENANCE, on=Kind.VM, when=when, digest=MAINTENANCE, about=about, severity=Severity.INFO)]


def _rings(mentions: Iterable[Mention]) -> list[Problem]:
    """Return the rules whose signal hangs on itself, once for each ring, at the mention that closes it."""
    reads: dict[str, dict[str, Mention]] = {}
    for mention in mentions:
        reads.setdefault(mention.rule, {}).setdefault(mention.signal, mention)
    problems, done = [], set[str]()
    for start, first in reads.items():
        path: list[str] = []
        waiting = [(start, iter(first.values()))]
        while waiting:
            name, left = waiting[-1]
            if len(path) < len(waiting):
                path.append(name)
            found = next(left, None)
            if found is None:
                waiting.pop()
                done.add(path.pop())
            elif found.signal in path:
                ring = [*path[path.index(found.signal) :], found.signal]
                problems.append(found.problem(f"a signal cannot hang on itself: {' → '.join(ring)}"))
            elif found.signal in reads and found.signal not in done:
                waiting.append((found.signal, iter(reads[found.signal].values())))
    return problems


def sorted_by_need(needs: Mapping[str, Iterable[str]]) -> list[str]:
    """Return names, each after those that it needs, else in their order; there must be no ring."""
    found: dict[str, None] = {}
    for name in needs:
        waiting = [name]
        while waiting:
            before = next((other for other in needs[waiting[-1]] if other in needs and other not in found), None)
            if before is None:
                found.setdefault(waiting.pop())
            else:
                waiting.append(before)
    return list(found)
