"""A rehearsal leaves out the ticks at which nothing can happen: what comes to be is the same to the letter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sized

import pytest

from tests.rules_testing.shipped import shipped
from virtpilot.pipeline import rule_tests
from virtpilot.pipeline.rulebook import LIBRARY
from virtpilot.rules.language import RuleSet
from virtpilot.rules.testing.coverage import Coverage
from virtpilot.rules.testing.records import RuleTest

FILES = ("cpu", "host", "memory", "guest")


def scenes() -> Iterator[tuple[RuleTest, RuleSet]]:
    for name, test, rules in shipped():
        if name in FILES and test.end_ns < 900 * 10**9:
            yield test, rules


@pytest.mark.parametrize(("test", "rules"), list(scenes()), ids=lambda one: getattr(one, "name", ""))
def test_what_comes_to_be_is_the_same(test: RuleTest, rules: RuleSet) -> None:
    sparing, thorough = rule_tests.Scene(test, rules), rule_tests.Scene(test, rules)
    ticked = thorough._rehearsal
    ticked._each_tick = True
    played = [scene.play(Coverage(rules.rules)) for scene in (sparing, thorough)]
    assert played[0].records == played[1].records


def test_ticks_are_left_out_while_nothing_fires_and_not_when_somebody_falls_silent() -> None:
    (file, rules) = rule_tests.load_all([LIBRARY / "host.test.yaml"])[0]
    scene = rule_tests.Scene(file.tests[0], rules)
    rehearsal = scene._rehearsal
    samples = scene.stage.frame(0)[file.tests[0].actors[0].host]
    rehearsal.measure(file.tests[0].actors[0].host, samples)
    ticks = []
    rehearsal.controller.tick = lambda now_ns: ticks.append((now_ns - file.tests[0].start_ns) // 10**9)  # type: ignore[method-assign]
    rehearsal.run_until(file.tests[0].start_ns + 100 * 10**9)
    assert ticks[0] == 60
    assert len(ticks) < 50


def test_ticks_are_left_out_while_a_knob_is_leased_and_nothing_is_under_way() -> None:
    gaps_s = [0.0]
    for file, rules in rule_tests.load_all([LIBRARY / "cpu.test.yaml"]):
        for test in file.tests:
            scene = rule_tests.Scene(test, rules)
            controller = scene._rehearsal.controller
            leases, tick, last = controller.pilot.decider.holdings.leases, controller.tick, [test.start_ns]

            def watched(
                now_ns: int, leases: Sized = leases, tick: Callable[[int], None] = tick, last: list[int] = last
            ) -> None:
                gaps_s.append((now_ns - last[0]) / 10**9 if leases else 0.0)
                last[0] = now_ns
                tick(now_ns)

            controller.tick = watched  # type: ignore[method-assign]
            scene.play(Coverage(rules.rules))
    assert max(gaps_s) > 5.0
