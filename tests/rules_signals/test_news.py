"""What samples say waits until a window is read, and what is said again moves no bound: nobody sees either."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest

from tests.rules_signals.reference import START_NS
from tests.rules_signals.test_bounds import both, rules_of
from virtpilot.clock import seconds
from virtpilot.model import Kind, Sample
from virtpilot.rules.language.typed import Window
from virtpilot.rules.signals.evaluator import Evaluator


class Guest:
    """One guest with a rule that is not looked at, and the rule's window."""

    def __init__(self, window: str, than: str = "50%") -> None:
        self._rules = rules_of([f"cpu_usage_ratio > 90% and {window} > {than}"])
        self.evaluator = Evaluator(self._rules)
        self._time_ns = START_NS

    @property
    def begins(self) -> bool:
        """Tell whether the last sample was the first of two in a step of 20 s."""
        return self._time_ns // seconds(10) % 2 == 0

    @property
    def window(self) -> Window:
        (found,) = self._rules.rules[0].when.reads.windows.values()
        return found

    def says(self, values: Iterable[float], guest: str = "a") -> None:
        """Let it be measured every ten seconds."""
        for value in values:
            self._time_ns += seconds(10)
            tags = {"cluster": "c", "host": "h1", "vm": guest, "name": guest}
            fields = {"cpu_usage_ratio": 0.1, "cpu_steal_ratio": value}
            self.evaluator.feed([Sample("vm", tags, fields, self._time_ns)], "m")

    def move(self) -> None:
        """Set all clocks forward."""
        self.evaluator.move(seconds(1000))
        self._time_ns += seconds(1000)

    def bound(self) -> float:
        """Return what the window does not exceed, as far as that is known without a look at it."""
        with np.errstate(all="ignore"):
            return float(self.evaluator.world.windows.bound(self.window, np.array([0]), upper=True)[0])

    def both(self) -> tuple[float, float]:
        """Return the window's bound, and its value."""
        return both(self.evaluator, self.window, 0, upper=True)


def test_many_samples_of_a_guest_wait_and_are_all_counted() -> None:
    guest = Guest("avg(cpu_steal_ratio, 10m)")
    guest.says([0.1, 0.2, 0.3] * 15)
    assert guest.both()[1] == pytest.approx(0.2)
    guest.says([0.5])
    assert guest.both()[1] == pytest.approx((0.2 * 45 + 0.5) / 46)


def test_what_waits_knows_how_much_was_read_of_it() -> None:
    guest = Guest("count(cpu_steal_ratio, 10m)", "5")
    for count in range(40, 50):
        guest.says([0.1] * (40 if count == 40 else 1))
        assert guest.both()[1] == count


def test_a_number_again_may_be_more_than_the_mean_that_it_was_part_of() -> None:
    guest = Guest("avg(cpu_steal_ratio, 40m)")
    guest.says([0.1] * 240)
    guest.says([0.9] if guest.begins else [0.1, 0.9])
    guest.both()
    assert guest.bound() < 0.6  # the newest point is the mean of two samples
    guest.says([0.9] * 200)
    bound, found = guest.both()
    assert 0.6 < found <= bound


def test_of_a_past_that_was_moved_the_next_sample_tells_also_where_it_says_the_same() -> None:
    guest = Guest("min(cpu_steal_ratio, 10m)")
    guest.says([0.1] * 100)
    guest.move()
    assert guest.bound() == np.inf
    guest.says([0.1])
    assert guest.bound() == pytest.approx(0.1, rel=1e-4)


def test_a_guest_in_the_place_of_one_that_is_gone_may_say_what_that_one_said() -> None:
    guest = Guest("avg(cpu_steal_ratio, 10m)")
    guest.says([0.9] * 100)
    guest.evaluator.world.remove(Kind.VM, "a")
    guest.says([0.9] * 100, guest="b")
    assert guest.evaluator.world.tables[Kind.VM].row_of == {"b": 0}
    bound, found = guest.both()
    assert found == pytest.approx(0.9)
    assert found <= bound


def test_a_forecast_is_another_one_with_each_sample_whatever_that_says() -> None:
    guest = Guest("forecast(cpu_steal_ratio, 10m, 10m)")
    guest.says(0.9 - 0.01 * at for at in range(60))
    for _ in range(5):
        guest.says([0.9])
        before = guest.bound()
        guest.says([0.9])
        bound, found = guest.both()
        assert before < found <= bound
        assert bound == pytest.approx(found, abs=1e-4)
