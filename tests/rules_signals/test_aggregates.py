"""What rules say of many at once: the guests of a host, all hosts, the cluster."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping

import msgspec
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from tests.rules_signals.reference import FIRING, INACTIVE, PENDING, START_NS, changes, host, ruleset, vm
from tests.thoroughness import examples
from virtpilot.clock import seconds
from virtpilot.model import Kind, Sample
from virtpilot.rules.language.expression import condition
from virtpilot.rules.signals.evaluator import Evaluator

REPEATABLE = settings(derandomize=True, deadline=None, max_examples=examples(60))
FUNCTIONS = ["sum", "avg", "min", "max", "count", "stddev", "p50", "p90"]
ON_HOST = [
    f"{name}(vms.cpu_steal_ratio{where}) >= 0" for name in FUNCTIONS for where in ("", " where cpu_usage_ratio > 20%")
]
RULES = ruleset(
    "virtpilot: 1\nrules:\n"
    + "".join(f"  - {{name: h{n}, on: host, when: '{text}'}}\n" for n, text in enumerate(ON_HOST))
    + "".join(f"  - {{name: c{n}, on: cluster, when: '{text}'}}\n" for n, text in enumerate(ON_HOST))
)
Guest = tuple[str, float | None, float | None]
_guests: st.SearchStrategy[dict[str, Guest]] = st.dictionaries(
    st.sampled_from([f"g{n}" for n in range(12)]),
    st.tuples(
        st.sampled_from(["h1", "h2", "h3"]),
        st.sampled_from([None, 0.1, 0.2, 1 / 3, 0.7, 0.9]),
        st.sampled_from([None, 0.1, 0.5]),
    ),
)


def at(time_s: float) -> int:
    return START_NS + seconds(time_s)


def expected(text: str, guests: Mapping[str, Guest]) -> float | None:
    """Members in order of their ids, one after the other."""
    members = [guests[name][1:] for name in sorted(guests)]
    if "where" in text:
        members = [one for one in members if one[1] is not None and one[1] > 0.2]
    values = [steal for steal, _usage in members if steal is not None]
    name = text.partition("(")[0]
    if name == "count":
        return float(len(values))
    if not values:
        return 0.0 if name == "sum" and not members else None
    total = 0.0
    for value in values:
        total += value
    mean = total / len(values)
    return {
        "sum": total,
        "avg": mean,
        "min": min(values),
        "max": max(values),
        "stddev": statistics.pstdev(values, mean),
        "p50": sorted(values)[math.ceil(len(values) * 0.5) - 1],
        "p90": sorted(values)[math.ceil(len(values) * 0.9) - 1],
    }[name]


def said(evaluator: Evaluator, text: str, on: Kind, subject_id: str) -> float | None:
    return evaluator.inputs(condition(text, on), subject_id).get(text.removesuffix(" >= 0"))


@REPEATABLE
@given(_guests, st.randoms(use_true_random=False))
def test_they_say_what_a_plain_reading_says_in_any_order_of_arrival(guests: dict[str, Guest], random: object) -> None:
    samples: list[Sample] = [host(name, 0, 0.5) for name in ("h1", "h2", "h3")]
    order = sorted(guests, key=lambda _name: getattr(random, "random")())  # noqa: B009 - typed as an object
    samples += [vm(name, 0, guests[name][1], guests[name][2], guests[name][0]) for name in order]
    evaluator = Evaluator(RULES)
    evaluator.feed(samples, "m")
    evaluator.tick(at(1))
    for text in ON_HOST:
        for name in ("h1", "h2", "h3"):
            on = {guest: one for guest, one in guests.items() if one[0] == name}
            assert said(evaluator, text, Kind.HOST, name) == pytest.approx(expected(text, on), abs=1e-15), text
    for text in ON_HOST:
        assert said(evaluator, text, Kind.CLUSTER, "c") == pytest.approx(expected(text, guests), abs=1e-15), text


@REPEATABLE
@given(_guests, _guests, st.randoms(use_true_random=False))
def test_between_two_ticks_any_order_of_hosts_gives_the_same_bytes(
    first: dict[str, Guest], second: dict[str, Guest], random: object
) -> None:
    rules = ruleset(
        "virtpilot: 1\nrules:\n"
        "  - {name: a, on: host, when: 'sum(vms.cpu_steal_ratio) > 50%'}\n"
        "  - {name: b, on: cluster, when: 'avg(vms.cpu_steal_ratio) > 30%', for: 1s}\n"
        "  - {name: c, on: vm, when: 'cpu_steal_ratio > avg(vms.cpu_steal_ratio)'}\n"
        "  - {name: d, on: cluster, when: 'avg(sum(vms.cpu_steal_ratio), 2s) > 50%'}\n"
    )
    told = []
    for shuffled in (False, True):
        evaluator, signals = Evaluator(rules), []
        for round_, guests in enumerate([first, second, first, second]):
            hosts = ["h1", "h2", "h3"]
            if shuffled:
                hosts.sort(key=lambda _name: getattr(random, "random")())  # noqa: B009 - typed as an object
            for name in hosts:
                message = [host(name, round_ * 10, 0.5)]
                # A guest of the second round on another host has moved: then who says so last counts. None moves here.
                on = {guest: one for guest, one in guests.items() if int(guest[1:]) % 3 == int(name[1:]) - 1}
                message += [vm(guest, round_ * 10, one[1], one[2], name) for guest, one in sorted(on.items())]
                signals += [(one.subject.id, one) for one in evaluator.feed(message, f"m{name}{round_}")]
            signals += [("", one) for one in evaluator.tick(at(round_ * 10 + 5))]
        told.append(json.dumps([[who, str(one)] for who, one in sorted(signals, key=lambda s: (s[1].at_ns, s[1].id))]))
    assert told[0] == told[1]


CLUSTER = (
    "virtpilot: 1\nrules:\n"
    "  - {name: uneven, on: cluster, when: 'max(hosts.cpu_usage_ratio) - min(hosts.cpu_usage_ratio) > 40%',"
    " for: 10s, clear_for: 5s}\n"
)


def test_a_rule_on_the_cluster_lives_by_ticks() -> None:
    evaluator = Evaluator(ruleset(CLUSTER))
    assert evaluator.tick(at(0)) == []
    told = []
    for time_s in range(1, 40):
        busy = 0.9 if time_s < 25 else 0.2
        evaluator.feed([host("h1", time_s, busy), host("h2", time_s, 0.1)], "m")
        told += evaluator.tick(at(time_s + 0.5))
    assert changes(told) == [
        ("uneven", "c", INACTIVE, PENDING, at(1.5)),
        ("uneven", "c", PENDING, FIRING, at(11.5)),
        ("uneven", "c", FIRING, told[2].state, at(25.5)),
        ("uneven", "c", told[2].state, INACTIVE, at(30.5)),
    ]
    assert told[1].subject.kind is Kind.CLUSTER
    assert told[1].cause == f"tick/{at(11.5)}"
    assert told[1].inputs == {"max(hosts.cpu_usage_ratio)": 0.9, "min(hosts.cpu_usage_ratio)": 0.1}


def test_a_restart_in_the_middle_of_a_clusters_for_loses_none_of_it() -> None:
    evaluator = Evaluator(ruleset(CLUSTER))
    told = []
    for time_s in range(1, 15):
        if time_s == 6:
            document = json.loads(json.dumps(evaluator.snapshot()))
            evaluator = Evaluator(ruleset(CLUSTER))
            evaluator.restore(document)
        evaluator.feed([host("h1", time_s, 0.9), host("h2", time_s, 0.1)], "m")
        told += evaluator.tick(at(time_s))
    assert [(state, at_ns) for *_who, state, at_ns in changes(told)] == [(PENDING, at(1)), (FIRING, at(11))]


def test_a_silent_host_no_longer_counts() -> None:
    evaluator = Evaluator(RULES)
    evaluator.feed([host("h1", 0, 0.5), vm("g1", 0, 0.9, on="h1"), host("h2", 0, 0.5), vm("g2", 0, 0.1, on="h2")], "m")
    evaluator.tick(at(1))
    text = "max(vms.cpu_steal_ratio) >= 0"
    assert said(evaluator, text, Kind.CLUSTER, "c") == 0.9
    evaluator.feed([host("h2", 100, 0.5), vm("g2", 100, 0.1, on="h2")], "m")
    evaluator.tick(at(101))
    assert said(evaluator, text, Kind.CLUSTER, "c") == 0.1


def test_a_row_used_again_knows_nothing_of_who_had_it_before() -> None:
    evaluator = Evaluator(RULES)
    evaluator.feed([host("h1", 0, 0.5), vm("g1", 0, 0.9, on="h1")], "m")
    evaluator.tick(at(1))
    evaluator.tick(at(4000))
    evaluator.feed([host("h9", 4001, 0.5)], "m")
    assert said(evaluator, "sum(vms.cpu_steal_ratio) >= 0", Kind.HOST, "h9") is None
    evaluator.tick(at(4002))
    assert said(evaluator, "sum(vms.cpu_steal_ratio) >= 0", Kind.HOST, "h9") == 0.0


def test_the_aggressor_is_found_and_not_its_victim() -> None:
    rules = "cpu_usage_ratio > 80% and cpu_steal_ratio < 5% and max(vms.cpu_steal_ratio) > 20%"
    evaluator = Evaluator(ruleset(f"virtpilot: 1\nrules:\n  - {{name: noisy, on: vm, when: '{rules}'}}\n"))
    told = []
    for time_s in (0, 10):
        message = [host("h1", time_s, 0.9), vm("loud", time_s, 0.01, 0.99), vm("meek", time_s, 0.4, 0.5)]
        told += changes(evaluator.feed([*message, vm("far", time_s, 0.01, 0.99, on="h2")], "m"))
        evaluator.tick(at(time_s + 1))
    assert [(rule, who, state) for rule, who, _old, state, _at in told] == [("noisy", "loud", FIRING)]


KEPT = [
    "sum(vms.cpu_steal_ratio) >= 0",
    "p90(vms.cpu_steal_ratio where cpu_usage_ratio > 20%) >= 0",
    *(f"count(vms where {text}) >= 0" for text in (
        "cpu_steal_ratio > 20%",
        "avg(cpu_steal_ratio, 25s) > 20%",
        "20% > max(cpu_steal_ratio, 25s) and cpu_usage_ratio >= 0",
        "cpu_steal_ratio > host.cpu_usage_ratio",
        "avg(host.cpu_usage_ratio, 25s) > 40%",
        'tags.tier == "gold"',
        "max(disks.read_latency_seconds) > 10ms",
        "signals.stolen",
    )),
    "sum(vms.cpu_steal_ratio * host.cpu_usage_ratio) >= 0",
]  # fmt: skip
STOLEN = "  - {name: stolen, on: vm, when: cpu_steal_ratio > 50%}\n"
KEPT_RULES = ruleset(
    "virtpilot: 1\nrules:\n"
    + STOLEN
    + "".join(f"  - {{name: h{n}, on: host, when: '{text}'}}\n" for n, text in enumerate(KEPT))
    + "".join(f"  - {{name: c{n}, on: cluster, when: '{text}'}}\n" for n, text in enumerate(KEPT))
)
# A message: the host, its usage, and of each of its guests steal, usage, a disk's latency, a tag.
Word = tuple[float | None, float | None, float | None, str]
_words = st.tuples(
    st.sampled_from([None, 0.1, 1 / 3, 0.7]),
    st.sampled_from([None, 0.1, 0.5]),
    st.sampled_from([None, 0.001, 0.1]),
    st.sampled_from(["", "gold"]),
)
_messages = st.tuples(
    st.sampled_from(["h1", "h2", "h3"]),
    st.sampled_from([0.1, 0.5]),
    st.dictionaries(st.sampled_from(["g1", "g2", "g3", "g4"]), _words, max_size=4),
)
Round = tuple[int, list[tuple[str, float, dict[str, Word]]]]
_rounds: st.SearchStrategy[list[Round]] = st.lists(
    st.tuples(st.sampled_from([1, 10, 10, 10, 70, 4000]), st.lists(_messages, min_size=1, max_size=3)),
    min_size=3,
    max_size=8,
)


def _samples(message: tuple[str, float, dict[str, Word]], time_s: float) -> list[Sample]:
    name, usage, guests = message
    samples = [host(name, time_s, usage)]
    for guest, (steal, busy, latency, tier) in guests.items():
        samples.append(vm(guest, time_s, steal, busy, name, tier))
        if latency is not None:
            tags = {**samples[-1].tags, "disk": "vda"}
            samples.append(Sample("vm_disk", tags, {"read_latency_seconds": latency}, at(time_s)))
    return samples


@REPEATABLE
@given(_rounds)
def test_what_members_gave_before_is_taken_as_if_it_were_worked_out_anew(rounds: list[Round]) -> None:
    evaluator, time_s, told = Evaluator(KEPT_RULES), 0.0, 0
    for number, (later_s, messages) in enumerate(rounds):
        time_s += later_s
        for message in messages:
            evaluator.feed(_samples(message, time_s), f"m{number}")
        fresh = Evaluator(KEPT_RULES)
        fresh.restore(json.loads(json.dumps(evaluator.snapshot())))
        evaluator.tick(at(time_s))
        fresh.tick(at(time_s))
        for text in KEPT:
            for kind, names in ((Kind.HOST, ("h1", "h2", "h3")), (Kind.CLUSTER, ("c",))):
                for name in names:
                    found = said(evaluator, text, kind, name)
                    assert found == said(fresh, text, kind, name), (text, name)
                    told += found is not None
    event(f"something is told: {told > 0}")


def counted(evaluator: Evaluator, what: str, time_s: float) -> float | None:
    """What a tick makes of `count(vms where …)`, of all of the cluster."""
    evaluator.tick(at(time_s))
    return said(evaluator, f"count(vms where {what}) >= 0", Kind.CLUSTER, "c")


def counting(*whats: str, more: str = "") -> Evaluator:
    rules = (f"  - {{name: r{n}, on: cluster, when: 'count(vms where {what}) >= 0'}}\n" for n, what in enumerate(whats))
    evaluator = Evaluator(ruleset("virtpilot: 1\nrules:\n" + "".join(rules) + more))
    evaluator.feed([host("h1", 0, 0.1), vm("g1", 0, 0.3), vm("g2", 0, 0.1)], "m")
    return evaluator


def test_a_hosts_sample_alone_tells_something_of_its_guests() -> None:
    evaluator = counting("cpu_steal_ratio > host.cpu_usage_ratio", "avg(host.cpu_usage_ratio, 25s) > 40%")
    assert counted(evaluator, "cpu_steal_ratio > host.cpu_usage_ratio", 1) == 1
    evaluator.feed([host("h1", 10, 0.01)], "m")
    assert counted(evaluator, "cpu_steal_ratio > host.cpu_usage_ratio", 11) == 2
    for time_s in (20, 30, 40, 50):
        evaluator.feed([host("h1", time_s, 0.9)], "m")
    assert counted(evaluator, "avg(host.cpu_usage_ratio, 25s) > 40%", 51) == 2


def test_a_guest_that_becomes_another_one_counts_anew_whatever_its_time() -> None:
    evaluator = counting('tags.tier == "gold"')
    assert counted(evaluator, 'tags.tier == "gold"', 1) == 0
    table = evaluator.world.tables[Kind.VM]
    subject = table.subjects[table.row_of["g1"]]
    assert subject is not None
    golden = msgspec.structs.replace(subject, tags={**subject.tags, "tier": "gold"})
    table.put(table.row_of["g1"], golden, at(0), {}, "m")
    assert counted(evaluator, 'tags.tier == "gold"', 2) == 1


def test_who_comes_in_anothers_place_counts_for_itself() -> None:
    evaluator = counting("cpu_steal_ratio > 20%")
    assert counted(evaluator, "cpu_steal_ratio > 20%", 1) == 1
    table = evaluator.world.tables[Kind.VM]
    row = table.row_of["g1"]
    evaluator.world.remove(Kind.VM, "g1")
    evaluator.feed([vm("g3", 0, 0.1)], "m")
    assert table.row_of["g3"] == row
    assert counted(evaluator, "cpu_steal_ratio > 20%", 2) == 0


def test_a_past_that_becomes_another_one_counts_though_nobody_is_measured() -> None:
    evaluator = counting("avg(cpu_steal_ratio, 1m) > 20%")
    for time_s in (10, 20, 30, 40, 50, 60):
        evaluator.feed([host("h1", time_s, 0.1), vm("g1", time_s, 0.3), host("h2", time_s, 0.1)], "m")
    assert counted(evaluator, "avg(cpu_steal_ratio, 1m) > 20%", 61) == 1
    evaluator.world.windows.clear(Kind.VM, evaluator.world.tables[Kind.VM].row_of["g1"])
    evaluator.feed([host("h2", 61, 0.1)], "m")
    assert counted(evaluator, "avg(cpu_steal_ratio, 1m) > 20%", 62) == 0


def test_a_signal_of_the_cluster_tells_of_guests_that_nobody_measured_since() -> None:
    evaluator = counting("signals.many", more="  - {name: many, on: cluster, when: 'count(vms) > 1'}\n")
    assert counted(evaluator, "signals.many", 1) == 0
    assert counted(evaluator, "signals.many", 2) == 2


def test_a_disks_sample_alone_tells_something_of_its_guest() -> None:
    what = "max(disks.read_latency_seconds) > 10ms"
    evaluator = counting(what)
    assert counted(evaluator, what, 1) == 0
    evaluator.feed([Sample("vm_disk", {**vm("g1", 2).tags, "disk": "vda"}, {"read_latency_seconds": 0.1}, at(2))], "m")
    assert counted(evaluator, what, 3) == 1


def test_a_window_is_looked_at_closely_only_where_its_bound_leaves_it_open() -> None:
    text = "count(vms where avg(cpu_steal_ratio, 1m) > 20%) >= 0"
    rules = ruleset(f"virtpilot: 1\nrules:\n  - {{name: a, on: cluster, when: '{text}'}}\n")
    evaluator = Evaluator(rules)
    window = next(iter(condition("avg(cpu_steal_ratio, 1m) > 20%", Kind.VM).reads.windows.values()))
    for time_s in range(0, 60, 10):
        for number in range(4):
            evaluator.feed([host("h1", time_s), vm(f"g{number}", time_s, (0.9, 0.3, 0.1, 0.1)[number])], "m")
        evaluator.tick(at(time_s))
    assert said(evaluator, text, Kind.CLUSTER, "c") == 2.0
    track, _first = evaluator.world.windows.track(window)
    table = evaluator.world.tables[Kind.VM]
    assert [bool(track.stale[0, table.row_of[f"g{number}"]]) for number in range(4)] == [False, False, True, True]
