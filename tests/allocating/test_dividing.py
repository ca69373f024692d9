"""Dividing a host in the production controller, in virtual time: one decision, a command and a lease for each guest."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from virtpilot.action import Divide, ReleaseKnob, SetKnob
from virtpilot.actuators.guards.options import GuardOptions
from virtpilot.clock import SECOND
from virtpilot.model import Command, Decision, Outcome, Result, Sample
from virtpilot.pipeline.rehearsal import Rehearsal
from virtpilot.pipeline.standin import Reply
from virtpilot.rules.language import load

GIB = 2**30
START = 1_700_000_000 * SECOND
RULE = """
virtpilot: 1
rules:
  - name: divided
    on: host
    when: cpu_usage_ratio > 90%
    mode: act
    priority: 40
    cooldown: 10m
    {more}
    remedies:
      - allocate: {{{allocate}}}
        lease: 15m
        {expect}
"""
OTHER = """
  - name: helped
    on: vm
    where: tags.name == "web"
    when: cpu_steal_ratio > 10%
    mode: act
    priority: 80
    remedies:
      - set: {cpu_shares: 4096}
        lease: 1h
"""


class Guest(msgspec.Struct):
    """What is measured of a guest; usage and steal are of all its vCPUs, in cores."""

    vcpus: int
    used: float
    lacked: float = 0.0
    balloon: int = 4 * GIB
    usable: int = 2 * GIB
    tags: dict[str, str] = {}


def house() -> dict[str, Guest]:
    """Four cores, all busy: a guest that wants more, one that has what it wants, one that idles."""
    return {
        "batch": Guest(vcpus=4, used=2.0, lacked=2.0),
        "web": Guest(vcpus=2, used=2.0, usable=GIB),
        "idle": Guest(vcpus=2, used=0.0, usable=3 * GIB),
    }


class Site:
    """One host whose guests' knobs are as the commands leave them."""

    def __init__(
        self, folder: Path, allocate: str, *, guests: dict[str, Guest] | None = None, others: str = "", **words: str
    ) -> None:
        path = folder / "rules.yaml"
        text = RULE.format(allocate=allocate, more=words.get("more", ""), expect=words.get("expect", ""))
        path.write_text(text + others)
        self.guests = guests or house()
        self.site = Rehearsal(load([path]), START, lambda _command: Reply(), guards=GuardOptions(warm_up_s=0))

    def measure(self) -> None:
        now_ns = self.site.clock.now_ns()
        host = {"cpu_usage_ratio": 0.99, "cpus_count": 4, "memory_total_bytes": 64 * GIB}
        samples = [Sample("host", {"host": "host-1"}, {**host, "memory_available_bytes": 4 * GIB}, now_ns)]
        for name, guest in self.guests.items():
            tags = {"host": "host-1", "vm": f"uuid-{name}", "name": name, **guest.tags}
            fields = {
                "state_code": 1,
                "vcpus_count": guest.vcpus,
                "cpu_usage_ratio": guest.used / guest.vcpus,
                "cpu_steal_ratio": guest.lacked / guest.vcpus,
                "memory_balloon_bytes": self.knob(name, "memory_balloon", guest.balloon),
                "memory_available_bytes": guest.balloon,
                "memory_usable_bytes": guest.usable,
                "memory_max_bytes": 8 * GIB,
            }
            samples.append(Sample("vm", tags, fields, now_ns))
            samples += [
                Sample("knob", {**tags, "knob": knob}, {"value_count": self.knob(name, knob, usual)}, now_ns)
                for knob, usual in (("cpu_shares", 1024), ("memory_balloon", guest.balloon))
            ]
        self.site.measure("host-1", samples)

    def knob(self, name: str, knob: str, usual: int) -> int:
        return self.site.agents.knobs.get((f"uuid-{name}", knob), usual)

    def play(self, seconds: int) -> None:
        until_ns = self.site.clock.now_ns() + seconds * SECOND
        while self.site.clock.now_ns() < until_ns:
            self.measure()
            self.site.run_until(self.site.clock.now_ns() + 5 * SECOND)

    def values(self, knob: str) -> dict[str, int]:
        return {
            guest.removeprefix("uuid-"): value for (guest, of), value in self.site.agents.knobs.items() if of == knob
        }

    def decisions(self, *, accepted: bool) -> list[Decision]:
        found = [one for one in self.site.records() if isinstance(one, Decision) and one.accepted is accepted]
        return [one for one in found if one.rule == "divided"]

    def commands(self, kind: type) -> list[Command]:
        found = [one for one in self.site.records() if isinstance(one, Command)]
        return [one for one in found if isinstance(one.action, kind) and one.rule == "divided"]


@pytest.mark.parametrize(
    ("policy", "cores"),
    [
        # in proportion to 4 : 2 : 0, the idle one at its floor
        ("demand", {"batch": 3.95 * 4 / 6, "web": 3.95 * 2 / 6, "idle": 0.05}),
        ("utilisation", {"batch": 3.95 / 2, "web": 3.95 / 2, "idle": 0.05}),
        ("capacity", {"batch": 2, "web": 1, "idle": 1}),
        ("max-min", {"batch": 1.975, "web": 1.975, "idle": 0.05}),
    ],
)
def test_the_parts_become_shares_as_one_decision(tmp_path: Path, policy: str, cores: dict[str, float]) -> None:
    site = Site(tmp_path, f"policy: {policy}, resource: cpu")
    site.play(60)
    shares = {name: round(1024 * 3 * part / 4) for name, part in cores.items()}
    (decision,) = site.decisions(accepted=True)
    assert isinstance(decision.action, Divide)
    assert site.values("cpu_shares") == {name: value for name, value in shares.items() if value != 1024}
    commands = site.commands(SetKnob)
    assert {command.cause for command in commands} == {decision.id}
    assert len(commands) == len(decision.action.sets) == len(site.values("cpu_shares"))
    assert decision.reason.startswith(f"cpu by {policy}: batch {cores['batch']:.2f}, idle")


