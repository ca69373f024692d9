"""The function that is written for a layout reads what any guest is read by, value by value."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.thoroughness import examples
from virtpilot.collectors import reading
from virtpilot.collectors.reading import Read, reader_of

CASES: Final = Path(__file__).parent / "guests"
QEMU: Final[dict[str, Any]] = {
    **json.loads((CASES / "everything-that-qemu-tells.json").read_text())["second"],
    "vcpu.0.halted": True,
}
TWO_OF_EACH: Final = {
    "state.state": 1,
    "cpu.time": 5,
    **{f"block.{index}.{name}": 7 for index in (0, 1) for name in ("rd.bytes", "rd.reqs", "rd.times", "wr.reqs")},
    **{f"net.{index}.{name}": 9 for index in (0, 1) for name in ("rx.bytes", "tx.bytes")},
}
FLAGS: Final = {"vcpu.0.halted"}
counts = st.integers(0, 2**64 - 1)


def told(stats: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return {name: changes.get(name, value) for name, value in stats.items()}


def both(stats: dict[str, Any], before: dict[str, Any], elapsed_s: float) -> tuple[Read, Read]:
    reader = reader_of(tuple(stats))
    counters = reader.read_any(before, (0,) * len(reader.layout.counters), 0.0).counters
    return reader.read(stats, counters, elapsed_s), reader.read_any(stats, counters, elapsed_s)


@settings(derandomize=True, deadline=None, max_examples=examples(200))
@given(
    st.sampled_from([QEMU, TWO_OF_EACH]),
    st.data(),
    st.sampled_from([0.0, 0.5, 10.0]),
)
def test_both_ways_of_reading_tell_the_same(stats: dict[str, Any], data: st.DataObject, elapsed_s: float) -> None:
    names = st.sampled_from([name for name in stats if name != "state.state"])
    before, after = (data.draw(st.dictionaries(names, counts, max_size=8)) for _ in range(2))
    after |= data.draw(st.dictionaries(st.sampled_from(sorted(FLAGS & stats.keys()) or ["none"]), st.booleans()))
    fast, slow = both(told(stats, after), told(stats, before), elapsed_s)
    assert fast.counters == slow.counters
    assert fast.rates == pytest.approx(slow.rates, nan_ok=True)
    for quick, thorough in zip(fast.fields, slow.fields, strict=True):
        assert quick == pytest.approx(thorough)
        assert {name: type(value) for name, value in quick.items()} == {
            name: type(value) for name, value in thorough.items()
        }


@pytest.mark.parametrize("halted", [True, False])
@pytest.mark.parametrize("elapsed_s", [0.0, 10.0])
def test_whether_a_vcpu_is_halted_is_a_number_either_way(halted: bool, elapsed_s: float) -> None:
    """A truth in a sample would be written number by number, at many times the cost."""
    for read in both({**QEMU, "vcpu.0.halted": halted}, QEMU, elapsed_s):
        told = [fields["halted_count"] for fields in read.fields if "halted_count" in fields]
        assert [(value, type(value)) for value in told] == [(int(halted), int)]


@settings(derandomize=True, deadline=None, max_examples=examples(100))
@given(st.data())
def test_a_truth_where_a_count_is_told_is_a_number_either_way(data: st.DataObject) -> None:
    odd = data.draw(st.dictionaries(st.sampled_from([name for name in QEMU if name != "state.state"]), st.booleans()))
    fast, slow = both(told(QEMU, odd), told(QEMU, dict.fromkeys(QEMU.keys() - {"state.state"}, 0)), 10.0)
    assert (fast.counters, fast.rates, fast.fields) == (slow.counters, slow.rates, slow.fields)
    assert {type(value) for fields in fast.fields for value in fields.values()} <= {int, float}


def test_a_guest_with_sound_numbers_is_read_by_the_function_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading.Reader, "read_any", None)
    reader = reader_of(tuple(TWO_OF_EACH))
    found = reader.read(TWO_OF_EACH, (0,) * len(reader.layout.counters), 2.0)
    assert found.fields[0]["disks_read_bytes_per_second"] == 7.0
    assert found.fields[0]["nics_transmit_bytes_per_second"] == 9.0


@pytest.mark.parametrize("odd", [-1, 2**64, 1.5, "7", None])
def test_what_is_no_count_is_left_out_alone(odd: object) -> None:
    reader = reader_of(tuple(TWO_OF_EACH))
    found = reader.read({**TWO_OF_EACH, "block.0.rd.bytes": odd}, (0,) * len(reader.layout.counters), 2.0)
    known = found.fields[1].get("read_bytes_total")
    assert known == (odd if odd == 1.5 else None)
    assert found.fields[2]["read_bytes_total"] == 7


def test_a_guest_of_more_numbers_than_a_function_is_written_for_is_read() -> None:
    stats = {"state.state": 1, **{f"block.{index}.rd.bytes": index for index in range(reading.MAX_WRITTEN)}}
    reader = reader_of(tuple(stats))
    found = reader.read(stats, (0,) * len(reader.layout.counters), 1.0)
    assert found.fields[-1]["read_bytes_per_second"] == len(reader.layout.disks) - 1
