"""What may wait is told beforehand: with no message that is told to wait does a signal begin to fire."""

from __future__ import annotations

import math
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
from virtpilot.rules.language.records import RuleSet
from virtpilot.rules.signals.evaluator import Evaluator
from virtpilot.rules.signals.haste import Ahead
from virtpilot.rules.signals.watch import watched

# Of a signal that is clearing everybody takes it that it fires still.
BEGUN = {SignalState.INACTIVE, SignalState.PENDING}
CHANGES = ruleset(
    """
virtpilot: 1
rules:
  - {name: flapping, on: vm, when: 'flaps(cpu_steal_ratio > 5%, 60s) > 1'}
  - {name: restarting, on: vm, when: 'flaps(state_code, 60s) >= 1'}
  - {name: both, on: vm, when: 'state_code == 5 and cpu_steal_ratio > 5%'}
  - {name: with-host, on: vm, when: 'host.cpu_usage_ratio > 50% and cpu_steal_ratio > 5%', where: cpu_usage_ratio < 80%}
  - {name: neither, on: vm, when: 'not (cpu_steal_ratio > 5%)', where: 'tags.name != "name-g03"'}
  - {name: full, on: vm, when: any(filesystems where used_ratio > 80%)}
  - {name: was-full, on: vm, when: 'any(filesystems where flaps(used_ratio > 80%, 60s) > 1)'}
  - {name: hot, on: host, when: cpu_usage_ratio > 80%}
  - {name: waits, on: vm, when: cpu_steal_ratio > 5%, for: 10s}
  - {name: waits-longer, on: vm, when: cpu_steal_ratio > 20% or cpu_usage_ratio > 80%, for: 30s}
"""
)


def begin(signals: list[Signal]) -> list[Signal]:
    return [one for one in signals if one.state is SignalState.FIRING and one.previous in BEGUN]


def of_tick(chance: random.Random, number: int, homes: dict[str, str], host: str) -> list[Sample]:
    """What a host says at a tick, devices behind their owners, as agents do."""
    found = tick(chance, number, homes, host)
    owners = [one for one in found if one.measurement in {"host", "vm"}]
    return [*owners, *(one for one in found if one.measurement not in {"host", "vm"})]


