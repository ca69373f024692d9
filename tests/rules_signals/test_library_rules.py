"""The rules that virtpilot ships, as a whole; what each one does is shown by the tests beside it."""

from __future__ import annotations

from pathlib import Path

from virtpilot.model import Kind, Mode
from virtpilot.rules import language
from virtpilot.rules.language import check, load

LIBRARY = Path(language.__file__).parents[1] / "library"
RULES = {rule.name: rule for rule in load([LIBRARY]).rules}


def test_they_load_clean_and_only_observe() -> None:
    assert check([LIBRARY]) == []
    assert {rule.mode for rule in RULES.values()} == {Mode.OBSERVE}
    assert all(rule.about for rule in RULES.values())


def test_there_is_one_for_what_operators_keep_on() -> None:
    assert len(RULES) >= 20
    assert {rule.on for rule in RULES.values()} == set(Kind)
    assert all(name.split("-")[0] in {"vm", "host", "cluster"} for name in RULES)
    assert all(rule.on.value == name.split("-")[0] for name, rule in RULES.items())


def test_what_sets_a_knob_or_moves_has_an_effect_that_is_looked_for_and_a_cooldown() -> None:
    acting = [rule for rule in RULES.values() if rule.remedies]
    assert acting
    for rule in acting:
        assert all(remedy.expect is not None for remedy in rule.remedies)
        assert rule.cooldown_ns > 0
