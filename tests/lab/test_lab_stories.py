"""Stories on three real hosts with eight guests, driven by rules files; libvirt and the guests say how they end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import pytest

from deploy import lab as lab_module
from tests.lab.lab_process import need_a_lab
from tests.lab.three_hosts import RESTING, ThreeHosts, maintenance
from virtpilot.action import Migrate, SetKnob
from virtpilot.pipeline.maintenance import RULE

pytestmark = [pytest.mark.lab, pytest.mark.alone, pytest.mark.slow]

NAME: Final = "stories"
MIB: Final = 2**20
# batch-1 is the largest guest of its host: the first to leave it. Nobody is busy before a story makes him so.
PLANS: Final = tuple(
    replace(plan, load=0, memory_mib=160 if plan.name == "batch-1" else plan.memory_mib) for plan in lab_module.THREE
)
NOISY: Final = """
virtpilot: 1
rules:
  - name: noisy-neighbour
    about: A batch guest takes so much CPU that a web guest beside it starves.
    on: vm
    where: tags.tier == "batch"
    when: >-
      count(vms where tags.tier == "web" and cpu_steal_ratio > 25%) > 0 and host.cpu_usage_ratio > 85%
      and cpu_usage_ratio > 40%
    for: 4s
    clear: count(vms where tags.tier == "web" and cpu_steal_ratio > 18%) == 0
    clear_for: 4s
    mode: act
    cooldown: 10m
    remedies:
      - set: {vcpu_quota: 10ms}
        lease: 30s
        expect: count(vms where tags.tier == "web" and cpu_steal_ratio > 18%) == 0 within 20s
"""
SHORT: Final = """
virtpilot: 1
rules:
  - name: memory-short
    about: A guest is short of memory.
    on: vm
    when: memory_used_ratio > 75%
    for: 4s
    clear: memory_used_ratio < 65%
    clear_for: 4s
    mode: act
    cooldown: 10m
    remedies:
      - set: {memory_balloon: current + 48MiB}
        lease: 30s
        expect: memory_used_ratio < 70% within 20s
  - name: memory-spared
    about: A guest can spare some for one beside it that is short of it.
    on: vm
    where: tags.name == "db-2"
    when: any(vms where signals.memory-short)
    mode: act
    cooldown: 10m
    remedies:
      - set: {memory_balloon: current - 24MiB}
        lease: 30s
"""
STARVED: Final = """
virtpilot: 1
rules:
  - name: starved
    about: A web guest waits for a physical CPU.
    on: vm
    where: tags.tier == "web"
    when: cpu_steal_ratio > 25% and host.cpu_usage_ratio > 85%
    for: 4s
    clear: cpu_steal_ratio < 18%
    mode: act
    cooldown: 10m
    remedies:
      - migrate: {to: best}
        expect: cpu_steal_ratio < 18% within 60s
