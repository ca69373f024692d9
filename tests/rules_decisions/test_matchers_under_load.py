"""Many facts: no growth, no collision, no limit of the engine within reach."""

from __future__ import annotations

import gc
import random
from pathlib import Path
from typing import Any

import pytest

from tests.rules_decisions.matchers import HAS_DURABLE, NAMES, firing, firing_and_idle, idle
from tests.thoroughness import THOROUGH
from virtpilot.rules.decisions.durable import REFRESH_AFTER_MATCHES, DurableMatcher, Sequence32, fnv1a
from virtpilot.rules.decisions.matcher import Matcher, Name, choose
from virtpilot.rules.decisions.shard import MAX_CONDITIONS, MAX_CONDITIONS_OF_ONE_KIND, load_engine, pack

needs_durable = pytest.mark.skipif(not HAS_DURABLE, reason="durable-rules does not import here")


def resident_kib() -> int:
    gc.collect()
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("subjects", [100, pytest.param(1_000, marks=pytest.mark.long)])
def test_a_hundred_rules_on_so_many_subjects_each_tell_once(name: Name, subjects: int) -> None:
    matcher = choose(name)
    matcher.load(firing_and_idle(rules=100))
    total = 0
    # a controller keeps facts only of what fires: fifty subjects at a time here, each with all of its rules
    for first in range(1, subjects + 1, 50):
        wave = range(first, first + 50)
        facts = [firing(rule, 0, subject) for subject in wave for rule in range(1, 101)]
        facts += [idle(subject) for subject in wave]
        for known in facts:
            matcher.assert_fact(known)
        told = matcher.consequences()
        assert len({(one.production.name, one.value("subject")) for one in told}) == len(told) == 5000
        total += len(told)
        for known in facts:
            matcher.retract_fact(known)
    assert total == 100 * subjects
    assert not matcher.consequences()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rounds", [18_000, pytest.param(45_000, marks=pytest.mark.long)])
def test_tens_of_thousands_of_facts_leave_no_memory_behind(name: Name, rounds: int) -> None:
    matcher = choose(name)
    matcher.load(firing_and_idle(rules=6))

    def story(rounds: range) -> None:
        for round_ in rounds:
            subject = 1 + round_ % 20
            known = [idle(subject), firing(1 + round_ % 6, round_ % 2, subject)]
            for fact in known:
                matcher.assert_fact(fact)
            assert len(matcher.consequences()) == 1
            for fact in known:
                matcher.retract_fact(fact)

    story(range(5_000))
    before = resident_kib()
    story(range(5_000, 5_000 + rounds))
    assert resident_kib() - before < rounds * 46 / 1024, "no 46 bytes a round"


@pytest.mark.parametrize("name", NAMES)
def test_a_fact_that_stays_while_its_partner_comes_and_goes_does_not_grow(name: Name) -> None:
    matcher = choose(name)
    matcher.load(firing_and_idle(rules=1))
    matcher.assert_fact(firing(1, 0, 1))

    def toggle(times: int) -> None:
        for _ in range(times):
            matcher.assert_fact(idle(1))
            assert len(matcher.consequences()) == 1
            matcher.retract_fact(idle(1))

    toggle(4 * REFRESH_AFTER_MATCHES)
    before = resident_kib()
    toggle(20_000)
    assert resident_kib() - before < 512


FACTS = [3_000, pytest.param(1_000_000, marks=[pytest.mark.long, pytest.mark.slow, pytest.mark.timeout(0)])]
GUESTS = [300, pytest.param(10_000, marks=[pytest.mark.long, pytest.mark.slow, pytest.mark.timeout(0)])]


class Counted:
    """Lets facts come and go; `due` is what must be told of them, known by counting."""

    def __init__(self, matcher: Matcher) -> None:
        self.due: set[tuple[int, int]] = set()
        self._matcher = matcher
        self._holding: set[tuple[int, int]] = set()
        self._resting: set[int] = set()

    def toggle_firing(self, rule: int, subject: int) -> int:
        """Assert or retract that a rule fires; return how many facts came."""
        pair = (rule, subject)
        if pair in self._holding:
            self._holding.discard(pair)
            self.due.discard(pair)
            self._matcher.retract_fact(firing(rule, 0, subject))
            return 0
        self._holding.add(pair)
        self.due.update({pair} if subject in self._resting else ())
        self._matcher.assert_fact(firing(rule, 0, subject))
        return 1

    def toggle_idle(self, subject: int) -> int:
        """Assert or retract that a subject is idle; return how many facts came."""
        own = {pair for pair in self._holding if pair[1] == subject}
        if subject in self._resting:
            self._resting.discard(subject)
            self.due.difference_update(own)
            self._matcher.retract_fact(idle(subject))
            return 0
        self._resting.add(subject)
        self.due.update(own)
        self._matcher.assert_fact(idle(subject))
        return 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", FACTS)
