"""Who is near a threshold: exactly those that relaxed thresholds would catch, negation and all."""

from __future__ import annotations

import random
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.thoroughness import examples
from virtpilot.clock import SECOND
from virtpilot.model import Kind, Sample
from virtpilot.rules.language.expression import condition
from virtpilot.rules.language.records import Rule, RuleSet
from virtpilot.rules.signals.evaluator import Evaluator
from virtpilot.rules.signals.nearness import Nearness, relaxed

T0 = 1_700_000_000 * SECOND
FIELDS = ("cpu_steal_ratio", "cpu_usage_ratio", "memory_used_ratio", "vcpus_count")


def measured(when: str, guests: Mapping[str, Mapping[str, float]], where: str = "") -> tuple[Evaluator, Rule]:
    rule = Rule(
        name="r", on=Kind.VM, when=condition(when, Kind.VM), digest="d",
        where=condition(where, Kind.VM) if where else None,
    )  # fmt: skip
    made = Evaluator(RuleSet((rule,)), also={"vm": FIELDS, "host": ["cpu_usage_ratio"]})
    for second in range(0, 100, 10) if "1m" in when else [0]:
        now_ns = T0 + second * SECOND
        host = Sample("host", {"host": "h1"}, {"cpu_usage_ratio": 0.8}, now_ns)
        samples = [
            Sample("vm", {"host": "h1", "vm": guest, "name": guest, "tier": guest[0]}, dict(fields), now_ns)
            for guest, fields in guests.items()
        ]
        made.feed([host, *samples], "c")
    return made, rule


def close_to(when: str, margin: float, guests: Mapping[str, Mapping[str, float]], where: str = "") -> set[str]:
    made, rule = measured(when, guests, where)
    return Nearness((rule,), margin).near(made.world)


def steal(**values: float) -> dict[str, dict[str, float]]:
    return {guest: {"cpu_steal_ratio": value} for guest, value in values.items()}


@pytest.mark.parametrize(("when", "caught"), [
    ("cpu_steal_ratio > 10%", {"c", "d"}),
    ("cpu_steal_ratio >= 12.5%", {"d"}),
    ("10% < cpu_steal_ratio", {"c", "d"}),
    ("cpu_steal_ratio < 5%", {"a", "b"}),
    ("cpu_steal_ratio == 8%", {"c"}),
    ("cpu_steal_ratio != 9%", {"a", "b", "d"}),
    ("not cpu_steal_ratio < 10%", {"c", "d"}),
    ("not (cpu_steal_ratio < 10% or cpu_steal_ratio > 9.5%)", {"c"}),
    ("not not cpu_steal_ratio > 10%", {"c", "d"}),
    ("cpu_steal_ratio > 10% and host.cpu_usage_ratio > 95%", {"c", "d"}),
    ("cpu_steal_ratio > 10% and host.cpu_usage_ratio > 100%", set()),
    ("cpu_steal_ratio > 10% or tags.tier == \"a\"", {"a", "c", "d"}),
    ("cpu_steal_ratio / 2 > 5%", {"c", "d"}),
    ("cpu_steal_ratio > host.cpu_usage_ratio / 8", {"c", "d"}),
    ("cpu_steal_ratio > 0", {"a", "b", "c", "d"}),
    ("cpu_steal_ratio > 10% and memory_used_ratio > 1%", set()),
])  # fmt: skip
def test_a_threshold_relaxed_by_a_fifth(when: str, caught: set[str]) -> None:
    assert close_to(when, 0.2, steal(a=0.01, b=0.06, c=0.09, d=0.12)) == caught


def test_where_a_rule_does_not_apply_nobody_is_near() -> None:
    assert close_to("cpu_steal_ratio > 10%", 0.2, steal(a=0.5, b=0.5), 'tags.tier != "a"') == {"b"}


def test_a_window_is_relaxed_as_a_field_is() -> None:
    assert close_to("avg(cpu_steal_ratio, 1m) > 10%", 0.2, steal(a=0.07, b=0.09)) == {"b"}