"""


@pytest.fixture(scope="module")
def site() -> Iterator[ThreeHosts]:
    need_a_lab()
    with lab_module.bring_up(NAME, plans=PLANS) as lab:
        site = ThreeHosts(lab)
        yield site
        site.close()
    assert lab_module.leftovers(NAME) == []


@pytest.fixture(autouse=True)
def calm(site: ThreeHosts) -> Iterator[None]:
    """Begin with idle guests and no rules; nothing that virtpilot has set may be told as set by somebody else."""
    site.rule(RESTING)
    # Who has just been moved onto a host that the story before has filled may take its time to hear.
    for guest in site.lab.guests.values():
        guest.set_load(0, timeout_s=180)
    yield
    assert site.foreign() == []


def test_a_noisy_neighbour_is_throttled_and_let_go_when_it_is_calm(site: ThreeHosts) -> None:
    loud, starving = site.lab.guest("batch-3"), site.lab.guest("web-2")
    free = site.told("batch-3", "vcpu_quota")
    site.rule(NOISY)
    # Beside the loud one's tenth the host has room for it: at 80 % it was full by both, and who starved went on to.
    starving.set_load(60)
    loud.set_load(100)
    site.comes(lambda: site.told("batch-3", "vcpu_quota") == 10_000, "the loud one has a quota")
    site.comes(lambda: site.cpu("batch-3")[0] < 0.2 and site.cpu("web-2")[1] < 0.18, "who starved has its CPU")
    loud.set_load(0, timeout_s=60)
    site.comes(lambda: site.told("batch-3", "vcpu_quota") == free, "its quota is gone")
    (command,) = site.commands("batch-3", SetKnob)
    site.comes(lambda: site.results(command.id) == ["done", "effective", "reverted"], "all that has been told")
    assert site.commands("web-2", SetKnob) == []


def test_memory_goes_to_who_is_short_of_it_and_comes_back(site: ThreeHosts) -> None:
    """What is read inside the guests is MemTotal: their kernels have given memory up, and got it back."""
    short, spare = site.lab.guest("db-1"), site.lab.guest("db-2")
    own = {guest.name: guest.see()[1] for guest in (short, spare)}
    site.rule(SHORT)
    short.ask("eat 52", timeout_s=60)
    site.comes(lambda: site.balloon_mib("db-1") == 128 + 48, "the one who is short has more")
    site.comes(lambda: short.see()[1] == own["db-1"] + 48 * MIB, "its kernel has it")
    site.comes(lambda: site.balloon_mib("db-2") == 128 - 24, "the other one has less")
    site.comes(lambda: spare.see()[1] == own["db-2"] - 24 * MIB, "its kernel has given it up")
    short.ask("eat 0", timeout_s=60)
    for guest in (short, spare):
        site.comes(lambda guest=guest: site.balloon_mib(guest.name) == 128, f"{guest.name} has its own")  # type: ignore[misc]
        site.comes(lambda guest=guest: guest.see()[1] == own[guest.name], f"the kernel of {guest.name} says so")  # type: ignore[misc]
    (given,), (taken,) = site.commands("db-1", SetKnob), site.commands("db-2", SetKnob)
    site.comes(lambda: site.results(given.id) == ["done", "effective", "reverted"], "all that has been told")
    site.comes(lambda: site.results(taken.id) == ["done", "reverted"], "all that has been told")


def test_a_host_in_maintenance_is_emptied_onto_the_two_others(site: ThreeHosts) -> None:
    """Either one would be overfilled by all of them; at no time is one of them, and no guest is lost."""
    loads = {"batch-1": 50, "batch-2": 40, "web-1": 30, "batch-3": 10}
    leaving = {"batch-1", "batch-2", "web-1"}
    for name, load in loads.items():
        site.lab.guest(name).set_load(load)
    before, looks = site.running(), list[dict[str, set[str]]]()
    assert before["host-1"] == leaving

    def emptied() -> bool:
        looks.append(site.running())
        return not looks[-1]["host-1"] and set().union(*looks[-1].values()) == set(site.lab.guests)

    maintenance(site.lab, "host-1", "on")
    site.comes(emptied, "host-1 is empty")
    for look in looks:  # what is on its way is listed where it comes from and where it goes to
        assert all(sum(loads.get(guest, 0) for guest in look[host]) <= 100 for host in ("host-2", "host-3")), look
    assert sum(map(len, looks[-1].values())) == len(site.lab.guests)
    assert looks[-1]["host-2"] & leaving
    assert looks[-1]["host-3"] & leaving
    asked = site.accepted(RULE)
    assert (asked[0], sorted(asked)) == ("batch-1", sorted(leaving))
    assert [site.moves_begun(name) for name in sorted(site.lab.guests)].count(1) == len(leaving)
    site.comes(lambda: maintenance(site.lab, "host-1", "on")["left"] == [], "nobody is left, it says")
    assert maintenance(site.lab, "host-1", "off")["on"] is False


def test_a_controller_killed_in_the_middle_of_a_move_finds_it_again(site: ThreeHosts) -> None:
    guest, loud = site.lab.guest("web-2"), site.lab.guest("batch-3")
    begun, epoch = site.moves_begun("web-2"), site.epoch
    site.rule(STARVED)
    guest.set_load(60)
    loud.set_load(100)
    site.comes(lambda: site.moving(guest, "host-2"), "web-2 is being moved")
    site.pilot.kill_controller()
    site.hold(guest, "host-2", 1)
    assert site.moving(guest, "host-2"), "the move was over too soon"
    site.pilot.start_controller()
    site.comes(lambda: site.heard() and site.epoch > epoch, "another controller speaks")
    (command,) = site.commands("web-2", Migrate)
    assert site.results(command.id) == []
    assert site.moving(guest, "host-2")
    site.hold(guest, "host-2", 1000)
    target = command.action.target  # type: ignore[union-attr]
    site.comes(lambda: "web-2" in site.running()[target], "web-2 has arrived")
    site.comes(lambda: site.results(command.id) == ["done", "effective"], "the new controller has measured it")
    assert [host for host, guests in site.running().items() if "web-2" in guests] == [target]
    assert site.commands("web-2", Migrate) == [command]
    assert (site.moves_begun("web-2") - begun, site.accepted("starved")) == (1, ["web-2"])