def test_over_so_many_facts_nothing_is_lost_told_twice_or_left_behind(name: Name, count: int) -> None:
    """Facts come and go at random; what must follow from them is known by counting, whatever the order."""
    matcher, rng = choose(name), random.Random(count)
    rules = 60 if THOROUGH else 20
    matcher.load(firing_and_idle(rules=rules, rungs=1))
    facts = Counted(matcher)
    asserted, told, before = 0, 0, 0
    warm = max(count // 4, 4_000)  # the engine grows to what these rules need, once
    while asserted < warm + count:
        for _ in range(rng.randrange(1, 20)):
            subject = rng.randrange(1, 30)
            rests = rng.random() < 0.4
            asserted += (
                facts.toggle_idle(subject) if rests else facts.toggle_firing(rng.randrange(1, rules + 1), subject)
            )
        found = [(one.facts[0]["rule"], one.facts[0]["subject"]) for one in matcher.consequences()]
        assert len(found) == len(facts.due)
        assert set(found) == facts.due
        told += len(found)
        facts.due.clear()
        if not before and asserted > warm:
            before = resident_kib()
    assert told > count // 3
    assert resident_kib() - before < 2_048


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("guests", GUESTS)
def test_six_hundred_rules_tell_of_every_guest(name: Name, guests: int) -> None:
    """Far beyond what one ruleset of the C engine bears: 512 conditions. Every guest has three of the rules firing."""
    matcher, rng = choose(name), random.Random(guests)
    matcher.load(firing_and_idle(rules=600, rungs=1))
    wanted = {subject: rng.sample(range(1, 601), 3) for subject in range(1, guests + 1)}
    for first in range(1, guests + 1, 500):
        wave = range(first, min(first + 500, guests + 1))
        for subject in wave:
            for rule in wanted[subject]:
                matcher.assert_fact(firing(rule, 0, subject))
            matcher.assert_fact(idle(subject))
        told = [(one.facts[0]["rule"], one.facts[0]["subject"]) for one in matcher.consequences()]
        assert sorted(told) == sorted((rule, subject) for subject in wave for rule in wanted[subject])
        for subject in wave:
            matcher.retract_fact(idle(subject))
            for rule in wanted[subject]:
                matcher.retract_fact(firing(rule, 0, subject))
    assert not matcher.consequences()


def test_rulesets_are_cut_to_what_the_engine_bears() -> None:
    productions = firing_and_idle(rules=100, rungs=3)
    shards = pack(productions)
    assert [production for shard in shards for production in shard] == productions
    for shard in shards:
        kinds = [condition.kind for production in shard for condition in production.conditions]
        assert len(kinds) <= MAX_CONDITIONS
        assert max(map(kinds.count, set(kinds))) <= MAX_CONDITIONS_OF_ONE_KIND


# fnv1a("40189") == fnv1a("797186"): the first such pair that counting meets
EARLIER, LATER = 40_189, 797_186


def test_no_two_numbers_in_use_have_one_hash() -> None:
    assert fnv1a(str(EARLIER)) == fnv1a(str(LATER))
    numbers = Sequence32()
    numbers._last = EARLIER - 1
    assert numbers.take() == EARLIER
    numbers._last = LATER - 1
    assert numbers.take() != LATER
    numbers.give(EARLIER)
    numbers._last = LATER - 1
    assert numbers.take() == LATER


@needs_durable
def test_a_fact_is_kept_apart_from_one_that_the_engine_would_take_for_it() -> None:
    matcher = DurableMatcher()
    matcher.load(firing_and_idle(rules=1))
    matcher._numbers._last = EARLIER - 1
    matcher.assert_fact(firing(1, 0, 1))
    matcher._numbers._last = LATER - 1
    matcher.assert_fact(firing(1, 0, 2))
    matcher.retract_fact(firing(1, 0, 2))
    matcher.assert_fact(idle(1))
    assert [one.value("subject") for one in matcher.consequences()] == [1]


@needs_durable
def test_the_engine_is_given_the_same_ruleset_once_however_often_it_is_loaded() -> None:
    matcher = DurableMatcher()
    for _ in range(3):
        matcher.load(firing_and_idle(rules=2))
        matcher.assert_fact(firing(1, 0, 1))
        matcher.assert_fact(idle(1))
        assert len(matcher.consequences()) == 1
        matcher.load(firing_and_idle(rules=1))
        assert not matcher.consequences()
    assert len(matcher._built) == 2


class _Recorder:
    """The real engine with a list of what it was asked."""

    def __init__(self) -> None:
        self._engine = load_engine()
        self.error = self._engine.error
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> Any:
            self.calls.append(f"{name} {arguments[1]}")
            return getattr(self._engine, name)(*arguments)

        return call


@needs_durable
def test_dead_frames_are_taken_over_before_a_fact_of_theirs_is_retracted() -> None:
    recorder = _Recorder()
    matcher = DurableMatcher(recorder)
    matcher.load(firing_and_idle(rules=1, rungs=1))
    for subject in (1, 2):
        matcher.assert_fact(firing(1, 0, subject))
        matcher.assert_fact(idle(subject))
    recorder.calls.clear()
    matcher.retract_fact(idle(1))
    verbs = [call.split()[0] for call in recorder.calls]
    # one match a time was told, so one frame is dead: a dummy firing and a dummy idle, both retracted untold
    assert verbs == ["assert_fact", "assert_fact", "retract_fact", "retract_fact", "retract_fact"]
    assert all(str(2**31 - 1) in call for call in recorder.calls[:2])
    recorder.calls.clear()
    matcher.retract_fact(idle(2))
    assert len(recorder.calls) == 1
