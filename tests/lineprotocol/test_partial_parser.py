"""The parser that reads only wanted fields says what the full one says, faster, and survives any bytes."""

from __future__ import annotations

from time import perf_counter

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.thoroughness import examples
from virtpilot import linecolumns
from virtpilot.lineprotocol import Wanted, encode_lines, parse, parse_wanted
from virtpilot.model import Sample

quick = settings(derandomize=True, deadline=None, max_examples=examples(300))
plain = st.sampled_from(
    ["a", "ab", "b", "cpu_usage_ratio", "usage_ratio", "x=y", "sp ace", 'q"uote', "back\\slash", "ü"]
)
numbers = st.one_of(
    st.integers(-5, 5),
    st.floats(-5, 5),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
)
samples = st.lists(
    st.builds(
        Sample,
        measurement=st.sampled_from(["vm", "host", "v m"]),
        tags=st.dictionaries(plain, plain, max_size=3),
        fields=st.dictionaries(plain, numbers, min_size=1, max_size=6),
        time_ns=st.one_of(st.just(1_700_000_000_000_000_000), st.integers(0, 10), st.integers(-(2**63), 2**63 - 1)),
    ),
    max_size=6,
)
wanteds = st.dictionaries(st.sampled_from(["vm", "host", "v m", "none"]), st.frozensets(plain, max_size=4), max_size=3)


def only(found: list[Sample], wanted: Wanted) -> list[Sample]:
    kept = []
    for sample in found:
        fields = {name: value for name, value in sample.fields.items() if name in wanted.get(sample.measurement, ())}
        if fields:
            kept.append(Sample(sample.measurement, sample.tags, fields, sample.time_ns))
    return kept


def types_of(sample: Sample) -> dict[str, type]:
    return {name: type(value) for name, value in sample.fields.items()}


@quick
@given(samples, wanteds)
def test_it_agrees_with_the_full_parser(found: list[Sample], wanted: Wanted) -> None:
    payload = encode_lines(found)
    parsed = parse_wanted(payload, wanted)
    assert parsed.samples == only(parse(payload).samples, wanted)
    assert parsed.bad == []
    assert [types_of(sample) for sample in parsed.samples] == [types_of(sample) for sample in only(found, wanted)]


@quick
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.sampled_from([b"m,a=b", b" ", b"f=1", b" 5\n", b'f="', b"\\", b'"', b"\n", b",", b"="]),
        )
    )
)
@example([b'm f="', b"\n", b'm f="x" 5\n'])
@example([b"m f=1 5\n", b"\xff"])
def test_any_bytes_are_survived(parts: list[bytes]) -> None:
    payload = b"".join(parts)
    full = parse(payload)
    partial = parse_wanted(payload, {"m": frozenset({"f"})})
    assert len(full.samples) + len(full.bad) <= payload.count(b"\n") + 1
    assert len(partial.samples) <= payload.count(b"\n") + 1


def test_a_string_that_is_never_closed_costs_its_line_only() -> None:
    parsed = parse(b'm f="open 1\n' + b"m f=1 2\n" * 20)
    assert len(parsed.samples) == 20
    assert [bad.number for bad in parsed.bad] == [1]


def test_numbers_of_lines_count_the_line_feeds_in_strings() -> None:
    parsed = parse(b'm s="a\nb\nc",f=1 1\nbad\n')
    assert len(parsed.samples) == 1
    assert [bad.number for bad in parsed.bad] == [4]


@pytest.mark.parametrize("position", ["first", "middle", "last", "wandering"])
def test_a_field_is_found_wherever_it_stands(position: str) -> None:
    lines = []
    first_ns = 1_700_000_000_000_000_000
    for number in range(20):
        others = [f"other_{index}={index * 10 ** (number % 7)}" for index in range(30)]
        at = {"first": 0, "middle": 15, "last": 30, "wandering": number}[position]
        others.insert(at, f"f={number}")
        lines.append(f"m,a=b {','.join(others)} {first_ns + number}")
    parsed = parse_wanted("\n".join(lines).encode(), {"m": frozenset({"f", "absent"})})
    assert [sample.fields for sample in parsed.samples] == [{"f": float(number)} for number in range(20)]


def test_a_wanted_field_that_only_some_lines_have_is_found_in_them() -> None:
    now_ns = 1_700_000_000_000_000_000
    payload = "".join(
        [f"m,a=b {fields} {now_ns}\n" for fields in ("a=1,b=2i,c=3", "a=1,f=2i,c=3", "f=1i,b=2i,c=3", "a=1,b=2i,f=3i")]
    )
    parsed = parse_wanted(payload.encode(), {"m": frozenset({"a", "f"})})
    assert [sample.fields for sample in parsed.samples] == [
        {"a": 1.0},
        {"a": 1.0, "f": 2},
        {"f": 1},
        {"a": 1.0, "f": 3},
    ]


