"""A host's limit of series: known ones go on, new ones beyond it are put aside, forgotten ones make room."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from virtpilot.clock import VirtualClock
from virtpilot.lineprotocol import parse
from virtpilot.pipeline.cardinality import LimitOptions, SeriesGuard

DAY_S = 24 * 3600


def lines(*numbers: int) -> bytes:
    return b"".join(b"vm,vm=%d f=1 1\n" % number for number in numbers)


def guard(limit: int) -> tuple[SeriesGuard, VirtualClock]:
    clock = VirtualClock()
    return SeriesGuard(LimitOptions(series_per_host=limit), clock), clock


def test_known_series_go_on_and_new_ones_beyond_the_limit_do_not() -> None:
    made, _ = guard(3)
    assert made.admit("h", lines(1, 2)) == (lines(1, 2), [])
    good, bad = made.admit("h", lines(1, 3, 4, 2, 5))
    assert good == lines(1, 3, 2)
    assert bad == [(lines(number).strip(), "over the host's limit of 3 series") for number in (4, 5)]
    assert made.admit("h", lines(3, 2, 1)) == (lines(3, 2, 1), [])
    assert made.admit("other", lines(4, 5)) == (lines(4, 5), [])
    assert made.counts() == {"h": 3, "other": 2}
    assert made.refused() == {"h": 2}


def test_without_a_limit_all_is_taken() -> None:
    made, _ = guard(0)
    assert made.admit("h", lines(*range(1000)))[1] == []


def test_series_unseen_for_a_day_make_room() -> None:
    made, clock = guard(2)
    made.admit("h", lines(1, 2))
    clock.advance(DAY_S)
    assert made.admit("h", lines(1, 3)) == (lines(1), [(lines(3).strip(), "over the host's limit of 2 series")])
    clock.advance(DAY_S)
    assert made.admit("h", lines(1, 3)) == (lines(1, 3), [])
    assert made.counts() == {"h": 2}
    clock.advance(5 * DAY_S)
    assert made.admit("h", lines(7, 8)) == (lines(7, 8), [])


def test_a_flood_of_hosts_shares_one_limit_and_memory_stays_bounded() -> None:
    made, _ = guard(10)
    for number in range(10_050):
        made.admit(f"h{number}", lines(number))
    assert len(made.counts()) == 10_001
    assert made.counts()["(others)"] == 10
    assert sum(made.refused().values()) == 40
    for number in range(0, 100_000, 100):
        made.admit("h1", lines(*range(number, number + 100)))
    assert len(made._hosts["h1"].recent) == 10
    assert all(isinstance(kept, int) and sys.getsizeof(kept) <= 36 for kept in made._hosts["h1"].recent)


@pytest.mark.parametrize("host", ["", "..", "a b", "\u2603", "h" * 129])
def test_what_is_no_name_of_a_host_is_not_remembered_as_one(host: str) -> None:
    """A topic's level may be 64 KB long, and each name known is a label of what the writer exports."""
    made, _ = guard(1)
    assert made.admit(host, lines(1)) == (lines(1), [])
    assert list(made.counts()) == ["(others)"]
    assert made.admit(host * 2, lines(2))[0] == b""


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (b"m,a=x\\ y f=1 1", b"m,a=x\\ z f=1 1"),
        (b"m\\ a f=1 1", b"m\\ b f=1 1"),
    ],
)
def test_an_escaped_space_is_part_of_the_head(first: bytes, second: bytes) -> None:
    made, _ = guard(1)
    assert made.admit("h", first)[1] == []
    assert made.admit("h", second)[0] == b""


def test_a_line_with_a_line_feed_in_a_string_stays_whole() -> None:
    made, _ = guard(2)
    made.admit("h", lines(1, 2))
    text = b'log,a=b said="one\ntwo \\"x\\" \nthree" 1'
    assert made.admit("h", text + b"\n" + lines(1)) == (lines(1), [(text, "over the host's limit of 2 series")])


@settings(derandomize=True, deadline=None)
@given(st.lists(st.lists(st.integers(0, 12), max_size=8), max_size=8), st.integers(1, 10))
def test_a_host_never_has_more_series_than_its_limit_and_no_line_is_lost(ticks: list[list[int]], limit: int) -> None:
    made, _ = guard(limit)
    stored: set[int] = set()
    for numbers in ticks:
        good, bad = made.admit("h", lines(*numbers))
        taken = [int(sample.tags["vm"]) for sample in parse(good).samples]
        assert sorted(taken + [int(parse(row).samples[0].tags["vm"]) for row, _ in bad]) == sorted(numbers)
        assert stored & set(numbers) <= set(taken), "what is known goes on"
        stored |= set(taken)
        assert len(stored) <= limit
