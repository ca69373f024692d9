"""The queue in the production controller, in virtual time: which of several guests is moved first."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

import msgspec
import pytest

from virtpilot.action import Abort, Migrate
from virtpilot.actuators.guards.options import GuardOptions
from virtpilot.clock import SECOND
from virtpilot.model import Command, Decision, Outcome, Result, Sample
from virtpilot.pipeline.operations.announced import Announcement
from virtpilot.pipeline.operations.desk import Desk, SchedulingOptions
from virtpilot.pipeline.rehearsal import Rehearsal
from virtpilot.pipeline.standin import Reply
from virtpilot.planner.scheduling import SchedulingPolicy
from virtpilot.rules.language import load

GIB = 2**30
START = 1_700_000_000 * SECOND
RULES = """
virtpilot: 1
rules:
{}
"""
ONE = """
  - name: move-{name}
    on: vm
    where: tags.name == "{name}"
    when: cpu_steal_ratio > 10%
    priority: {priority}
    mode: act
    remedies:
      - migrate: {{to: best}}
"""
# name: memory, priority
GUESTS = {"large": (16, 90), "middle": (4, 50), "small": (1, 10)}


class Site:
    """Three starving guests on one host, room on another, one move at a time; each takes 20 s."""

    def __init__(
        self, folder: Path, policy: SchedulingPolicy, starving: Collection[str] = tuple(GUESTS), takes_s: int = 20
    ) -> None:
        self.starving, self.abort_s = set(starving), 1
        path = folder / "rules.yaml"
        path.write_text(
            RULES.format("".join(ONE.format(name=name, priority=priority) for name, (_, priority) in GUESTS.items()))
        )
        self.site = Rehearsal(
            load([path]),
            START,
            lambda command: Reply(after_ns=(self.abort_s if isinstance(command.action, Abort) else takes_s) * SECOND),
            guards=GuardOptions(migrations_cluster=1, warm_up_s=0, guest_cooldown_s=3600),
            scheduling=SchedulingOptions(policy=policy),
        )

    def measure(self) -> None:
        now_ns, places = self.site.clock.now_ns(), self.site.agents.places
        for host, used in (("host-1", 0.9), ("host-2", 0.1)):
            fields = {"cpu_usage_ratio": used, "cpus_count": 16, "memory_total_bytes": 128 * GIB}
            samples = [Sample("host", {"host": host}, {**fields, "memory_available_bytes": 90 * GIB}, now_ns)]
            samples += [
                Sample(
                    "vm",
                    {"host": host, "vm": f"uuid-{name}", "name": name},
                    {
                        "state_code": 1,
                        "cpu_usage_ratio": 0.2,
                        "cpu_steal_ratio": 0.3 if host == "host-1" and name in self.starving else 0.0,
                        "vcpus_count": 1,
                        "memory_balloon_bytes": memory * GIB,
                    },
                    now_ns,
                )
                for name, (memory, _priority) in GUESTS.items()
                if places.get(f"uuid-{name}", "host-1") == host
            ]
            self.site.measure(host, samples)

    def play(self, seconds: int) -> Iterator[int]:
        for second in range(0, seconds, 5):
            self.measure()
            yield second
            self.site.run_until(START + (second + 5) * SECOND)

    def moved(self) -> list[str]:
        found = [one for one in self.site.records() if isinstance(one, Command) and isinstance(one.action, Migrate)]
        return [command.action.guest.removeprefix("uuid-") for command in found]

    def refusals(self) -> set[tuple[str, str]]:
        found = [one for one in self.site.records() if isinstance(one, Decision) and not one.accepted]
        return {(one.guard, one.reason) for one in found}


@pytest.mark.parametrize(
    ("policy", "order"),
    [
        (SchedulingPolicy.AGEING, ["large", "middle", "small"]),
        (SchedulingPolicy.SHORTEST_JOB, ["small", "middle", "large"]),
    ],
)
def test_one_after_the_other_in_the_order_of_the_policy(
    tmp_path: Path, policy: SchedulingPolicy, order: list[str]
) -> None:
    site = Site(tmp_path, policy)
    for _ in site.play(120):
        pass
    # All three began to starve at the same moment, and each waits until the one before has landed.
    assert site.moved() == order


def test_another_policy_takes_effect_while_it_runs(tmp_path: Path) -> None:
    site = Site(tmp_path, SchedulingPolicy.AGEING)
    for second in site.play(120):
        if second == 10:
            site.site.controller.pilot.desk.choose(SchedulingPolicy.SHORTEST_JOB)
    assert site.moved() == ["large", "small", "middle"]


def test_a_long_move_is_stopped_for_a_much_shorter_one_and_done_afterwards(tmp_path: Path) -> None:
    site = Site(tmp_path, SchedulingPolicy.SHORTEST_REMAINING, starving={"large"})
    for second in site.play(200):
        if second == 5:
            site.starving = set(GUESTS)
    records = list(site.site.records())
    aborted = [one for one in records if isinstance(one, Decision) and isinstance(one.action, Abort)]
    assert [(one.subject.name, one.reason) for one in aborted] == [
        ("large", "small needs less time than is left of this")
    ]
    assert site.moved() == ["large", "small", "middle", "large"]
    results = [one.result for one in records if isinstance(one, Outcome) and one.guest == "uuid-large"]
    assert results.count(Result.FAILED) == 1
    assert results[-1] is Result.DONE
    assert site.site.agents.places == {f"uuid-{name}": "host-2" for name in GUESTS}


def test_a_restart_while_a_move_is_being_stopped_holds_it_against_nobody(tmp_path: Path) -> None:
    site = Site(tmp_path, SchedulingPolicy.SHORTEST_REMAINING, starving={"large"})
    site.abort_s, pilot = 10, site.site.controller.pilot
    for second in site.play(40):
        if second == 5:
            site.starving = set(GUESTS)
        stopped = any(isinstance(getattr(one, "action", None), Abort) for one in site.site.records())
        if stopped and not any(isinstance(one, Outcome) for one in site.site.records()):
            saved, pilot.desk = pilot.desk.saved(), Desk(SchedulingOptions(), {"out": 1, "in": 1, "cluster": 1})
            pilot.desk.restore(msgspec.json.decode(msgspec.json.encode(saved)))
    results = [one.result for one in site.site.records() if isinstance(one, Outcome) and one.guest == "uuid-large"]
    assert Result.FAILED in results
    assert pilot.guards.saved()["circuits"] == {}


def test_a_move_that_is_nearly_done_is_left_alone(tmp_path: Path) -> None:
    site = Site(tmp_path, SchedulingPolicy.SHORTEST_REMAINING, starving={"middle"}, takes_s=30)
    for second in site.play(150):
        if second == 30:
            site.starving = set(GUESTS)
    assert not [one for one in site.site.records() if isinstance(getattr(one, "action", None), Abort)]
    assert site.moved()[:2] == ["middle", "small"]


def test_a_guest_whose_backup_runs_waits_and_the_others_go_on(tmp_path: Path) -> None:
    site = Site(tmp_path, SchedulingPolicy.AGEING)
    desk = site.site.controller.pilot.desk
    work = Announcement(id="nightly", takes_s=600, guest="large")
    assert desk.announce(work, "host-1", "uuid-large", START) is not None
    desk.turn([], [], START)
    for second in site.play(150):
        if second == 80:
            assert site.moved() == ["middle", "small"]
            desk.ended("nightly")
    assert site.moved() == ["middle", "small", "large"]
    assert ("queue", "waits for its turn (ageing): something else is being done with this guest") in site.refusals()
