"""The parser that reads only wanted fields says what the full one says, faster, and survives any bytes."""

from __future__ import annotations

from time import perf_counter

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from virtpilot.lineprotocol import Wanted, encode_lines, parse, parse_wanted
from virtpilot.model import Sample

quick = settings(derandomize=True, deadline=None, max_examples=300)
plain = st.sampled_from(
    ["a", "ab", "b", "cpu_usage_ratio", "usage_ratio", "x=y", "sp ace", 'q"uote', "back\\slash", "ü"]
)
samples = st.lists(
    st.builds(
        Sample,
        measurement=st.sampled_from(["vm", "host", "v m"]),
        tags=st.dictionaries(plain, plain, max_size=3),
        fields=st.dictionaries(plain, st.one_of(st.integers(-5, 5), st.floats(-5, 5)), min_size=1, max_size=6),
        time_ns=st.integers(0, 10),
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


@quick
@given(samples, wanteds)
def test_it_agrees_with_the_full_parser(found: list[Sample], wanted: Wanted) -> None:
    payload = encode_lines(found)
    parsed = parse_wanted(payload, wanted)
    assert parsed.samples == only(parse(payload).samples, wanted)
    assert parsed.bad == []


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
    for number in range(20):
        others = [f"other_{index}={index * 10 ** (number % 7)}" for index in range(30)]
        at = {"first": 0, "middle": 15, "last": 30, "wandering": number}[position]
        others.insert(at, f"f={number}")
        lines.append(f"m,a=b {','.join(others)} {number}")
    parsed = parse_wanted("\n".join(lines).encode(), {"m": frozenset({"f", "absent"})})
    assert [sample.fields for sample in parsed.samples] == [{"f": float(number)} for number in range(20)]


@pytest.mark.parametrize("line", ["m f=x 5", "m f=1 x", "m f= 5", "m,a f=1 5", "m f=1_0 5", "m f=inf 5"])
def test_what_it_reads_it_checks(line: str) -> None:
    parsed = parse_wanted(f"m f=1 1\n{line}\nm f=2 2\n".encode(), {"m": frozenset({"f"})})
    assert [sample.time_ns for sample in parsed.samples] == [1, 2]
    assert [bad.number for bad in parsed.bad] == [2]


def test_it_is_many_times_faster_than_the_full_parser() -> None:
    """A ratio within one run, for this machine may be busy; the absolute number is the benchmark's."""
    fields = {f"field_number_{index}_bytes": index * 1.5 for index in range(40)}
    tags = {"cluster": "lab", "host": "node1", "vm": "3f0d4a1e-0000-4000-8000-000000000001"}
    payload = encode_lines([Sample("vm", tags, fields, number) for number in range(2000)])
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