def test_lines_of_ever_new_layouts_are_all_read() -> None:
    now_ns = 1_700_000_000_000_000_000
    lines = [f"m x{number}=1,f={number}i,y=2 {now_ns}" for number in range(60)]
    parsed = parse_wanted("\n".join(lines).encode(), {"m": frozenset({"f"})})
    assert [sample.fields for sample in parsed.samples] == [{"f": number} for number in range(60)]


@pytest.mark.parametrize("time", ["1", "1700000000000000000"])
@pytest.mark.parametrize(
    "line",
    [
        "m f=x 5",
        "m f=1 x",
        "m f= 5",
        "m,a f=1 5",
        "m f=1_0 5",
        "m f=inf 5",
        "m f=1e999 5",
        "m f=1.5i 5",
        "m f=9223372036854775808i 5",
        "m f=1i2 5",
    ],
)
def test_what_it_reads_it_checks(line: str, time: str) -> None:
    bad = line.replace(" 5", f" {time}")
    parsed = parse_wanted(f"m f=1 {time}\n{bad}\nm f=2 {time}\n".encode(), {"m": frozenset({"f"})})
    assert [sample.fields for sample in parsed.samples] == [{"f": 1.0}, {"f": 2.0}]
    assert [bad.number for bad in parsed.bad] == [2]


def test_it_is_many_times_faster_than_the_full_parser() -> None:
    """A ratio within one run, for this machine may be busy; the absolute number is the benchmark's."""
    fields = {f"field_number_{index}_bytes": index * 1.5 for index in range(40)}
    tags = {"cluster": "lab", "host": "node1", "vm": "3f0d4a1e-0000-4000-8000-000000000001"}
    payload = encode_lines([Sample("vm", tags, fields, 1_700_000_000_000_000_000 + number) for number in range(2000)])
    wanted = {"vm": frozenset(f"field_number_{index}_bytes" for index in (0, 7, 15, 22, 31, 39))}

    def took(count: int, partial: bool) -> float:
        best = 60.0
        for _ in range(count):
            start = perf_counter()
            parsed = parse_wanted(payload, wanted) if partial else parse(payload)
            best = min(best, perf_counter() - start)
            assert len(parsed.samples) == 2000
        return best

    assert took(5, partial=True) * 3 < took(2, partial=False)


def test_a_field_more_behind_the_last_wanted_one_is_another_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guests whose disks rest have no latencies: their lines and the others' come in turn, and none is read slowly."""
    lines = [
        f"vm,vm=g{number} cpu_steal_ratio=0.5,cpu_usage_ratio=0.25{',more=1.5' * (number % 2)} 1700000000000000000"
        for number in range(6)
    ]
    monkeypatch.setattr(linecolumns.Reader, "_read_carefully", lambda *_given: pytest.fail("read slowly"))
    found = parse_wanted("\n".join(lines).encode(), {"vm": {"cpu_steal_ratio", "cpu_usage_ratio"}})
    assert [one.fields for one in found.samples] == [{"cpu_steal_ratio": 0.5, "cpu_usage_ratio": 0.25}] * 6


def test_lines_of_many_measurements_and_layouts_keep_their_order() -> None:
    now_ns = 1_700_000_000_000_000_000
    layouts = [
        "vm,a=b f=1,x=2",
        "host,a=b f=2i",
        "other x=1",
        "vm,a=b x=3,f=4i",
        "# said",
        "vm,f=b x=1,y=2",
        "vm f=5,x=1,g=6",
    ]
    lines = [f"{layouts[number % 7]} {now_ns + number}" for number in range(70)]
    payload = "\n".join(lines).encode()
    wanted = {"vm": frozenset({"f", "g"}), "host": frozenset({"f"})}
    for _ in range(2):
        parsed = parse_wanted(payload, wanted)
        assert parsed.samples == only(parse(payload).samples, wanted)
        assert len(parsed.samples) == 40
        assert parsed.bad == []


@pytest.mark.parametrize("value", ["1 ", "true", "[1]", "1]", "01", "1e999", "", "1\v", "null"])
def test_a_value_that_is_no_plain_number_costs_its_line_only(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers of all lines are read at once: none of them may shift another's."""
    carefully: list[int] = []
    read = linecolumns.Reader._read_carefully

    def noted(reader: linecolumns.Reader, place: int, found: dict[int, Sample]) -> None:
        carefully.append(place)
        read(reader, place, found)

    monkeypatch.setattr(linecolumns.Reader, "_read_carefully", noted)
    lines = [f"vm,a=b f={number}.5,x=1,g={number}i,y=1 1700000000000000000" for number in range(20)]
    lines[13] = lines[13].replace("f=13.5", f"f={value}")
    payload = "\n".join([*lines, ""]).encode()
    wanted = {"vm": frozenset({"f", "g"})}
    parsed = parse_wanted(payload, wanted)
    full = parse(payload)
    assert parsed.samples == only(full.samples, wanted)
    assert [bad.number for bad in parsed.bad] == [bad.number for bad in full.bad]
    assert carefully == [13]
