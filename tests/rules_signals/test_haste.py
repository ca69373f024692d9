"""What may wait is told beforehand: with no message that is told to wait does a signal begin to fire."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from tests.rules_signals.reference import START_NS, ruleset
from tests.rules_signals.test_whole_messages import GUESTS, RULES, WANTED, state, tick
from tests.thoroughness import examples
from virtpilot.clock import seconds
from virtpilot.lineblocks import LineReader, Lines
from virtpilot.lineprotocol import encode_lines
from virtpilot.model import Kind, Sample, Signal, SignalState
from virtpilot.rules.signals.evaluator import Evaluator
from virtpilot.rules.signals.haste import Ahead

BEGUN = {SignalState.INACTIVE, SignalState.PENDING, SignalState.CLEARING}


def begin(signals: list[Signal]) -> list[Signal]:
    return [one for one in signals if one.state is SignalState.FIRING and one.previous in BEGUN]


def of_tick(chance: random.Random, number: int, homes: dict[str, str], host: str) -> list[Sample]:
    """What a host says at a tick, devices behind their owners, as agents do."""
    found = tick(chance, number, homes, host)
    owners = [one for one in found if one.measurement in {"host", "vm"}]
    return [*owners, *(one for one in found if one.measurement not in {"host", "vm"})]


@pytest.mark.parametrize("seed", range(examples(12)))
def test_those_that_wait_change_neither_signals_nor_state(seed: int) -> None:
    """Messages that need not be in haste are fed together behind others, up to the next that is not simple."""
    chance, kinds = random.Random(seed), Counter[bool | None]()
    waits, single = Evaluator(RULES), Evaluator(RULES)
    reader, homes = LineReader(WANTED), {guest: "h1" if guest < "g12" else "h2" for guest in GUESTS}
    for number in range(10):
        found, expected, waiting = list[Signal](), list[Signal](), list[tuple[Lines, str]]()
        for host in ("h1", "h2"):
            lines = reader.read(encode_lines(of_tick(chance, number, homes, host)))
            message = (lines, f"{host}/b/{number}")
            hurries = waits.haste.of(lines)
            kinds[hurries] += 1
            if hurries is None and waiting:
                found += waits.feed_messages(waiting)
                waiting.clear()
            if hurries is False:
                waiting.append(message)
            else:
                found += waits.feed_messages([message])
            own = single.feed_messages([message])
            assert not (hurries is False and begin(own))
            expected += own
        found += waits.feed_messages(waiting) if waiting else []
        now_ns = START_NS + seconds(10 * number + 1)
        found, expected = found + waits.tick(now_ns), expected + single.tick(now_ns)
        assert sorted(found, key=lambda one: one.id) == sorted(expected, key=lambda one: one.id)
    assert state(waits) == state(single)
    assert kinds[None]


def message(number: int, steal: float, host: str = "h1") -> Lines:
    at_ns = START_NS + seconds(10 * number)
    samples = [Sample("host", {"host": host}, {"cpu_usage_ratio": 0.2}, at_ns)]
    samples += [Sample("vm", {"host": host, "vm": guest}, {"cpu_steal_ratio": steal}, at_ns) for guest in GUESTS]
    return LineReader(WANTED).read(encode_lines(samples))


@pytest.mark.parametrize(
    ("rule", "hurried"),
    [
        # By the message alone.
        ("when: cpu_steal_ratio > 20%", [None, False, True, False, False]),
        # Once its time is over, and when it begins again.
        ("when: cpu_steal_ratio > 20%, for: 10s, clear_for: 60s", [None, False, False, True, False]),
        # By what the window was, and the message.
        ("when: 'max(cpu_steal_ratio, 25s) > 20%', clear: cpu_steal_ratio > 99%", [None, False, True, False, False]),
        ("when: 'avg(cpu_steal_ratio, 10s) < 5%'", [None, False, False, False, True]),
    ],
)
def test_haste_comes_with_what_may_begin(rule: str, hurried: list[bool | None]) -> None:
    evaluator = Evaluator(ruleset(f"virtpilot: 1\nrules:\n  - {{name: one, on: vm, {rule}}}\n"))
    steals = [0.1, 0.1, 0.3, 0.3, 0.0]
    told, fired = [], []
    for number, steal in enumerate(steals):
        lines = message(number, steal)
        told.append(evaluator.haste.of(lines))
        fired.append(bool(begin(evaluator.feed_messages([(lines, "m")]))))
    assert told == hurried
    # All that fired was told of.
    assert all(haste is not False for haste, fires in zip(told, fired, strict=True) if fires)


PAST = ruleset(
    """
virtpilot: 1
rules:
  - {name: highest, on: vm, when: 'max(cpu_steal_ratio, 30s) > 29%'}
  - {name: lowest, on: vm, when: 'min(cpu_steal_ratio, 30s) > 5%'}
  - {name: seldom, on: vm, when: 'min(cpu_steal_ratio, 30s) < 5%'}
  - {name: flapping, on: vm, when: 'flaps(cpu_steal_ratio > 5%, 30s) > 2'}
  - {name: growing, on: vm, when: 'delta(major_faults_total, 30s) > 1'}
  - {name: soon, on: vm, when: 'forecast(cpu_steal_ratio, 30s, 30s) > 50%'}
"""
)
PAST_WANTED = {"vm": frozenset({"cpu_steal_ratio", "major_faults_total"})}


@pytest.mark.parametrize("seed", range(4))
def test_a_bound_that_is_told_ahead_is_never_the_tighter(seed: int) -> None:
    chance, evaluator, reader, known = random.Random(seed), Evaluator(PAST), LineReader(PAST_WANTED), 0
    windows = evaluator.world.windows
    for number in range(25):
        values = [
            {"cpu_steal_ratio": chance.choice([0.0, 0.1, 0.3]), "major_faults_total": number // 9} for _ in GUESTS
        ]
        at_ns = START_NS + seconds(10 * number)
        tags = [{"host": "h1", "vm": guest} for guest in GUESTS]
        lines = reader.read(encode_lines([Sample("vm", *one, at_ns) for one in zip(tags, values, strict=True)]))
        pieces, ahead = evaluator._quick.of_message(lines, "", 0), {}
        for piece in pieces[Kind.VM] if pieces is not None else ():
            columns = Ahead(evaluator.world, Kind.VM, piece, None)
            asked = [one for track in windows.about(Kind.VM) for one in track.bounds]
            ahead = {one: columns.bound(one[0], upper=one[1]) for one in asked}
        evaluator.feed_messages([(lines, "m")])
        for (window, upper), before in ahead.items():
            now, sign = windows.bound(window, slice(0, len(GUESTS)), upper=upper), 1 if upper else -1
            assert not (sign * now > sign * before).any()
            known += int(np.isfinite(before).sum())
        assert len(ahead) == (6 if number else 0)
    assert known


def test_what_is_no_news_or_of_others_is_not_simple() -> None:
    evaluator = Evaluator(RULES)
    for number in range(2):
        evaluator.feed_messages([(message(number, 0.0), "m")])
    assert evaluator.haste.of(message(2, 0.0)) is False
    kinds = Counter([evaluator.haste.of(message(1, 0.0)), evaluator.haste.of(message(2, 0.0, host="h2"))])
    assert kinds == {None: 2}
