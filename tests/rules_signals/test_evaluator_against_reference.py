"""The columnar evaluator says what the plain reference says, however its input is cut, mixed or interrupted."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rules_signals.reference import RULES, START_NS, Change, Event, Reference, changes, ruleset, streams
from tests.thoroughness import examples
from virtpilot.clock import seconds
from virtpilot.model import Sample, Signal
from virtpilot.rules.signals.evaluator import Evaluator
from virtpilot.rules.signals.tolerance import Tolerance

REPEATABLE = settings(derandomize=True, deadline=None, max_examples=examples(60, least=15))
LONGER = settings(REPEATABLE, max_examples=examples(250))
ALL = ruleset(RULES)
# Short times, so that subjects go and come back within a stream.
SHORT = Tolerance(stale_ns=seconds(60), forget_ns=seconds(200), ahead_ns=seconds(150))


def run(evaluator: Evaluator, events: Iterable[Event]) -> list[Signal]:
    signals: list[Signal] = []
    for event in events:
        signals += evaluator.tick(event) if isinstance(event, int) else evaluator.feed([event], "m")
    return signals


def expected(events: Iterable[Event]) -> list[Change]:
    reference = Reference(ALL, SHORT)
    found: list[Change] = []
    for event in events:
        found += reference.tick(event) if isinstance(event, int) else reference.feed(event)
    return found


@LONGER
@given(streams())
def test_it_says_what_the_reference_says(events: list[Event]) -> None:
    found = changes(run(Evaluator(ALL, tolerance=SHORT), events))
    wanted = expected(events)
    # Of a tick's changes the order is by rule here, by subject there.
    assert sorted(found) == sorted(wanted)
    assert [change for change in found if change in wanted] == found


@REPEATABLE
@given(streams(ticks=False), st.lists(st.integers(0, 60), max_size=6))
def test_any_cut_into_batches_gives_the_same_signals(events: list[Event], cuts: list[int]) -> None:
    samples = [event for event in events if isinstance(event, Sample)]
    edges = sorted({0, len(samples), *(cut for cut in cuts if cut < len(samples))})
    evaluator = Evaluator(ALL, tolerance=SHORT)
    found: list[Signal] = []
    for start, end in itertools.pairwise(edges):
        found += evaluator.feed(samples[start:end], "m")
    assert found == run(Evaluator(ALL, tolerance=SHORT), samples)


@REPEATABLE
@given(
    streams(moves=False, ticks=False, size=30),
    streams(moves=False, ticks=False, size=30),
    st.randoms(use_true_random=False),
)
def test_hosts_may_come_in_any_order(first: list[Event], second: list[Event], random: object) -> None:
    """Each host's own samples stay in order; how two hosts' are mixed changes no signal of either."""
    samples = [event for event in [*first, *second] if isinstance(event, Sample)]
    queues = {name: [one for one in samples if one.tags["host"] == name] for name in ("h1", "h2")}
    mixed: list[Event] = []
    pick = getattr(random, "random")  # noqa: B009 - Hypothesis' own generator, typed as an object
    while any(queues.values()):
        ready = [queue for queue in queues.values() if queue]
        mixed.append(ready[int(pick() * len(ready))].pop(0))
    apart = [one for one in samples if one.tags["host"] == "h1"] + [one for one in samples if one.tags["host"] == "h2"]
    found, wanted = (run(Evaluator(ALL, tolerance=SHORT), one) for one in (mixed, apart))
    for name in ("h1", "h2"):
        assert [one for one in found if one.subject.host == name] == [one for one in wanted if one.subject.host == name]


@REPEATABLE
@given(streams(), st.lists(st.integers(0, 60), max_size=4))
def test_a_restart_anywhere_changes_nothing(events: list[Event], restarts: list[int]) -> None:
    evaluator = Evaluator(ALL, tolerance=SHORT)
    found: list[Signal] = []
    now_ns = 0
    for number, event in enumerate(events):
        if number in restarts:
            document = json.loads(json.dumps(evaluator.snapshot()))
            evaluator = Evaluator(ALL, tolerance=SHORT)
            evaluator.restore(document)
            # Known again with the first tick, which a controller makes before it receives.
            evaluator._intake.now_ns = now_ns
        now_ns = event if isinstance(event, int) else now_ns
        found += run(evaluator, [event])
    assert found == run(Evaluator(ALL, tolerance=SHORT), events)


@REPEATABLE
@given(streams(size=30), streams(size=30))
def test_late_and_double_samples_change_nothing(events: list[Event], others: list[Event]) -> None:
    """After the last of a stream, all of it again and all that is older cause no signal."""
    evaluator = Evaluator(ALL, tolerance=SHORT)
    samples = [event for event in events if isinstance(event, Sample)]
    run(evaluator, samples)
    before = evaluator.snapshot()
    newest: dict[str, int] = {}
    for one in samples:
        name = one.tags.get("vm", one.tags["host"])
        newest[name] = max(newest.get(name, 0), one.time_ns)
    late = [
        one
        for one in [*samples, *(other for other in others if isinstance(other, Sample))]
        if one.time_ns <= newest.get(one.tags.get("vm", one.tags["host"]), START_NS)
    ]
    assert run(evaluator, late) == []
    assert evaluator.snapshot() == before
    assert evaluator.late >= len(late)
