"""How old the inputs of a condition are: the host's sample, and those of the guests and hosts that it sums up."""

from __future__ import annotations

import pytest

from tests.rules_signals.reference import START_NS, host, vm
from virtpilot.model import Kind
from virtpilot.rules.language.expression import condition
from virtpilot.rules.language.records import RuleSet
from virtpilot.rules.signals.ages import read_times
from virtpilot.rules.signals.evaluator import Evaluator

OWN = "cpu_steal_ratio > 10%"


def read(text: str, on: Kind = Kind.VM, who: str = "g1", ratio: float = 0.2) -> dict[str, float]:
    """Return each input with its time in seconds, of two hosts and five guests that were measured at other times."""
    evaluator = Evaluator(RuleSet(()))
    for at_s, sample in (
        (5, host("h1", 5, 0.9)),
        (50, host("h2", 50, 0.1)),
        *((10 * n, vm(f"g{n}", 10 * n, 0.1)) for n in range(1, 6)),
        (90, vm("g9", 90, 0.1, on="h2")),
    ):
        evaluator.feed([sample], f"m{at_s}")
    found = read_times(evaluator.world, condition(text, on), who, ratio)
    return {what: (time_ns - START_NS) / 1e9 for what, time_ns in found}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (OWN, {}),
        ("host.cpu_usage_ratio > 80%", {"the host's newest sample": 5}),
        (f"{OWN} and avg(host.cpu_usage_ratio, 5m) > 80%", {"the host's newest sample": 5}),
    ],
)
def test_what_a_rule_about_guests_reads(text: str, found: dict[str, float]) -> None:
    assert read(text) == found


def test_a_rule_about_a_host_sums_up_its_own_guests() -> None:
    told = "a sample of the 5 guests that the rule sums up"
    assert read("sum(vms.cpu_steal_ratio) > 1", Kind.HOST, "h1") == {told: 20}
    assert read("sum(vms.cpu_steal_ratio) > 1", Kind.HOST, "h1", ratio=0.0) == {told: 10}
    assert read("sum(vms.cpu_steal_ratio) > 1", Kind.HOST, "h1", ratio=1.0) == {told: 50}


def test_of_whom_nothing_is_known_nothing_is_read() -> None:
    assert read("host.cpu_usage_ratio > 80%", who="nobody") == {}
