"""The tests of the shipped rules, each with its rules: read once, for each worker collects all that there are."""

from __future__ import annotations

from functools import cache

from virtpilot.pipeline import rule_tests
from virtpilot.pipeline.rulebook import LIBRARY
from virtpilot.rules.language import RuleSet
from virtpilot.rules.testing.records import RuleTest


@cache
def shipped() -> tuple[tuple[str, RuleTest, RuleSet], ...]:
    """Return each test that simulates no fleet, with its file's name before `.test.yaml`, and its rules."""
    return tuple(
        (file.path.name.removesuffix(".test.yaml"), test, rules)
        for file, rules in rule_tests.load_all([LIBRARY])
        for test in file.tests
        if test.fleet is None
    )
