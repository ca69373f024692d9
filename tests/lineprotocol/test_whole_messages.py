"""Whole messages as columns say what they say line by line."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.lineprotocol.test_partial_parser import only
from tests.thoroughness import examples
from virtpilot import lineblocks
from virtpilot.lineblocks import LineReader, Roster
from virtpilot.lineprotocol import encode_lines, parse, parse_wanted
from virtpilot.model import Sample
from virtpilot.remembered import MAX_BYTES

quick = settings(derandomize=True, deadline=None, max_examples=examples(300))
WANTED = {"vm": frozenset({"a", "b", "ab"}), "host": frozenset({"a"}), "knob": frozenset({"value_count"})}
# So many names that lines without them are told by what is left of them without their numbers.
MANY = WANTED | {"vm": frozenset({"a", "b", "ab", "q1", "gone", "lost", "away", "wane"})}
NOW_NS = 1_790_000_000_000_000_000
numbers = st.one_of(
    st.integers(-5, 5),
    st.floats(-5, 5),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
)
shapes = st.lists(
    st.tuples(
        st.sampled_from(["vm", "vm", "host", "vm_disk", "knob"]),
        st.lists(st.sampled_from(["a", "b", "ab", "x", "xa", "value_count"]), min_size=1, max_size=5, unique=True),
        st.integers(1, 14),
    ),
    max_size=5,
)
# A field that stands twice in a line is not among them: see the last test.
ODD = [
    b"vm,vm=g a=1_0 5\n", b"vm,vm=g a=1i2 1790000000000000000\n", b"  vm,vm=g a=7 8\n", b"# a comment\n", b"\n",
    b"vm,vm a=1 1790000000000000000\n", b"vm a=t 1790000000000000000\n",
    b"vm,vm=g x=3,b=,a=4 1790000000000000000\n", b'vm,vm=g s="a=5,b=6",a=1 1790000000000000000\n', b"\xff\n",
    b"vm,vm=g a=9223372036854775807i,b=1 1790000000000000000\n", b"vm,vm=g a=1 ,b=2 1790000000000000000\n",
    b"vm,vm=g a=1 1790000000\n", b"vm,vm=g a=1 179000000000000000x\n", b"vm,vm=g a=1 179000000 000000000\n",
    b"vm,vm=g a=1,b=2 1790000000\nhost a=3\n", b"vm,vm=g a=1 1790000000000,00000\n",
]  # fmt: skip
odd = st.sampled_from(ODD)


@st.composite
def payloads(draw: st.DrawFn, with_odd: bool = False) -> bytes:
    """Groups of lines of one shape each, mixed; by choice with odd lines among them."""
    lines: list[bytes] = []
    for measurement, names, count in draw(shapes):
        for number in range(count):
            fields = {name: draw(numbers) for name in names}
            tags = {"host": "h", "vm": f"g{number}"}
            lines.append(encode_lines([Sample(measurement, tags, fields, NOW_NS + draw(st.integers(0, 1)))]))
    if with_odd:
        lines += draw(st.lists(odd, max_size=2))
    random.Random(draw(st.integers(0, 9))).shuffle(lines)
    return b"".join(lines)


def floats(samples: list[Sample]) -> list[Sample]:
    """Samples with their numbers as columns hold them: an integer beyond 53 bits is the nearest that they can."""
    return [
        Sample(one.measurement, one.tags, {name: float(value) for name, value in one.fields.items()}, one.time_ns)
        for one in samples
    ]


@quick
@given(payloads())
def test_they_agree_with_the_full_parser(payload: bytes) -> None:
    lines = LineReader(WANTED).read(payload)
    assert floats(lines.samples()) == floats(only(parse(payload).samples, WANTED))
    assert lines.bad == []
    assert len(lines) == len(lines.samples())


@quick
@given(payloads(with_odd=True))
def test_odd_lines_cost_themselves_only(payload: bytes) -> None:
    """What the partial parser says, in the same order, with the same lines bad."""
    lines, parsed = LineReader(WANTED).read(payload), parse_wanted(payload, WANTED)
    assert floats(lines.samples()) == floats(parsed.samples)
    assert lines.bad == parsed.bad


@quick
@given(st.lists(st.one_of(st.binary(max_size=30), odd, st.sampled_from([b"vm,a=b", b" ", b"a=1", b" 5\n", b","]))))
def test_any_bytes_are_survived(parts: list[bytes]) -> None:
    payload = b"".join(parts)
    lines, parsed = LineReader(WANTED).read(payload), parse_wanted(payload, WANTED)
    assert floats(lines.samples()) == floats(parsed.samples)


def ticks(chance: random.Random) -> Iterator[bytes]:
    """What a host says at some ticks: now and then a line has other fields, is odd, is missing or in another place."""
    names = ["a", "b", "ab", "x", "xa", "q1", "q2", "gone", "lost", "value_count"]
    usual = chance.sample(names, 4)
    shapes = [(chance.choice(["vm", "vm", "vm_disk", "knob"]), chance.sample(usual, 3)) for _ in range(3)]
    kinds = [("host", usual), *[chance.choice(shapes) for _ in range(chance.choice([3, 20, 60]))]]
    for tick in range(6):
        lines = []
        for number, (measurement, own) in enumerate(kinds):
            fields = chance.sample(names, 3) if chance.random() < 0.02 else own
            values = {name: chance.choice([tick, 0.5, 1e-7, -(2**40)]) for name in fields}
            at_ns = NOW_NS + tick * chance.choice([1, 1, 2])
            tags = {"host": "h", "vm": f"g{number}"}
            lines.append(encode_lines([Sample(measurement, tags, values, at_ns)]))
        if chance.random() < 0.3:
            lines[chance.randrange(len(lines))] = chance.choice(ODD)
        if chance.random() < 0.2:
            del lines[chance.randrange(len(lines))]
        if chance.random() < 0.2:
            chance.shuffle(lines)
        yield b"".join(lines)


@settings(quick, max_examples=examples(120))
@given(st.randoms(use_true_random=False), st.sampled_from([WANTED, MANY]))
def test_what_a_host_says_next_is_read_the_same_by_who_remembers_it(
    chance: random.Random, wanted: dict[str, frozenset[str]]
) -> None:
    reader, rosters = LineReader(wanted), dict[Roster, list[tuple[bytes, list[int]]]]()
    for payload in ticks(chance):
        lines, parsed = reader.read(payload), parse_wanted(payload, wanted)
        assert floats(lines.samples()) == floats(parsed.samples)
        assert lines.bad == parsed.bad
        if lines.roster is not None:
            assert not lines.others
            about = [(block.heads, block.places.tolist()) for block in lines.blocks]
            assert rosters.setdefault(lines.roster, about) == about


def test_a_fleets_message_becomes_blocks() -> None:
    """So that the tests above are about blocks: of two layouts and many measurements none is left over."""
    lines = [b"host,host=h a=1 1790000000000000000\n"]
    for number in range(20):
        more = ",x=2" if number % 2 else ""
        lines.append(f"vm,host=h,vm=g{number} a={number}i,b=0.5{more} 1790000000000000000\n".encode())
        lines.append(f"vm_disk,host=h,vm=g{number} a=1 1790000000000000000\n".encode())
        lines.append(f"knob,host=h,knob=cpu_shares,vm=g{number} value_count=1024i 1790000000000000000\n".encode())
    reader = LineReader(WANTED)
    for _ in range(2):
        found = reader.read(b"".join(lines))
    assert sorted((block.measurement, len(block.places)) for block in found.blocks) == [
        ("host", 1), ("knob", 20), ("vm", 10), ("vm", 10)
    ]  # fmt: skip
    assert not found.others
    assert found.hosts() == {"h"}
    assert [one.fields["a"] for one in found.samples() if one.measurement == "vm"] == list(range(20))


def test_among_many_lines_a_single_one_of_a_known_layout_is_a_block_too() -> None:
    reader = LineReader(WANTED)
    for usage in (1.5, 2.5):
        host = Sample("host", {"host": "h"}, {"a": usage}, NOW_NS)
        guests = [
            Sample("vm", {"host": "h", "vm": f"g{number}"}, {"b": usage + number}, NOW_NS) for number in range(50)
        ]
        lines = reader.read(encode_lines([host, *guests]))
        assert lines.samples() == [host, *guests]
    assert [block.measurement for block in lines.blocks] == ["vm", "host"]
    assert not lines.others


def test_a_line_with_another_time_in_it_is_not_taken_for_two() -> None:
    good = encode_lines([Sample("vm", {"vm": f"g{number}"}, {"a": 1.5, "b": 2.5}, NOW_NS) for number in range(20)])
    reader = LineReader(WANTED)
    assert reader.read(good).blocks
    torn = good + b"vm,vm=g a=1,b=2 1790000000\nvm a=3\n"
    found, told = reader.read(torn), parse(torn)
    assert floats(found.samples()) == floats(only(told.samples, WANTED))
    assert [one.number for one in found.bad] == [one.number for one in told.bad]


def test_a_number_that_had_a_fraction_before_and_has_none_now() -> None:
    """The layout that the last message had reads what stands there as well, and only then fails."""
    reader = LineReader(WANTED)
    for value in ("0.5", "7i", "0.25"):
        lines = [f"vm,vm=g{number} x=1,a={value},y=2 1790000000000000000\n".encode() for number in range(20)]
        found = reader.read(b"".join(lines))
        assert [len(block.places) for block in found.blocks] == [20]
        assert found.samples()[0].fields == {"a": float(value.removesuffix("i"))}


def test_the_next_message_of_one_layout_is_read_without_a_look_at_its_measurements(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    payload = b"".join(b"vm,vm=g%d a=%d 1790000000000000000\n" % (n, n) for n in range(20))
    reader = LineReader(WANTED)
    first = reader.read(payload)
    monkeypatch.setattr(lineblocks, "_blocks", lambda *_given: pytest.fail("looked at again"))
    assert reader.read(payload).samples() == first.samples()


def test_a_hosts_next_message_is_read_without_a_look_at_its_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [b"host,host=h a=%d 1790000000000000000\n"]
    for number in range(30):
        more = b",x=2" if number % 10 == 0 else b""
        lines.append(b"vm,host=h,vm=g%d a=%%d,b=0.5%b 1790000000000000000\n" % (number, more))
        lines.append(b"vm_disk,host=h,vm=g%d a=%%d 1790000000000000000\n" % number)
    reader = LineReader(WANTED)
    first = reader.read(b"".join(line % 1 for line in lines))
    again = reader.read(b"".join(line % 2 for line in lines[:50]))
    monkeypatch.setattr(lineblocks, "_blocks", lambda *_given: pytest.fail("looked at again"))
    found = reader.read(b"".join(line % 3 for line in lines))
    assert found.samples() == [
        Sample(one.measurement, one.tags, one.fields | {"a": 3.0}, one.time_ns) for one in first.samples()
    ]
    assert found.roster is first.roster is not None
    assert again.roster not in {None, first.roster}


@pytest.mark.parametrize(("there", "instead"), [("x", "gone"), ("q2", "q1"), ("wan", "wane"), ("x", "a")])
def test_a_wanted_name_in_place_of_another_is_seen(there: str, instead: str) -> None:
    """Also where names differ by what numbers may be made of."""
    # No other one's layouts: they may fit as well.
    wanted = MANY | {"vm": MANY["vm"] | {f"not-{there}"}}
    reader = LineReader(wanted)
    for name in (there, instead, there):
        lines = [b"vm,vm=g%d b=%d,y=7,%b=2,ab=3 1790000000000000000\n" % (n, n, there.encode()) for n in range(50)]
        lines[7] = lines[7].replace(there.encode() + b"=2", name.encode() + b"=2")
        lines.append(b"knob,vm=g0 value_count=1 1790000000000000000\n")
        payload = b"".join(lines)
        assert floats(reader.read(payload).samples()) == floats(parse_wanted(payload, wanted).samples)


def test_what_is_remembered_of_messages_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = LineReader(WANTED)
    assert reader._rosters._most_bytes == MAX_BYTES
    monkeypatch.setattr(reader._rosters, "_most_bytes", 100_000)
    for number in range(100):
        lines = [b"vm,host=h%d,vm=%d a=1 1790000000000000000\n" % (number, guest) for guest in range(50)]
        reader.read(b"".join([b"knob,host=h%d,knob=k value_count=1 1790000000000000000\n" % number, *lines]))
        weights = [roster.weight() for roster in reader._rosters._values.values()]
        assert 51 * len(b"vm,host=h1,vm=10") * len(weights) < sum(weights) < 100_000
    assert 5 < len(weights) < 95


def test_of_a_field_that_stands_twice_no_other_number_is_made() -> None:
    """By the full parser the line is refused; names that nobody wants are passed over unread, and one may be this."""
    twice = b"vm,vm=g a=1,a=2 1790000000000000000\n"
    assert parse(twice).samples == []
    for before in (b"", b"vm,vm=h a=5,x=6 1790000000000000000\n", b"vm,vm=h x=6,a=5 1790000000000000000\n"):
        found = LineReader(WANTED).read(before + twice).samples()
        assert [sample.fields["a"] for sample in found if sample.tags["vm"] == "g"] in ([], [1.0], [2.0])
        assert [sample.fields["a"] for sample in found if sample.tags["vm"] == "h"] == [5.0] * bool(before)
