"""The controller's guards: each alone, their order, and what they remember."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.actuators.one_host import GUEST, OTHER, at
from tests.thoroughness import examples
from virtpilot.actuators.caps import Caps
from virtpilot.actuators.guards.bucket import Budget
from virtpilot.actuators.guards.chain import Guards
from virtpilot.actuators.guards.options import GuardOptions
from virtpilot.actuators.guards.request import GuardRequest, Refusal, Target
from virtpilot.clock import seconds
from virtpilot.errors import StateError
from virtpilot.model import Mode, Result

LIMITS = GuardOptions(
    max_sample_age_s=30,
    warm_up_s=60,
    guest_cooldown_s=100,
    migrations_out=1,
    migrations_in=2,
    migrations_cluster=3,
    operation_timeout_s=500,
)
WANTED = GuardRequest(
    mode=Mode.ACT,
    rule="starved",
    cooldown_ns=seconds(600),
    rung=0,
    guest=GUEST,
    host="host-1",
    target="",
    target_view=None,
    sample_ns=at(1000),
    first_seen_ns=at(0),
    state_code=1,
)
NOW = at(1000)
ROOMY = Target(online=True, time_ns=at(1000), cpus=8, memory_free_bytes=2**30, memory_spare_bytes=2**29, vcpus=2)


@pytest.mark.parametrize("options", [GuardOptions, Caps])
def test_options_have_sound_defaults_and_meanings(options: type[GuardOptions | Caps]) -> None:
    """What the config file is made from: each option's default passes its own limits, each tells what it means."""
    assert msgspec.convert(msgspec.to_builtins(options()), options) == options()
    fields = msgspec.json.schema(options)["$defs"][options.__name__]["properties"]
    assert all(field["description"] for field in fields.values())


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        (GuardOptions, {"operation_timeout_s": 0}),
        (GuardOptions, {"warm_up_s": -1}),
        (GuardOptions, {"warmup": 1}),
        (Caps, {"cpu_shares_min": 1}),
        (Caps, {"cpu_shares_min": 9, "cpu_shares_max": 8}),
        (Caps, {"lease_max_s": 0}),
    ],
)
def test_options_out_of_their_limits(options: type[GuardOptions | Caps], wrong: dict[str, float]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(wrong, options)


def wanted(**changes: Any) -> GuardRequest:
    request = replace(WANTED, **changes)
    # A host that guests can go to, where nothing else is said of it.
    return replace(request, target_view=ROOMY) if request.target and "target_view" not in changes else request


@pytest.mark.parametrize(
    ("changes", "guard", "reason"),
    [
        ({}, "", ""),
        ({"mode": Mode.OBSERVE}, "mode", "rule starved only observes"),
        ({"mode": Mode.APPROVE}, "approval", "rule starved acts on approval only"),
        ({"mode": Mode.APPROVE, "approved": True}, "", ""),
        ({"mode": Mode.OBSERVE, "approved": True}, "mode", "rule starved only observes"),
        ({"sample_ns": at(970)}, "", ""),
        ({"sample_ns": at(969)}, "freshness", "the newest sample is 31 s old, 30 s at most"),
        ({"sample_ns": at(1030)}, "", ""),
        ({"sample_ns": at(1040)}, "freshness", "40 s in the future: the clock of host-1 is wrong"),
        ({"first_seen_ns": at(940)}, "", ""),
        ({"first_seen_ns": at(945)}, "warm-up", "measured on host-1 only just, 5 s of warm-up left"),
        ({"state_code": 2}, "", ""),
        ({"state_code": 3}, "state", "the guest is paused, not running"),
        ({"state_code": 5}, "state", "the guest is shut off, not running"),
        ({"state_code": 99}, "state", "the guest is in state 99, not running"),
    ],
)
def test_guards_without_memory(changes: dict[str, Any], guard: str, reason: str) -> None:
    """Each lets through what it should and says in words why it does not."""
    refusal = Guards(LIMITS).check(wanted(**changes), NOW)
    assert (refusal.guard if refusal else "") == guard
    assert reason in (refusal.reason if refusal else "")


Repair = Callable[[Guards, GuardRequest], GuardRequest]


def repaired(**changes: Any) -> Repair:
    return lambda _guards, request: replace(request, **changes)


def answered(guards: Guards, request: GuardRequest) -> GuardRequest:
    guards.finished("cm-9", at(1010), Result.REFUSED)
    return request


def closed(guards: Guards, request: GuardRequest) -> GuardRequest:
    guards.breakers.effect("starved", Result.EFFECTIVE, NOW)
    return request


def released(guards: Guards, request: GuardRequest) -> GuardRequest:
    guards.stopped.why = ""
    return request


# In their order: when each guard speaks, and what satisfies it.
STEPS: dict[str, tuple[float, Repair]] = {
    "stopped": (1001, released),
    "mode": (1001, repaired(mode=Mode.APPROVE)),
    "calendar": (1001, repaired()),
    "opt-out": (999, repaired(opt_out="")),
    "own-machine": (999, repaired(engine="")),
    "freshness": (999, repaired(sample_ns=NOW)),
    "warm-up": (999, repaired(first_seen_ns=at(0))),
    "state": (999, repaired(state_code=1)),
    "bounds": (999, repaired(knob="", bounds=())),
    "cooldown": (999, repaired(rung=1)),
    "budget": (999, repaired(budgets=())),
    "breaker": (999, closed),
    "foreign-change": (999, repaired()),
    "oscillation": (1010, repaired(target="host-4")),
    "target": (1010, repaired(target_view=ROOMY)),
    "concurrency": (1010, answered),
    "approval": (1010, repaired(approved=True)),
}


def test_the_order_of_the_chain() -> None:
    """With everything wrong at once the guards speak in their order, one after the other as each is satisfied."""
    guards = Guards(replace(LIMITS, freezes=["Tue 22:30-23:00"], breaker_failures=1, foreign_backoff_s=60))
    spent = (Budget("rule", 1, seconds(3600), "starved"),)
    away = wanted(target="host-2", budgets=spent, effect_ns=1)
    guards.started(replace(away, host="host-3", target="host-1"), "cm-1", NOW)
    guards.finished("cm-1", at(999))
    guards.breakers.effect("starved", Result.INEFFECTIVE, at(999))
    guards.started(replace(away, budgets=()), "cm-9", at(999))
    guards.foreign.noticed(GUEST, "moved it", at(950), at(950))
    guards.stopped.why = "stopped by ann"
    request = replace(
        away,
        mode=Mode.OBSERVE,
        opt_out="virtpilot_ignore",
        engine="its tag",
        sample_ns=at(0),
        first_seen_ns=NOW,
        state_code=5,
        knob="cpu_shares",
        value=1,
        current=2,
        bounds=((2, 4, "somebody"),),
        target="host-3",
        target_view=replace(ROOMY, online=False),
    )
    assert guards.names == tuple(STEPS)
    unfrozen = Guards(replace(LIMITS, foreign_backoff_s=60))
    for guard, (second, repair) in STEPS.items():
        if guard == "oscillation":
            unfrozen.restore(msgspec.json.decode(msgspec.json.encode(guards.saved())))
            guards = unfrozen
        refusal = guards.check(request, at(second))
        assert refusal is not None
        assert refusal.guard == guard, refusal.reason
        request = repair(guards, request)
    assert guards.check(request, at(1010)) is None


def later(guards: Guards, second: float, **changes: Any) -> Refusal | None:
    """Check at a time with everything fresh."""
    return guards.check(wanted(sample_ns=at(second), **changes), at(second))


def test_a_rules_cooldown_counts_from_its_outcome() -> None:
    guards = Guards(LIMITS)
    guards.started(WANTED, "cm-1", NOW)
    guards.finished("cm-1", at(1010))
    refusal = later(guards, 1500)
    assert refusal == Refusal("cooldown", "rule starved helped this guest lately, 110 s of cooldown left")
    assert later(guards, 1609.9) is not None
    assert later(guards, 1610) is None


def test_a_guests_cooldown_holds_for_all_rules() -> None:
    guards = Guards(LIMITS)
    guards.started(WANTED, "cm-1", NOW)
    guards.finished("cm-1", at(1010))
    refusal = later(guards, 1050, rule="another")
    assert refusal == Refusal(
        "cooldown", "something was done to this guest lately (rule starved), 60 s of cooldown left"
    )
    assert later(guards, 1110, rule="another") is None
    assert later(guards, 1050, guest=OTHER) is None


@pytest.mark.parametrize(
    ("changes", "passes"),
    [
        ({"rung": 1}, True),
        ({"rung": 2, "target": "host-2"}, True),
        ({"rung": 0}, False),
        ({"rung": 1, "rule": "another"}, False),
    ],
)
def test_the_rungs_of_one_ladder_follow_at_once(changes: dict[str, Any], passes: bool) -> None:
    """A later rung is the same remedy; another rule's later rung is not."""
    guards = Guards(LIMITS)
    guards.started(WANTED, "cm-1", NOW)
    guards.finished("cm-1", at(1010))
    assert (later(guards, 1020, **changes) is None) is passes


def test_what_was_refused_on_the_host_needs_no_cooldown() -> None:
    guards = Guards(LIMITS)
    guards.started(WANTED, "cm-1", NOW)
    guards.finished("cm-1", at(1010), Result.REFUSED)
    assert later(guards, 1011) is None


def test_one_operation_a_guest() -> None:
    guards = Guards(LIMITS)
    guards.started(WANTED, "cm-1", NOW)
    refusal = later(guards, 1010, rule="another", rung=1)
    assert refusal == Refusal("concurrency", "cm-1 on this guest is under way since 10 s")
    guards.finished("unknown", at(1010))
    assert later(guards, 1010, rule="another", rung=1) == refusal


@pytest.mark.parametrize(
    ("moves", "target", "reason"),
    [
        ([("host-1", "host-2")], "host-3", "1 migrations out of host-1 are under way, 1 at most"),
        ([("host-4", "host-2"), ("host-5", "host-2")], "host-2", "2 migrations to host-2 are under way, 2 at most"),
        ([("host-4", "host-2"), ("host-5", "host-6")], "host-2", ""),
        (
            [("host-4", "host-2"), ("host-5", "host-6"), ("host-7", "host-8")],
            "host-9",
            "3 migrations in the cluster are under way, 3 at most",
        ),
        ([("host-1", "")], "host-2", ""),
        ([("host-1", "host-2")], "", ""),
    ],
)
def test_how_many_move_at_once(moves: list[tuple[str, str]], target: str, reason: str) -> None:
    """Per source, per target, in the cluster; other operations neither count nor are held up."""
    guards = Guards(LIMITS)
    for number, (host, goal) in enumerate(moves):
        guards.started(wanted(guest=f"guest-{number}", host=host, target=goal), f"cm-{number}", NOW)
    refusal = later(guards, 1001, target=target)
    assert refusal == (Refusal("concurrency", reason) if reason else None)


def test_what_is_on_its_way() -> None:
    guards = Guards(LIMITS)
    guards.started(wanted(target="host-2"), "cm-1", NOW)
    guards.started(wanted(guest=OTHER), "cm-2", NOW)
    assert dict(guards.migrations()) == {"host-1": 1, "host-2": 1}
    assert list(guards.incoming()) == [(GUEST, "host-2")]
    guards.finished("cm-1", NOW)
    assert (dict(guards.migrations()), list(guards.incoming())) == ({}, [])


@pytest.mark.parametrize("second", [1501, -1000], ids=["for too long", "since a clock was set back"])
def test_an_outcome_that_never_comes_is_not_waited_for(second: float) -> None:
    """A dead agent does not block its guests and its place for ever."""
    guards = Guards(LIMITS)
    guards.started(wanted(target="host-2"), "cm-1", NOW)
    assert later(guards, 1500) is not None
    assert guards.check(wanted(sample_ns=at(second), first_seen_ns=at(-5000)), at(second)) is None
    assert list(guards.incoming()) == []


def test_memory_survives_a_restart() -> None:
    """Through JSON and back: what is in flight and every cooldown."""
    guards = Guards(LIMITS)
    guards.started(WANTED, "cm-1", NOW)
    guards.finished("cm-1", NOW)
    guards.started(wanted(guest=OTHER, target="host-2"), "cm-2", NOW)
    again = Guards(LIMITS)
    again.restore(msgspec.json.decode(msgspec.json.encode(guards.saved())))
    assert again.saved() == guards.saved()
    for changes in ({}, {"rule": "another"}, {"guest": OTHER}, {"guest": "third", "target": "host-3"}):
        refusal = later(guards, 1010, **changes)
        assert refusal is not None
        assert later(again, 1010, **changes) == refusal


@pytest.mark.parametrize("saved", [None, [], {}, {"in_flight": {}}, {"in_flight": {"a": 1}, "rules": {}, "guests": {}}])
def test_what_is_no_snapshot_changes_nothing(saved: object) -> None:
    guards = Guards(LIMITS)
    guards.started(WANTED, "cm-1", NOW)
    with pytest.raises(StateError, match="saved guards are not readable"):
        guards.restore(saved)
    assert later(guards, 1001) is not None


def test_memory_does_not_grow() -> None:
    """Past cooldowns are forgotten."""
    guards = Guards(LIMITS)
    for number in range(100):
        guards.started(wanted(guest=f"guest-{number}"), f"cm-{number}", NOW)
        guards.finished(f"cm-{number}", NOW)
    assert later(guards, 10_000) is None
    assert not any(guards.saved().values())


steps = st.lists(
    st.tuples(
        st.integers(0, 5), st.integers(0, 3), st.integers(0, 3), st.sampled_from([0, 1, 50, 700]), st.integers(0, 9)
    ),
    max_size=40,
)


@settings(derandomize=True, deadline=None, max_examples=examples(100))
@given(steps)
def test_limits_hold_whatever_is_wanted(wants: list[tuple[int, int, int, int, int]]) -> None:
    """If only what was let through is started: no limit is ever passed, no guest is acted on twice in its cooldown."""
    guards, second = Guards(LIMITS), 1000
    acted: dict[str, int] = {}
    for number, (guest, host, target, wait_s, ends) in enumerate(wants):
        second += wait_s
        guards.finished(f"cm-{ends}", at(second))
        request = wanted(
            guest=f"guest-{guest}", host=f"host-{host}", target=f"host-{target}" if target else "", sample_ns=at(second)
        )
        if guards.check(request, at(second)) is None:
            assert second - acted.get(request.guest, -(10**6)) >= 100
            acted[request.guest] = second
            guards.started(request, f"cm-{number}", at(second))
        moves = [flight for flight in guards.saved()["in_flight"].values() if flight.target]
        assert len(moves) <= 3
        assert all(sum(move.host == f"host-{each}" for move in moves) <= 1 for each in range(4))
        assert all(sum(move.target == f"host-{each}" for move in moves) <= 2 for each in range(4))
