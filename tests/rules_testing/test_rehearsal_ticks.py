"""A rehearsal leaves out the ticks at which nothing can happen: what comes to be is the same to the letter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sized
from pathlib import Path

import pytest

from tests.rules_testing.shipped import shipped
from virtpilot.model import Decision
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


STARVED = """
virtpilot: 1
rules:
  - {name: starved, on: vm, when: cpu_steal_ratio > 20%, mode: act, remedies: [{migrate: {to: best}}]}
"""


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ("cpu_usage_ratio: 0.95", [0, 5]),
        # Its measurements become old in between two samples of the others.
        ("cpu_usage_ratio: 0.95x1 stale", [0, 5, 115]),
        ("cpu_usage_ratio: 0.95x1 _x2 0.95", [0, 5, 115]),
        ("cpu_usage_ratio: 0.95x3 0.1", [0, 5, 205]),
    ],
)
def test_ticks_are_left_out_while_no_host_is_better(other: str, said: list[int], tmp_path: Path) -> None:
    (tmp_path / "any.yaml").write_text(STARVED)
    (tmp_path / "any.test.yaml").write_text(f"""
virtpilot: 1
tests:
  - name: any
    every: 50s
    hosts: {{busy: {{series: {{cpu_usage_ratio: 0.95}}}}, other: {{series: {{{other}}}}}}}
    guests: {{g: {{host: busy, series: {{cpu_steal_ratio: 0.3}}}}}}
    expect: [{{signal: starved, of: g, at: 5m, is: firing}}]
""")
    (file, rules) = rule_tests.load_all([tmp_path / "any.test.yaml"])[0]
    (test,) = file.tests
    played, ticks = [], []
    for every_tick in (False, True):
        scene = rule_tests.Scene(test, rules)
        controller = scene._rehearsal.controller
        scene._rehearsal._each_tick = every_tick
        tick, count = controller.tick, [0]

        def counted(now_ns: int, tick: Callable[[int], None] = tick, count: list[int] = count) -> None:
            count[0] += 1
            tick(now_ns)

        controller.tick = counted  # type: ignore[method-assign]
        played.append(scene.play(Coverage(rules.rules)).records)
        ticks += count
    assert played[0] == played[1]
    decided = [(one.at_ns - test.start_ns) // 10**9 for one in played[0] if isinstance(one, Decision)]
    assert decided == said
    assert ticks[0] < ticks[1] / 4


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