def test_without_guests_and_of_hosts_there_is_nobody() -> None:
    assert close_to("cpu_steal_ratio > 10%", 0.2, {}) == set()


WINDOWED = (
    "forecast(cpu_steal_ratio, 1m, 1m) > 60% and memory_used_ratio > 10%", "forecast(cpu_steal_ratio, 1m, 1m) < 20%",
    "min(cpu_steal_ratio, 1m) > 50%", "flaps(cpu_steal_ratio > 40%, 1m) > 2 and avg(cpu_steal_ratio, 1m) < 90%",
    "cpu_steal_ratio > 50% and 50% >= memory_used_ratio", "cpu_steal_ratio == 50%", "cpu_steal_ratio <= 10%",
    "not (cpu_steal_ratio < 90%)", "90% < cpu_steal_ratio or memory_used_ratio < 10%",
)  # fmt: skip


@settings(derandomize=True, deadline=None, max_examples=20)
@given(st.integers(0, 2**32), st.sampled_from(WINDOWED))
def test_what_a_window_is_at_most_loses_nobody(seed: int, when: str) -> None:
    chance = random.Random(seed)
    rule = Rule(name="r", on=Kind.VM, when=condition(when, Kind.VM), digest="d")
    made, plain = (Evaluator(RuleSet((rule,)), also={"vm": FIELDS}) for _ in range(2))
    for second in range(0, 300, 10):
        for host in ("h1", "h2"):
            samples = [
                Sample("vm", {"host": host, "vm": host + guest}, dict(zip(FIELDS[:3], values, strict=True)), at_ns)
                for guest in "abcd" for at_ns in [T0 + second * SECOND + (host == "h2")] if chance.random() < 0.9
                for values in [[round(chance.random(), 1) for _ in FIELDS[:3]]]
            ]  # fmt: skip
            made.feed(samples, "c")
            plain.feed(samples, "c")
        rows = plain.world.tables[Kind.VM].taken()
        with np.errstate(all="ignore"):
            close = np.broadcast_to(relaxed(rule.when.part, plain.world.columns(Kind.VM, rows), 0.2)[0], len(rows))
        assert Nearness((rule,), 0.2).near(made.world) == set(plain.world.tables[Kind.VM].ids(rows[close]))


comparisons = st.builds(
    lambda field, sign, number, swap: f"{number} {sign} {field}" if swap else f"{field} {sign} {number}",
    st.sampled_from(FIELDS[:3]), st.sampled_from(["<", "<=", ">", ">="]), st.sampled_from(["0%", "10%", "50%", "90%"]),
    st.booleans(),
)  # fmt: skip
conditions = st.recursive(
    comparisons,
    lambda inner: st.one_of(
        st.builds("not ({})".format, inner),
        st.builds("({}) and ({})".format, inner, inner),
        st.builds("({}) or ({})".format, inner, inner),
    ),
    max_leaves=5,
)
values = st.dictionaries(st.sampled_from(FIELDS[:3]), st.sampled_from([0.0, 0.05, 0.1, 0.11, 0.45, 0.5, 0.9, 1.0]))


@settings(derandomize=True, deadline=None, max_examples=examples(200))
@given(conditions, values, st.sampled_from([0.0, 0.1, 0.3, 1.0]))
def test_what_holds_is_near_and_a_wider_margin_never_loses_anybody(
    when: str, fields: dict[str, float], margin: float
) -> None:
    made, _rule = measured(when, {"a": fields})
    columns = made.world.columns(Kind.VM, np.array([made.world.tables[Kind.VM].row_of["a"]], np.int64))
    part = condition(when, Kind.VM).part
    exact, wide, wider = (relaxed(part, columns, one) for one in (0.0, margin, margin + 0.1))
    assert [bool(mask[0]) for mask in exact] == [bool(mask[0]) for mask in part.truth(columns)]
    assert not exact[0][0] or wide[0][0]
    assert not wide[0][0] or wider[0][0]
    assert not (wide[0][0] and wide[1][0])
