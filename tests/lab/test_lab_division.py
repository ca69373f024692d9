"""Three busy guests on one real host, divided by each policy: what the kernel gives each is its part."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
import pytest

from deploy import lab as lab_module
from deploy.lab import GuestPlan, Lab
from deploy.lab.pilot import LabPilot
from tests.lab.lab_process import need_a_lab
from tests.services import until
from virtpilot.clock import SystemClock, seconds

pytestmark = [pytest.mark.lab, pytest.mark.alone, pytest.mark.one_core, pytest.mark.slow]

NAME: Final = "divlab"
HOST: Final = "host-1"
# name: weight, vCPUs; each burns one of them wholly, and the host has one core.
GUESTS: Final = {"d-1": (1, 1), "d-2": (2, 1), "d-3": (4, 2)}
PLANS: Final = tuple(
    GuestPlan(name, HOST, vcpus=vcpus, tags={"virtpilot_weight": str(weight)})
    for name, (weight, vcpus) in GUESTS.items()
)
RULE: Final = """
virtpilot: 1
rules:
  - name: divided
    on: host
    when: cpu_usage_ratio > 80%
    mode: act
    cooldown: 10s
    remedies:
      - allocate: {{policy: {policy}, resource: cpu}}
        lease: 10m
"""
# One policy after the other within a minute is what these guards are against.
GUARDS: Final = "guest_cooldown_s = 0.0\nguest_cooldown_down_s = 0.0\noscillation_window_s = 0.0"
# What each policy makes of them; by utilisation they stay as the one before has put them.
PARTS: Final = {
    "max-min": {"d-1": 1 / 7, "d-2": 2 / 7, "d-3": 4 / 7},
    "utilisation": {"d-1": 1 / 7, "d-2": 2 / 7, "d-3": 4 / 7},
    "capacity": {"d-1": 1 / 4, "d-2": 1 / 4, "d-3": 1 / 2},
    "demand": {"d-1": 1 / 3, "d-2": 1 / 3, "d-3": 1 / 3},
}
# How near the shares come to that: what a guest lacks is measured, and the idle vCPU of the third waits now and then.
NEAR: Final = {"demand": 0.25}
WALL_S: Final = 12.0
LONG: Final = pytest.mark.long


class Division:
    """A busy host with its agent and a controller whose rule is written anew for each policy."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self._rules = lab.folder / "division"
        self._rules.mkdir()
        self._write("max-min")
        for name in GUESTS:
            lab.guest(name).set_load(100)
        self.pilot = LabPilot(lab, self._rules, guards=GUARDS)
        self.pilot.start()

    def _write(self, policy: str) -> None:
        draft = self._rules / "draft"
        draft.write_text(RULE.format(policy=policy))
        draft.replace(self._rules / "rules.yaml")

    def by(self, policy: str) -> dict[str, float]:
        """Divide by a policy, and return each guest's part of all shares once they are as the policy has it."""
        self._write(policy)
        wanted = PARTS[policy]

        def divided() -> bool:
            parts = self.shares()
            near = NEAR.get(policy, 0.1)
            return all(parts[name] == pytest.approx(part, rel=near) for name, part in wanted.items())

        assert until(divided, 90, 1.0), "\n".join([policy, str(self.shares()), *self.told()])
        return self.shares()

    def shares(self) -> dict[str, float]:
        found = {}
        for name in GUESTS:
            text = self.lab.hosts[HOST].virsh("schedinfo", name)
            (line,) = [line for line in text.splitlines() if line.startswith("cpu_shares")]
            found[name] = int(line.partition(":")[2])
        return {name: value / sum(found.values()) for name, value in found.items()}

    def used(self) -> dict[str, float]:
        """Return each guest's part of the CPU time of the next seconds, by libvirt."""
        clock = SystemClock()
        before, began_ns = self._times(), clock.monotonic_ns()
        until(lambda: clock.monotonic_ns() - began_ns > seconds(WALL_S), WALL_S + 5)
        after = self._times()
        took = {name: after[name] - before[name] for name in GUESTS}
        return {name: value / sum(took.values()) for name, value in took.items()}

    def _times(self) -> dict[str, int]:
        return {name: int(self.lab.domstats(name)["cpu.time"]) for name in GUESTS}

    def told(self) -> list[str]:
        records: Path = self.pilot.records
        lines = records.read_bytes().splitlines() if records.exists() else []
        found = [msgspec.json.decode(line) for line in lines]
        return [str(one["record"].get("reason")) for one in found if one["kind"] in {"decision", "outcome"}][-8:]


@pytest.fixture(scope="module")
def division() -> Iterator[Division]:
    need_a_lab(hosts=1)
    with lab_module.bring_up(NAME, plans=PLANS) as up:
        yield Division(up)
    assert lab_module.leftovers(NAME) == []


@pytest.mark.parametrize(
    "policy", ["max-min", pytest.param("utilisation", marks=LONG), pytest.param("capacity", marks=LONG), "demand"]
)
def test_what_the_kernel_gives_each_guest_is_its_part(division: Division, policy: str) -> None:
    parts = division.by(policy)
    # The first look may fall into the change itself.
    assert until(lambda: _near(division.used(), parts), 3 * WALL_S, 0.1), (policy, parts, division.used())


def _near(used: dict[str, float], parts: dict[str, float]) -> bool:
    return all(used[name] == pytest.approx(part, rel=0.1) for name, part in parts.items())
