"""However samples are cut into messages and hosts' messages are mixed: the same signals and wants, byte for byte."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rules_signals.reference import START_NS, host, ruleset, vm
from tests.thoroughness import examples
from virtpilot.clock import seconds
from virtpilot.model import Sample
from virtpilot.rules.decisions.decider import Decider
from virtpilot.rules.decisions.matcher import choose
from virtpilot.rules.signals.evaluator import Evaluator

REPEATABLE = settings(derandomize=True, deadline=None, max_examples=examples(25, least=10))
# One of each kind that the language has.
RULES = ruleset(
    """
virtpilot: 1
rules:
  - {name: plain, on: vm, when: cpu_steal_ratio > 20%, for: 10s, clear: cpu_steal_ratio < 5%, mode: act, priority: 60,
     remedies: [{set: {cpu_shares: current * 2}, lease: 1m}, {migrate: {to: best}}]}
  - {name: past, on: vm, when: 'avg(cpu_steal_ratio, 30s) > 20%', mode: act, remedies: [{migrate: {to: best}}]}
  - {name: trend, on: vm, when: 'forecast(cpu_usage_ratio, 1m) > 50% or flaps(cpu_steal_ratio > 20%, 1m) >= 2'}
  - {name: of-host, on: vm, when: 'cpu_steal_ratio > 5% and avg(host.cpu_usage_ratio, 30s) > 50%', unless: hot}
  - {name: hot, on: host, when: cpu_usage_ratio > 80%, clear_for: 10s, no_data: fire}
  - {name: crowded, on: host, when: 'sum(vms.cpu_usage_ratio) > 60%', annotations: {a: '{{ value }}'}}
  - {name: several, on: host, when: {at least 2 of vms within 20s: plain}}
  - {name: uneven, on: cluster, when: 'max(hosts.cpu_usage_ratio) - min(hosts.cpu_usage_ratio) > 30%', for: 10s}
  - {name: mean, on: cluster, when: 'avg(avg(vms.cpu_steal_ratio), 40s) > 15%'}
  - {name: above, on: vm, when: cpu_usage_ratio > avg(hosts.cpu_usage_ratio), where: tags.tier == "gold"}
  - {name: slow-disk, on: vm, when: max(disks.read_latency_seconds) > 200ms, for: 10s}
  - {name: disk-errors, on: vm, when: 'any(disks where avg(write_latency_seconds, 30s) > 150ms)'}
  - {name: both-disks, on: vm, when: 'flaps(count(disks where read_latency_seconds > 300ms), 1m) > 1'}
  - {name: slow-guests, on: cluster, when: 'count(vms where any(disks where read_latency_seconds > 200ms)) > 1'}
  - {name: moving, on: vm, when: job.running_count == 1 and job.throttle_ratio > 30% and job.operation == "out"}
  - {name: own, on: vm, when: 'cpu_steal_ratio > override(steal, 20%)', during: '22:14-22:15', no_data: clear}
