"""Guards without a memory, each alone; and the cooldowns after a knob went up and down."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from tests.guards.asked import FREE, ROOMY, Story, at
from virtpilot.actuators.guards.options import Bounds, GuardOptions
from virtpilot.actuators.guards.request import Input
from virtpilot.clock import seconds

LEAST = "virtpilot_least_cpu_shares"
FLOOR = (200, 2**63 - 1, f"the guest's tag {LEAST}")
SHARES: dict[str, Any] = {"knob": "cpu_shares", "current": 1024}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"value": 100}, ""),
        ({"value": 99}, "cpu_shares would be 99, the config wants 100 at least"),
        ({"value": 4096}, ""),
        ({"value": 4097}, "cpu_shares would be 4097, the config wants 4096 at most"),
        ({"value": 150, "bounds": (FLOOR,)}, f"cpu_shares would be 150, the guest's tag {LEAST} wants 200 at least"),
        ({"value": 90, "current": 50}, ""),
        ({"value": 40, "current": 50}, "cpu_shares would be 40, the config wants 100 at least"),
        ({"value": 5000, "current": 6000}, ""),
        ({"value": 7000, "current": 6000}, "cpu_shares would be 7000, the config wants 4096 at most"),
        ({"knob": "memory", "value": 1}, ""),
        ({"knob": "", "value": 0, "current": 0}, ""),
    ],
)
def test_floors_and_caps(changes: dict[str, Any], reason: str) -> None:
    """What somebody else has put outside may be brought back in steps, and not further out."""
    story = Story(replace(FREE, bounds={"cpu_shares": Bounds(least=100, most=4096)}))
    refusal = story.ask(0, **{**SHARES, **changes})
    assert (refusal.reason if refusal else "") == reason
    assert refusal is None or refusal.guard == "bounds"


def test_bounds_that_nothing_is_within_are_refused_in_the_config() -> None:
    with pytest.raises(msgspec.ValidationError, match="least is above most"):
        msgspec.convert({"bounds": {"cpu_shares": {"least": 2, "most": 1}}}, GuardOptions)


@pytest.mark.parametrize("changes", [{}, {"target": "host-2"}, {**SHARES, "value": 512}])
def test_nothing_is_done_to_the_engines_own_machine(changes: dict[str, Any]) -> None:
    refusal = Story().ask(0, engine="its tag virtpilot_engine", **changes)
    assert refusal is not None
    assert (refusal.guard, refusal.reason) == (
        "own-machine",
        "virtpilot itself runs on this guest (its tag virtpilot_engine)",
    )


@pytest.mark.parametrize(
    ("view", "reason"),
    [
        ({}, ""),
        (None, "host-2 is not there, or takes no guests"),
        ({"online": False}, "host-2 is not there, or takes no guests"),
        ({"time_ns": at(-31)}, "the measurements of host-2 are 31 s off, 30 s at most"),
        ({"time_ns": at(31)}, "the measurements of host-2 are 31 s off, 30 s at most"),
        ({"vcpus": 9}, "host-2 has 8 CPUs for 9 vCPUs"),
        ({"memory_free_bytes": 2**29 - 1}, "host-2 would have 511 MiB of memory free, 512 MiB have to be"),
    ],
)
def test_a_target_must_be_fit(view: dict[str, Any] | None, reason: str) -> None:
    seen = None if view is None else replace(ROOMY, **view)
    refusal = Story(replace(FREE, max_sample_age_s=30)).ask(0, target="host-2", target_view=seen)
    assert (refusal.reason if refusal else "") == reason
    assert refusal is None or refusal.guard == "target"


def test_a_host_that_lacks_something_is_left_out_for_a_while() -> None:
    story = Story()
    story.guards.targets.refused("g1", "host-2", "host-2 does not offer the network blue", at(0))
    story.restart()
    refusal = story.ask(60, target="host-2")
    assert refusal is not None
    assert refusal.reason == "host-2 does not offer the network blue, and is asked again in 240 s"
    assert story.guards.targets.unfit("g1", at(60)) == {"host-2"}
    assert story.guards.targets.unfit("g2", at(60)) == frozenset()
    assert story.ask(60, target="host-3") is None
    assert story.ask(60, guest="g2", target="host-2") is None
    assert story.ask(300, target="host-2") is None
    assert story.guards.targets.unfit("g1", at(300)) == frozenset()


def test_a_host_that_goes_on_lacking_something_is_asked_ever_more_seldom_and_an_hour_at_most() -> None:
    story, second, waits = Story(), 0, []
    for _ in range(6):
        story.guards.targets.refused("g1", "host-2", "host-2 does not offer the network blue", at(second))
        asked = range(second, second + 3601, 60)
        waits.append(next(later for later in asked if story.ask(later, target="host-2") is None) - second)
        second += waits[-1]
    assert waits == [300, 600, 1200, 2400, 3600, 3600]
    story.guards.targets.forget(at(second + 3599))
    story.guards.targets.refused("g1", "host-2", "host-2 does not offer the network blue", at(second + 3599))
    assert story.ask(second + 2 * 3599, target="host-2") is not None
    second += 3599 + 3600
    story.guards.targets.forget(at(second + 3600))
    story.guards.targets.refused("g1", "host-2", "host-2 does not offer the network blue", at(second + 3600))
    assert story.ask(second + 3900, target="host-2") is None


def test_where_a_guest_is_it_need_not_go() -> None:
    refusal = Story().ask(0, target="host-1")
    assert refusal is not None
    assert refusal.reason == "the guest is on host-1 already"


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ((), ""),
        ((Input("the host's newest sample", at(-30)),), ""),
        ((Input("the host's newest sample", at(-31)),), "the host's newest sample is 31 s old, 30 s at most"),
        ((Input("a", at(0)), Input("b", at(31))), "b lies 31 s in the future"),
    ],
)
def test_every_input_must_be_fresh(inputs: tuple[Input, ...], reason: str) -> None:
    refusal = Story(replace(FREE, max_sample_age_s=30)).ask(0, inputs=inputs)
    assert (refusal.reason if refusal else "") == reason
    assert refusal is None or refusal.guard == "freshness"


def test_up_and_down_have_cooldowns_of_their_own() -> None:
    options = replace(FREE, guest_cooldown_s=10, guest_cooldown_down_s=100)
    for value, cooled_s in ((2048, 10), (512, 100)):
        story = Story(options)
        story.do(0, **SHARES, value=value)
        free = next(second for second in range(1000) if story.ask(second, rule="another") is None)
        assert free == cooled_s
    story = Story(options)
    story.do(0, **SHARES, value=512, cooldown_ns=seconds(5))
    refusal = story.ask(50)
    assert refusal is not None
    assert refusal.reason == "something was done to this guest lately (rule starved), 50 s of cooldown left"