class Calm:
    """Two hosts of which nearly nothing changes from tick to tick."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._known: dict[str, dict[str, int | float]] = {}

    def tick(self, number: int, host: str) -> list[Sample]:
        """Return what a host says at a tick, devices behind their owners."""
        at_ns, tags = START_NS + seconds(10 * number), {"cluster": "c", "host": host}
        found = [Sample("host", tags, {"cpu_usage_ratio": self._now(host, "cpu_usage_ratio", [0.1, 0.9])}, at_ns)]
        guests = [{**tags, "name": f"name-{one}", "vm": one} for one in (GUESTS[:3] if host == "h1" else GUESTS[3:6])]
        for one in guests:
            fields = {
                "cpu_steal_ratio": self._now(one["vm"], "steal", [0.0, 0.1, 0.3]),
                "cpu_usage_ratio": self._now(one["vm"], "usage", [0.5, 0.9]),
                "state_code": self._now(one["vm"], "state", [1, 5, math.nan]),
            }
            found.append(Sample("vm", one, {name: value for name, value in fields.items() if value == value}, at_ns))  # noqa: PLR0124 - NaN
        disks = [{**one, "mountpoint": "/"} for one in guests]
        used = [{"used_ratio": self._now(one["vm"], "used", [0.5, 0.9])} for one in guests]
        return [*found, *(Sample("vm_filesystem", *one, at_ns) for one in zip(disks, used, strict=True))]

    def _now(self, of: str, name: str, values: list[float]) -> float:
        known = self._known.setdefault(of, {})
        if name not in known or self._chance.random() < 0.03:
            known[name] = self._chance.choice(values)
        return known[name]


@pytest.mark.parametrize("rules", [RULES, CHANGES], ids=["windows", "changes"])
@pytest.mark.parametrize("seed", range(examples(12)))
def test_those_that_wait_change_neither_signals_nor_state(seed: int, rules: RuleSet) -> None:
    """Messages that need not be in haste are fed together behind others, up to the next that is not simple."""
    chance, kinds = random.Random(seed), Counter[bool | None]()
    waits, single = Evaluator(rules), Evaluator(rules)
    reader, homes = LineReader(WANTED), {guest: "h1" if guest < "g12" else "h2" for guest in GUESTS}
    calm = Calm(chance) if rules is CHANGES else None
    for number in range(14 if calm is None else 60):
        found, expected, waiting = list[Signal](), list[Signal](), list[tuple[Lines, str]]()
        for host in ("h1", "h2"):
            said = calm.tick(number, host) if calm is not None else of_tick(chance, number, homes, host)
            lines = reader.read(encode_lines(said))
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
        if number == 7:
            waits, single = reloaded(waits, rules), reloaded(single, rules)
    assert state(waits) == state(single)
    assert kinds[None]
    assert calm is None or kinds[False] > kinds[True] > 0


def reloaded(evaluator: Evaluator, rules: RuleSet) -> Evaluator:
    """Return an evaluator that goes on where another one was."""
    other = Evaluator(rules)
    other.take_over(evaluator)
    return other


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("on: vm, when: cpu_steal_ratio > 10%", ["vm.cpu_steal_ratio > 0.1"]),
        ("on: vm, when: 10% < cpu_steal_ratio", ["vm.cpu_steal_ratio > 0.1"]),
        ("on: vm, when: state_code == 3", ["vm.state_code"]),
        ("on: vm, when: 'flaps(state_code, 5m) > 5'", ["vm.state_code"]),
        ("on: vm, when: 'flaps(cpu_steal_ratio > 10%, 5m) > 5'", ["vm.cpu_steal_ratio > 0.1"]),
        ("on: vm, when: 'delta(major_faults_total, 5m) > 0'", ["vm.major_faults_total"]),
        (
            "on: vm, when: state_code == 1, where: host.cpu_usage_ratio > 50%",
            ["host.cpu_usage_ratio > 0.5", "vm.state_code"],
        ),
        ("on: vm, when: any(disks where read_latency_seconds > 1s)", ["vm_disk.read_latency_seconds > 1"]),
        ("on: vm, when: 'job.failed_count == 1 and job.operation == \"dump\"'", ["vm_job.", "vm_job.failed_count"]),
        # What may begin to hold without a change, or by more than one subject's.
        ("on: vm, when: 'flaps(state_code, 5m) < 5'", None),
        ("on: vm, when: 'delta(major_faults_total, 5m) > -1'", None),
        ("on: vm, when: 'delta(memory_usable_bytes, 5m) > 1'", None),
        ("on: vm, when: 'rate(major_faults_total, 5m) > 1'", None),
        ("on: vm, when: 'avg(cpu_steal_ratio, 5m) > 10%'", None),
        ("on: vm, when: cpu_steal_ratio > cpu_usage_ratio", None),
        ("on: vm, when: job.running_count == 0", None),
        ("on: vm, when: max(disks.read_latency_seconds) > 1s", None),
        ("on: vm, when: cpu_steal_ratio > 10%, no_data: fire", None),
        ("on: vm, when: 'cpu_steal_ratio > override(cpu_steal_max, 10%)'", None),
        ("on: host, when: max(vms.cpu_steal_ratio) > 10%", None),
    ],
)
def test_what_a_rule_hangs_on_is_told(rule: str, expected: list[str] | None) -> None:
    (one,) = ruleset(f"virtpilot: 1\nrules:\n  - {{name: one, {rule}}}\n").rules
    found = watched(one)
    told = found and sorted(
        f"{each.measurement}.{each.field}" + (f" {each.sign} {each.number:g}" if each.sign else "") for each in found
    )
    assert told == expected


def test_a_device_that_went_wrong_makes_its_guests_next_message_hurry() -> None:
    evaluator = Evaluator(ruleset(f"virtpilot: 1\nrules:\n  - {{name: one, on: vm, when: {DISK_ERRORS}}}\n"))
    told, fired = [], []
    for number, errors in enumerate([5, 5, 5, 6, 6, 6]):
        at_ns = START_NS + seconds(10 * number)
        samples = [Sample("vm", {"host": "h1", "vm": guest}, {"cpu_steal_ratio": 0.1}, at_ns) for guest in GUESTS]
        tags = {"host": "h1", "vm": GUESTS[3], "disk": "vda"}
        samples.append(Sample("vm_disk", tags, {"errors_total": errors, "read_requests_total": 1}, at_ns))
        lines = LineReader(evaluator_reads(evaluator)).read(encode_lines(samples))
        told.append(evaluator.haste.of(lines))
        fired.append(bool(begin(evaluator.feed_messages([(lines, "m")]))))
    # New is new; what devices' lines say behind their owners' is seen with the next message.
    assert told[2:] == [False, False, True, False]
    assert fired[2:] == [False, False, True, False]


DISK_ERRORS = "'any(disks where delta(errors_total, 20s) > 0) and cpu_steal_ratio < 90%'"


def evaluator_reads(evaluator: Evaluator) -> dict[str, frozenset[str]]:
    """Return all fields that an evaluator has room for."""
    return {str(kind): frozenset(table.fields) for kind, table in evaluator.world.tables.items()}


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
        pieces, ahead = evaluator._quick.look(lines), {}
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


@pytest.mark.parametrize("between", [message(2, 0.3, host="h2"), message(4, 0.3), message(2, 0.3)])
def test_what_was_found_of_a_message_is_looked_for_anew_where_it_has_not_stayed_so(between: Lines) -> None:
    looked, single = Evaluator(CHANGES), Evaluator(CHANGES)
    for number in range(2):
        for evaluator in (looked, single):
            evaluator.feed_messages([(message(number, 0.0), "m")])
    waits = message(3, 0.1)
    assert looked.haste.of(waits) is not None
    found, expected = (
        [signal for lines in (between, waits) for signal in evaluator.feed_messages([(lines, "m")])]
        for evaluator in (looked, single)
    )
    assert found == expected
    assert state(looked) == state(single)