def test_all_is_given_back_when_the_leases_end(tmp_path: Path) -> None:
    site = Site(tmp_path, "policy: demand, resource: cpu")
    site.play(60)
    assert len(site.values("cpu_shares")) == 3
    site.site.run_until(START + 1000 * SECOND)
    assert set(site.values("cpu_shares").values()) == {1024}


@pytest.mark.parametrize("again", ["no other", "another"])
def test_a_guest_whose_part_stays_keeps_it_while_the_division_lasts(tmp_path: Path, again: str) -> None:
    """After the cooldown the host is divided again: the same, or others get more; 15 minutes after the first time."""
    site = Site(tmp_path, "policy: demand, resource: cpu")
    site.play(60)
    first = site.values("cpu_shares")
    if again == "another":
        site.guests["web"].lacked = 2.0
    site.play(1000)
    second = site.values("cpu_shares")
    assert (second == first) is (again == "no other")
    assert second["idle"] == first["idle"] != 1024
    assert not [one for one in site.site.records() if isinstance(one, Outcome) and one.result is Result.REVERTED]
    assert len(site.commands(SetKnob)) == 6, "each guest's lease was renewed"


def test_all_is_given_back_when_the_effect_does_not_come(tmp_path: Path) -> None:
    site = Site(tmp_path, "policy: demand, resource: cpu", expect="expect: cpu_usage_ratio < 50% within 1m")
    site.play(120)
    results = {one.result for one in site.site.records() if isinstance(one, Outcome)}
    assert {Result.DONE, Result.INEFFECTIVE, Result.REVERTED} <= results
    released = {command.action.guest for command in site.commands(ReleaseKnob)}
    assert released == {f"uuid-{name}" for name in house()}
    assert set(site.values("cpu_shares").values()) == {1024}


def test_a_guest_that_opted_out_keeps_what_it_has_and_the_others_share_the_rest(tmp_path: Path) -> None:
    guests = house()
    guests["web"].tags = {"virtpilot_ignore": "yes"}
    site = Site(tmp_path, "policy: capacity, resource: cpu", guests=guests)
    site.play(30)
    # web uses 2 of the 4 cores: the other 2 are divided 4 : 2
    assert site.values("cpu_shares") == {"batch": round(2048 * 2 / 3), "idle": round(2048 / 3)}


def test_a_knob_that_another_rule_holds_is_left_to_it(tmp_path: Path) -> None:
    guests = house()
    guests["web"].lacked = 0.5
    site = Site(tmp_path, "policy: capacity, resource: cpu", guests=guests, others=OTHER, more="for: 30s")
    site.play(120)
    assert site.values("cpu_shares")["web"] == 4096
    assert {command.action.guest for command in site.commands(SetKnob)} == {"uuid-batch", "uuid-idle"}


def test_a_knob_that_a_division_holds_is_not_taken_by_a_lesser_rule(tmp_path: Path) -> None:
    guests = house()
    site = Site(tmp_path, "policy: demand, resource: cpu", guests=guests, others=OTHER.replace("80", "20"))
    site.play(30)
    held = site.values("cpu_shares")["web"]
    guests["web"].lacked = 0.5
    site.play(120)
    assert site.values("cpu_shares")["web"] == held
    reasons = [one.reason for one in site.site.records() if isinstance(one, Decision) and one.rule == "helped"]
    assert "divided (priority 40) holds cpu_shares" in reasons


def test_a_rules_budget_bears_a_division_once(tmp_path: Path) -> None:
    site = Site(tmp_path, "policy: demand, resource: cpu", more="budget: 1 per 1h")
    site.play(30)
    assert len(site.commands(SetKnob)) == 3


def test_memory_is_divided_above_what_each_guest_works_with(tmp_path: Path) -> None:
    site = Site(tmp_path, "policy: utilisation, resource: memory")
    site.play(30)
    balloons = site.values("memory_balloon")
    # 12 GiB of the guests and 4 free, by what they use: 2, 3 and 1 of 4 GiB; nobody beyond its most
    assert balloons == {
        "batch": pytest.approx(16 * GIB * 2 / 6, abs=4096),
        "web": 8 * GIB,
        "idle": pytest.approx(16 * GIB / 6, abs=4096),
    }
    assert sum(balloons.values()) <= 16 * GIB


def test_by_quota_each_vcpu_gets_its_part_of_a_period(tmp_path: Path) -> None:
    site = Site(tmp_path, "policy: capacity, resource: cpu, by: quota, reserve: 50%")
    site.play(30)
    assert site.values("vcpu_quota") == {"batch": 25_000, "web": 25_000, "idle": 25_000}


def test_what_is_divided_so_already_is_refused_with_the_reason(tmp_path: Path) -> None:
    guests = {name: Guest(vcpus=2, used=1.0) for name in ("a", "b")}
    site = Site(tmp_path, "policy: demand, resource: cpu", guests=guests)
    site.play(20)
    assert [(one.guard, one.reason) for one in site.decisions(accepted=False)] == [
        ("limits", "host-1 is divided so already")
    ]


def test_floors_that_are_more_than_there_is_are_refused_with_the_reason(tmp_path: Path) -> None:
    guests = {name: Guest(vcpus=2, used=1.0, usable=0) for name in ("a", "b")}
    site = Site(tmp_path, "policy: demand, resource: memory, reserve: 90%", guests=guests)
    site.play(20)
    assert {one.guard for one in site.decisions(accepted=False)} == {"limits"}
    assert "the floors of 2 guests are" in site.decisions(accepted=False)[0].reason
