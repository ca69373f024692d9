"""What guests want over time."""

from __future__ import annotations

import math

import pytest

from virtpilot.simulator.demand import Demand, Signal, Sine, Steps, Trace

CASES: list[tuple[Signal, dict[float, float]]] = [
    (1.5, {0: 1.5, 1e6: 1.5}),
    (Steps(points=[(10, 1), (20, 3)]), {0: 0, 9: 0, 10: 1, 19: 1, 20: 3, 1e6: 3}),
    (Steps(points=[(10, 1), (20, 3)], repeat_s=30), {0: 0, 10: 1, 29: 3, 30: 3, 39: 3, 40: 1, 50: 3, 70: 1}),
    (Sine(mean=2, amplitude=1, period_s=40), {0: 2, 10: 3, 30: 1, 40: 2}),
    (Sine(mean=0.5, amplitude=1, period_s=40, phase=0.25), {0: 1.5, 20: 0, 40: 1.5}),
    (Trace(values=[1, 2, 3], interval_s=10, scale=2), {0: 2, 9: 2, 10: 4, 29: 6, 30: 2, 45: 4}),
    (Trace(values=[1, 2], interval_s=10, repeat=False), {0: 1, 10: 2, 20: 2, 1e6: 2}),
]


@pytest.mark.parametrize(("signal", "expected"), CASES)
def test_a_signal_has_its_values(signal: Signal, expected: dict[float, float]) -> None:
    demand = Demand([0.0, signal])
    assert {time: demand.at(time)[1] for time in expected} == pytest.approx(expected, abs=1e-9)


def test_times_may_be_skipped() -> None:
    """Asked rarely or each second, the value at a time is the same."""
    signals = [signal for signal, _ in CASES]
    often, rarely = Demand(signals), Demand(signals)
    seen = {second: often.at(second).tolist() for second in range(200)}
    for second in (0, 7, 40, 41, 133, 199):
        assert rarely.at(second).tolist() == seen[second]


def test_no_signals_are_no_values() -> None:
    assert Demand([]).at(math.pi).size == 0
