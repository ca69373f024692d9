"""Messages fed whole, column by column, give the signals and the state that their samples give one by one."""

from __future__ import annotations

import base64
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rules_signals.reference import START_NS, ruleset
from tests.thoroughness import examples
from virtpilot import linecolumns
from virtpilot.clock import seconds
from virtpilot.lineblocks import LineReader, Lines, Roster
from virtpilot.lineprotocol import encode_lines
from virtpilot.model import Sample
from virtpilot.remembered import MAX_BYTES, Remembered
from virtpilot.rules.signals.evaluator import Evaluator

REPEATABLE = settings(derandomize=True, deadline=None, max_examples=examples(40, least=10))
RULES = ruleset(
    """
virtpilot: 1
rules:
  - {name: plain, on: vm, when: cpu_steal_ratio > 20%, for: 10s, clear: cpu_steal_ratio < 5%}
  - {name: past, on: vm, when: 'avg(cpu_steal_ratio, 30s) > 10%'}
  - {name: of-host, on: vm, when: 'cpu_steal_ratio > 5% and avg(host.cpu_usage_ratio, 30s) > 50%', unless: hot}
  - {name: hot, on: host, when: cpu_usage_ratio > 80%, clear_for: 10s, no_data: fire}
  - {name: several, on: host, when: {at least 2 of vms within 20s: plain}}
  - {name: full, on: vm, when: any(filesystems where used_ratio > 80%)}
  - {name: was-full, on: vm, when: 'any(filesystems where max(used_ratio, 30s) > 80%)', no_data: clear}
"""
)
GUESTS = [f"g{number:02}" for number in range(24)]
WANTED = {
    "host": frozenset({"cpu_usage_ratio"}),
    # More than the rules read.
    "vm": frozenset({"cpu_steal_ratio", "cpu_usage_ratio", "state_code"}),
    "knob": frozenset({"value_count"}),
    "vm_filesystem": frozenset({"used_ratio"}),
}


def tick(chance: random.Random, number: int, homes: dict[str, str], host: str) -> list[Sample]:
    """What a host says at a tick: now and then a guest is late, twice, new, elsewhere, or lacks a field."""
    now_ns = START_NS + seconds(10 * number)
    found = [Sample("host", {"cluster": "c", "host": host}, {"cpu_usage_ratio": chance.choice([0.1, 0.9])}, now_ns)]
    for guest in GUESTS:
        if homes[guest] != host or chance.random() < 0.05:
            continue
        fields: dict[str, int | float] = {"cpu_steal_ratio": chance.choice([0.0, 0.1, 0.3]), "cpu_usage_ratio": 0.5}
        if chance.random() < 0.1:
            fields = chance.choice([{"cpu_usage_ratio": 0.9}, {"state_code": 5, **fields}])
        at_ns = now_ns - seconds(chance.choice([0] * 19 + [25]))
        tags = {"cluster": "c", "host": host, "name": f"name-{guest}", "vm": guest}
        found.append(Sample("vm", tags, fields, at_ns))
        if chance.random() < 0.8:
            device = Sample(
                "vm_filesystem", {**tags, "mountpoint": "/"}, {"used_ratio": chance.choice([0.5, 0.9])}, at_ns
            )
            found.insert(len(found) - chance.choice([0, 0, 0, 1]), device)
        found.append(Sample("knob", {**tags, "knob": "cpu_shares"}, {"value_count": 1024 + number}, at_ns))
        if chance.random() < 0.03:
            homes[guest] = chance.choice(["h1", "h2"])
    if chance.random() < 0.1:
        found.insert(chance.randrange(len(found)), found[chance.randrange(len(found))])
    return found


def state(evaluator: Evaluator) -> dict[str, Any]:
    """Return all that is saved, with devices and their pasts by name.

    Of several messages taken together, those that are taken whole come first: devices that are new in them have other
    rows than they would have one message after the other. Which row a device has is all that may differ.
    """
    document = evaluator.snapshot()
    document["tables"]["vm_filesystem"] = list(map(by_device, document["tables"].get("vm_filesystem", [])))
    document["windows"] = [by_device(one) if one["kind"] == "vm_filesystem" else one for one in document["windows"]]
    return document


def by_device(rows: dict[str, Any]) -> list[tuple[str, Any]]:
    """Return saved rows, or a window's pasts, as what each device has in each of their columns."""
    counts = rows.get("counts") or [1] * len(rows["subjects"])
    columns = {name: rows[name] for name in ("time", "since", "interval", "times") if name in rows}
    columns |= rows.get("values", {}) | {one["text"]: one["values"] for one in rows.get("series", [])}
    parts = {name: iter(memoryview(base64.b64decode(column)).cast("q")) for name, column in columns.items()}
    return sorted(
        (str(subject), (cause, {name: [next(part) for _ in range(count)] for name, part in parts.items()}))
        for subject, cause, count in zip(rows["subjects"], rows.get("causes", rows["subjects"]), counts, strict=True)
    )


@REPEATABLE
@given(st.randoms(use_true_random=False), st.booleans())
def test_the_same_signals_and_the_same_state(chance: random.Random, together: bool) -> None:
    whole, single = Evaluator(RULES), Evaluator(RULES)
    reader, homes = LineReader(WANTED), {guest: "h1" if guest < "g12" else "h2" for guest in GUESTS}
    for number in range(8):
        payloads = {host: encode_lines(tick(chance, number, homes, host)) for host in ("h1", "h2")}
        messages = [(reader.read(payload), f"{host}/b/{number}") for host, payload in payloads.items()]
        fed = whole.feed_messages(messages) if together else [s for m in messages for s in whole.feed_messages([m])]
        assert fed == [signal for lines, cause in messages for signal in single.feed(lines.samples(), cause)]
        now_ns = START_NS + seconds(10 * number + 1)
        assert whole.tick(now_ns) == single.tick(now_ns)
    assert state(whole) == state(single)
    assert (whole.late, whole.ahead) == (single.late, single.ahead)
    assert all(whole.knob(guest, "cpu_shares") == single.knob(guest, "cpu_shares") for guest in GUESTS)


