"""Rates from counters: what may be compared, and that nothing absurd ever comes out."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.thoroughness import examples
from virtpilot.clock import seconds
from virtpilot.collectors.rates import MAX_ELAPSED_NS, MIN_ELAPSED_NS, Rates

KEY = ("guest", "counter")
OTHER = ("other", "counter")


def second(first: float, then: float, elapsed_ns: int) -> float | None:
    rates = Rates()
    assert rates.rate(KEY, first, seconds(1000)) is None
    return rates.rate(KEY, then, seconds(1000) + elapsed_ns)


@pytest.mark.parametrize(
    ("first", "then", "elapsed_ns", "rate"),
    [
        (100, 150, seconds(10), 5.0),
        (100, 100, seconds(10), 0.0),
        (100, 101, MIN_ELAPSED_NS, 20.0),
        (0, 600, MAX_ELAPSED_NS, 2.0),
        (100, 99, seconds(10), None),  # reset
        (2**64 - 1, 5, seconds(10), None),  # wrapped
        (100, 150, 0, None),  # the same moment twice
        (100, 150, -seconds(5), None),  # the clock was set back
        (100, 150, MIN_ELAPSED_NS - 1, None),
        (100, 150, MAX_ELAPSED_NS + 1, None),
    ],
)
def test_rate_is_told_of_what_can_be_compared(first: float, then: float, elapsed_ns: int, rate: float | None) -> None:
    assert second(first, then, elapsed_ns) == rate


def test_readings_at_different_moments_are_each_compared_with_the_one_before() -> None:
    rates = Rates()
    rates.rate(KEY, 1, seconds(0))
    rates.rate(OTHER, 1, seconds(0))
    assert rates.rate(KEY, 3, seconds(1)) == 2
    assert rates.rate(KEY, 4, seconds(2)) == 1
    assert rates.rate(OTHER, 11, seconds(10)) == 1


@pytest.mark.parametrize("way", [1, -1])
def test_what_was_not_read_for_too_long_is_forgotten(way: int) -> None:
    rates = Rates()
    rates.rate(KEY, 1, seconds(1000))
    rates.rate(OTHER, 1, seconds(1000) + way * (MAX_ELAPSED_NS + 1))
    assert len(rates) == 1
    assert rates.rate(KEY, 9, seconds(1000) + way * (MAX_ELAPSED_NS + 2)) is None


@settings(derandomize=True, deadline=None, max_examples=examples(200))
@given(
    st.lists(
        st.tuples(st.floats(0, 2.0**64) | st.integers(0, 2**64), st.integers(-seconds(400), seconds(400))), max_size=20
    )
)
def test_rates_are_never_negative_nor_beyond_the_increase(readings: list[tuple[float, int]]) -> None:
    rates, now_ns, former = Rates(), seconds(10_000), 0.0
    for value, step_ns in readings:
        now_ns += step_ns
        found = rates.rate(KEY, value, now_ns)
        if found is not None:
            assert 0 <= found <= max(value - former, 0) / (MIN_ELAPSED_NS / 1e9)
        former = value