"""
)
_level = st.sampled_from([None, 0.1, 0.25, 1 / 3, 0.9])
Round = dict[str, tuple[float | None, float | None]]
_rounds: st.SearchStrategy[list[Round]] = st.lists(
    st.fixed_dictionaries(
        {}, optional={name: st.tuples(_level, _level) for name in ("h1", "h2", "g1", "g2", "g3", "g4")}
    ),
    min_size=2,
    max_size=9,
)
_ON = {"g1": "h1", "g2": "h1", "g3": "h2", "g4": "h2"}


def messages(round_: Round, time_s: float) -> dict[str, list[Sample]]:
    """What each host says in a round, its own sample first."""
    found: dict[str, list[Sample]] = {"h1": [], "h2": []}
    for name in sorted(round_, key=lambda name: (name[0] == "g", name)):
        steal, usage = round_[name]
        if name in found:
            found[name].append(host(name, time_s, usage))
        else:
            tier = "gold" if name in {"g1", "g3"} else ""
            own = vm(name, time_s, steal, usage, on=_ON[name], tier=tier)
            # Some devices come before their guest, some after it, some both, whatever the agent.
            late = len(name) + round(10 * (steal or 0)) + round(time_s) // 10
            found[_ON[name]] += [own, *devices(own, steal, usage)] if late % 2 else [*devices(own, steal, usage), own]
    return found


def devices(guest: Sample, steal: float | None, usage: float | None) -> list[Sample]:
    """Two disks and a job, measured with their guest."""
    tags = {name: value for name, value in guest.tags.items() if name != "tier"}
    seconds_of = {"vda": steal, "vdb": usage, "vdc": usage if steal == 0.9 else None}
    found = [
        Sample(
            "vm_disk",
            tags | {"disk": disk},
            {f"{way}_latency_seconds": value for way in ("read", "write")},
            guest.time_ns,
        )
        for disk, value in seconds_of.items()
        if value is not None
    ]
    if usage is not None:
        fields = {"running_count": int(usage > 0.2), "throttle_ratio": usage}
        found.append(Sample("vm_job", tags | {"operation": "out" if steal else "in"}, fields, guest.time_ns))
    return found


def pieces(said: dict[str, list[Sample]], chance: random.Random | None) -> Iterator[tuple[str, list[Sample]]]:
    """The messages one host after the other; by chance cut into pieces, and hosts mixed."""
    if chance is None:
        yield from said.items()
        return
    waiting = {name: list(samples) for name, samples in said.items() if samples}
    while waiting:
        name = chance.choice(sorted(waiting))
        count = chance.randint(1, len(waiting[name]))
        yield name, waiting[name][:count]
        waiting[name] = waiting[name][count:]
        if not waiting[name]:
            del waiting[name]


def told(rounds: list[Round], chance: random.Random | None, restart: int = -1) -> list[bytes]:
    evaluator, decider = Evaluator(RULES), Decider(RULES, choose("small"))
    found = []
    for number, round_ in enumerate(rounds):
        if number == restart:
            states = json.loads(json.dumps([evaluator.snapshot(), decider.snapshot()]))
            evaluator, decider = Evaluator(RULES), Decider(RULES, choose("small"))
            evaluator.restore(states[0])
            decider.restore(states[1])
        now_ns = START_NS + seconds(10 * number)
        signals = [*evaluator.tick(now_ns - 1)]
        for name, samples in pieces(messages(round_, 10 * number), chance):
            signals += evaluator.feed(samples, f"{name}/{number}")
        signals += evaluator.tick(now_ns + seconds(5))
        for signal in sorted(signals, key=lambda one: (one.at_ns, one.rule, one.subject.id, one.id)):
            decider.on_signal(signal)
            found.append(msgspec.json.encode(signal))
        winners, losers = decider.wants(now_ns + seconds(5))
        wants = [*winners, *(want for want, _reason in losers)]
        found.append(repr([(w.rule, w.subject.id, w.rung, w.attempt, w.cause) for w in wants]).encode())
    return found


@REPEATABLE
@given(_rounds, st.randoms(use_true_random=False))
def test_any_cut_and_any_mixing_of_hosts(rounds: list[Round], chance: random.Random) -> None:
    assert told(rounds, chance) == told(rounds, None)


@REPEATABLE
@given(_rounds, st.integers(0, 8))
def test_a_restart_anywhere(rounds: list[Round], at: int) -> None:
    assert told(rounds, None, at) == told(rounds, None)


def test_the_rules_do_fire() -> None:
    """So that the two tests above compare something: each rule's signal comes in some story."""
    chance, seen = random.Random(1), set[str]()
    levels = [None, 0.1, 0.25, 1 / 3, 0.9]
    for _ in range(12):
        rounds: list[Round] = [
            {
                name: (chance.choice(levels), chance.choice(levels))
                for name in ("h1", "h2", *_ON)
                if chance.random() < 0.9
            }
            for _ in range(12)
        ]
        for line in told(rounds, None):
            if line.startswith(b"{") and b'"state":"firing"' in line:
                seen.add(json.loads(line)["rule"])
    assert seen == {rule.name for rule in RULES.rules}
