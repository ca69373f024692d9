"""What is not wrong in rule files, but hardly meant: warnings, each at its rule."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from virtpilot.errors import Problem
from virtpilot.rules.decisions.want import PLACEMENT, knob_of
from virtpilot.rules.language.expression import Condition
from virtpilot.rules.language.reach import possible, terms
from virtpilot.rules.language.records import Rule, RuleSet
from virtpilot.rules.testing.document import SUFFIX, load_tests

Places = Mapping[str, Problem]
MAX_PAIRS: Final = 2_000
_ORDERED: Final = re.compile(r"[<>]")


def lint(ruleset: RuleSet, places: Places, paths: Sequence[Path]) -> list[Problem]:
    """Return the warnings about rules that were loaded from these files and folders, in order of their places."""
    rules = [rule for rule in ruleset.rules if rule.name in places]
    found = [*_unreachable(rules), *_rivals(rules), *_restless(rules), *_counters(rules)]
    found += _untested(rules, paths, places)
    return sorted({at(places, rule, message) for rule, message in found})


def at(places: Places, rule: str, message: str) -> Problem:
    """Return a warning at a rule's name."""
    place = places.get(rule, Problem("", 0, 0, ""))
    return Problem(place.file, place.line, place.column, f"warning: {rule}: {message}")


def _unreachable(rules: Iterable[Rule]) -> Iterator[tuple[str, str]]:
    for rule in rules:
        scope = [rule.where] if rule.where is not None else []
        if not possible(*scope, rule.when):
            where = " where `where` does" if possible(rule.when) else ""
            yield rule.name, f"`when` can never hold{where}: {rule.when.text}"
        elif not possible(*scope, but=rule.when):
            yield rule.name, f"`when` always holds: {rule.when.text}"
        elif rule.clear is not None and not possible(*scope, rule.clear):
            yield rule.name, f"`clear` can never hold, the signal never ends: {rule.clear.text}"
        elif rule.clear is not None and _same_terms(rule.clear, rule.when) and possible(*scope, rule.when, rule.clear):
            yield rule.name, "`clear` can hold while `when` does: the signal would end and begin again"


def _same_terms(one: Condition, other: Condition) -> bool:
    """Tell whether the first is about nothing that the other is not: only then it is known that both can hold."""
    own, others = terms(one), terms(other)
    return own is not None and others is not None and own <= others


def _rivals(rules: Sequence[Rule]) -> Iterator[tuple[str, str]]:
    """Yield rules that want the same of the same subjects with equal right; of countless such rules the first pairs."""
    alike: dict[tuple[str, int], list[Rule]] = {}
    for rule in rules:
        for knob in sorted({knob_of(remedy) for remedy in rule.remedies}):
            alike.setdefault((knob, rule.priority), []).append(rule)
    room = MAX_PAIRS
    for (knob, priority), group in alike.items():
        for place, rule in enumerate(group):
            room -= place
            for other in group[:place] if room > 0 else ():
                if not _at_other_times(rule, other) and possible(*_conditions(rule), *_conditions(other)):
                    what = "the guest's place" if knob == PLACEMENT else f"`{knob}`"
                    yield rule.name, f"sets {what} as `{other.name}` does, with the same priority {priority}"


def _at_other_times(one: Rule, other: Rule) -> bool:
    """Tell whether both have hours of their own; that these overlap is not known."""
    own, others = ({calendar.text for calendar in rule.during} for rule in (one, other))
    return bool(own and others) and own != others


def _conditions(rule: Rule) -> list[Condition]:
    return [rule.when] if rule.where is None else [rule.where, rule.when]


def _restless(rules: Iterable[Rule]) -> Iterator[tuple[str, str]]:
    for rule in rules:
        if rule.clear is None and rule.clear_for_ns == 0 and _ORDERED.search(rule.when.text):
            yield (
                rule.name,
                "neither `clear` nor `clear_for`: near the threshold the signal begins and ends all the time",
            )


def _counters(rules: Iterable[Rule]) -> Iterator[tuple[str, str]]:
    """Yield the rules that compare a counter itself with a number: sooner or later that holds for good."""
    for rule in rules:
        waiting = [rule.when.part]
        while waiting:
            part = waiting.pop()
            waiting += part.parts
            one, other = part.parts if len(part.parts) == 2 else (part, part)
            if part.sign in {">", ">="} and one.counter and other.literal is not None and isinstance(one.source, tuple):
                field = one.source[1]
                yield (
                    rule.name,
                    f"`{field}` only grows: `rate({field}, 5m)` or `delta({field}, 5m)` is meant, most likely",
                )


def _untested(rules: Iterable[Rule], paths: Sequence[Path], places: Places) -> Iterator[tuple[str, str]]:
    tested = {
        expected.rule
        for file in _test_files(paths, places)
        if not isinstance(found := load_tests(file), list)
        for test in found.tests
        for expected in test.expectations
    }
    for rule in rules:
        if rule.name not in tested:
            yield rule.name, f"no test expects anything of it (in {_beside(Path(places[rule.name].file)).name})"


def _test_files(paths: Sequence[Path], places: Places) -> set[Path]:
    found = {file for path in paths if path.is_dir() for file in path.rglob(f"*{SUFFIX}")}
    return found | {file for place in places.values() if (file := _beside(Path(place.file))).exists()}


def _beside(file: Path) -> Path:
    return file.with_name(file.name.removesuffix(".yaml") + SUFFIX)