def test_most_messages_are_taken_whole() -> None:
    """So that the test above compares two ways."""
    evaluator, reader, taken = Evaluator(RULES), LineReader(WANTED), list[bool]()
    for number in range(5):
        samples = [
            Sample("vm", {"host": "h1", "vm": guest}, {"cpu_steal_ratio": 0.1}, START_NS + seconds(10 * number))
            for guest in GUESTS
        ]
        lines = reader.read(encode_lines(samples))
        assert len(lines.blocks) == 1
        taken.append(evaluator._quick.take([(lines, "m")]) is not None)
        if not taken[-1]:
            evaluator.feed(lines.samples(), "m")
    assert taken == [False, True, True, True, True]


def test_most_lines_of_devices_are_taken_whole() -> None:
    evaluator, reader, taken = Evaluator(RULES), LineReader(WANTED), list[tuple[int, int]]()
    for number in range(4):
        at_ns, samples = START_NS + seconds(10 * number), list[Sample]()
        for guest in GUESTS:
            tags = {"host": "h1", "vm": guest}
            samples.append(Sample("vm", tags, {"cpu_steal_ratio": 0.1}, at_ns))
            samples.append(Sample("vm_filesystem", {**tags, "mountpoint": "/"}, {"used_ratio": 0.9}, at_ns))
        lines = reader.read(encode_lines(samples))
        whole = evaluator._quick.take([(lines, "m")])
        if whole is None:
            evaluator.feed(lines.samples(), "m")
            continue
        (after,) = whole.after
        taken.append((len(after.pieces), len(after.samples)))
        evaluator._quick.devices.put([after])
    assert taken == [(1, 0), (1, 0), (1, 0)]


def test_lines_that_stand_as_before_are_divided_as_before() -> None:
    """Some devices come before their guests and some after; then guests that nobody spoke of are gone."""
    whole, single, reader, rosters = Evaluator(RULES), Evaluator(RULES), LineReader(WANTED), set[Roster | None]()
    for number, there in enumerate([24, 24, 24, 24, 23, 24, 24]):
        at_ns, messages = START_NS + seconds(10 * number), list[tuple[Lines, str]]()
        for host, guests in (("h1", GUESTS[:12]), ("h2", GUESTS[12:there])):
            samples = list[Sample]()
            for place, guest in enumerate(guests):
                tags = {"host": host, "vm": guest}
                own = Sample("vm", tags, {"cpu_steal_ratio": 0.1}, at_ns)
                device = Sample(
                    "vm_filesystem", {**tags, "mountpoint": "/"}, {"used_ratio": (number + place) % 3 / 2}, at_ns
                )
                # Behind them come lines that make the message one of many.
                samples += [own, device] if place % 3 else [device, own]
                samples += [Sample("knob", {**tags, "knob": f"k{n}"}, {"value_count": number}, at_ns) for n in range(3)]
            messages.append((reader.read(encode_lines(samples)), f"{host}/{number}"))
        rosters.update(lines.roster for lines, _cause in messages)
        fed = whole.feed_messages(messages)
        assert fed == [signal for lines, cause in messages for signal in single.feed(lines.samples(), cause)]
        now_ns = at_ns + seconds(1 if there == 24 else 4000)
        assert whole.tick(now_ns) == single.tick(now_ns)
        assert state(whole) == state(single)
    assert len(rosters - {None}) == 3


def test_ever_other_texts_about_the_same_guests_are_remembered_up_to_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Told by a tag that makes nobody another one: what is remembered of whole messages is bounded in bytes."""
    evaluator, reader, heads_bytes = Evaluator(RULES), LineReader(WANTED), 0
    bounded: tuple[Remembered[Any], ...] = (evaluator._quick._groups, linecolumns._known_heads)
    for remembered in bounded:
        assert remembered._most_bytes == MAX_BYTES
        monkeypatch.setattr(remembered, "_most_bytes", MAX_BYTES // 8)
    for number in range(20):
        tags = {"cluster": f"{number:04}".ljust(400, "x"), "host": "h1"}
        samples = [
            Sample("vm", {**tags, "vm": f"g{guest:03}"}, {"cpu_steal_ratio": 0.1}, START_NS + seconds(10 * number))
            for guest in range(300)
        ]
        lines = reader.read(encode_lines(samples))
        heads_bytes = len(lines.blocks[0].heads)
        evaluator.feed_messages([(lines, "m")])
    for remembered in bounded:
        assert 0 < len(remembered) <= MAX_BYTES // 8 // heads_bytes < 19


def test_a_host_behind_its_guests_is_taken_in_order() -> None:
    """A guest's rule must not see what its host says later in the same message."""
    evaluator = Evaluator(RULES)
    host = Sample("host", {"host": "h1"}, {"cpu_usage_ratio": 0.9}, START_NS)
    guests = [Sample("vm", {"host": "h1", "vm": one}, {"cpu_steal_ratio": 0.1}, START_NS) for one in GUESTS]
    evaluator.feed([host, *guests], "m")
    later = [Sample(one.measurement, one.tags, one.fields, START_NS + 1) for one in (*guests, host)]
    assert evaluator._quick.take([(Lines([], dict(enumerate(later)), []), "m")]) is None
    assert evaluator._quick.take([(Lines([], dict(enumerate([later[-1], *later[:-1]])), []), "m")]) is not None
