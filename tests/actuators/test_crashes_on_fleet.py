"""Every action on every kind of knob of the simulated fleet, an agent killed at each point that it passes.

Then each knob is at its baseline, or at the value of one lease that lives on the host where the guest is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import pytest

from tests.actuators.crash_scenes import Killed
from virtpilot.action import Abort, Action, Migrate, Power, ReleaseKnob, SetKnob, Verb
from virtpilot.actuators.caps import Caps
from virtpilot.actuators.executor import Executor
from virtpilot.actuators.journal import Journal
from virtpilot.actuators.ledger import LeaseState
from virtpilot.actuators.lifecycle import Point
from virtpilot.clock import SECOND
from virtpilot.hypervisor import GuestState
from virtpilot.model import Command
from virtpilot.simulator.fleet import Fleet
from virtpilot.simulator.scenario import GuestSpec, HostSpec, MigrationSpec, Scenario, guest_uuid

HOSTS: Final = ("node-1", "node-2")
WEB: Final = guest_uuid("web")
MIB: Final = 2**20
# A value that the guest of these tests can have, by knob.
KNOBS: Final = {
    "cpu_shares": 2048,
    "vcpu_quota": 60_000,
    "vcpus": 1,
    "memory_balloon": 3072 * MIB,
    "memory_hard_limit": 8192 * MIB,
    "blkio_weight": 300,
    "vda.total_iops_sec": 500,
    "nic0.inbound_average": 5_000_000,
    "vcpupin": 3,
}


@pytest.fixture(autouse=True)
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that is killed here is this one: what it wrote, the next one reads, on the disk or not."""
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)


class Site:
    """Two simulated hosts with the guest `web` on the first, and an executor on each; `kill`: at which passing."""

    def __init__(self, folder: Path, knob: str, kill: int | None = None) -> None:
        guest = GuestSpec(name="web", host="node-1", vcpus=2, memory_mib=4096, memory_used_mib=512.0)
        hosts = [HostSpec(name=name, cpus=4, memory_mib=16384, link_mib_s=200.0) for name in HOSTS]
        scenario = Scenario(name="crashes", hosts=hosts, guests=[guest], migration=MigrationSpec(auto_converge=False))
        self.fleet = Fleet(scenario)
        self.folder, self.knob, self.value = folder, knob, KNOBS[knob]
        self.kill = kill
        self.passed: list[Point] = []
        self.dead = ""
        self.sent = 0
        self.executors = {host: self._open(host) for host in HOSTS}
        self.baseline = self.read()

    def _open(self, host: str) -> Executor:
        def reached(point: Point) -> None:
            self.passed.append(point)
            if self.kill == len(self.passed) - 1:
                self.kill, self.dead = None, host
                raise Killed

        folder = self.folder / host
        folder.mkdir(exist_ok=True)
        made = Executor(
            self.fleet.hypervisor(host), Journal(folder / "journal.jsonl"), host=host, reached=reached,
            caps=Caps(destroy_guests=True),
        )  # fmt: skip
        made.recover(self.fleet.now_ns)
        return made

    def restart(self) -> None:
        """Start the agent that was killed anew; the kernel has let go of its journal."""
        if self.dead:
            self.executors[self.dead]._journal._unlock()
            self.executors[self.dead] = self._open(self.dead)

    @property
    def where(self) -> str:
        return self.fleet.guest_host(WEB) or ""

    def read(self) -> int:
        return self.fleet.hypervisor(self.where).get_knob(WEB, self.knob)

    def do(self, action: Action) -> None:
        """Give the agent where the guest is a command."""
        self.sent += 1
        now_ns = self.fleet.now_ns
        command = Command(id=f"cm-{self.sent}", cause="dc", host=self.where, action=action, rule="starved",
                          issued_ns=now_ns, not_after_ns=now_ns + 30 * SECOND, epoch=1)  # fmt: skip
        self.executors[self.where].submit(command, now_ns)

    def set(self, value: int | None = None, lease_s: float = 40) -> None:
        wanted = self.value if value is None else value
        self.do(SetKnob(guest=WEB, knob=self.knob, value=wanted, expected=self.read(), lease_s=lease_s))

    def run(self, seconds: int, step: int = 1) -> None:
        """Let time pass; both agents look at the guest, as events would have them do."""
        for _second in range(0, seconds, step):
            self.fleet.advance(step)
            for made in self.executors.values():
                made.look_at(WEB)
                made.poll(self.fleet.now_ns)

    def settle(self) -> None:
        """Let time pass until nothing is left to be done; a migration out of sight is watched for two minutes."""
        for _step in range(15):
            self.run(20, 20)
            if not any(made.leases() or made.busy(WEB) for made in self.executors.values()):
                return

    def holders(self) -> list[str]:
        return [host for host, made in self.executors.items() if made.leased(WEB, self.knob)]


def set_and_end(site: Site) -> None:
    site.set(lease_s=3)
    site.run(5)


def set_again_and_release(site: Site) -> None:
    site.set()
    again = {"vcpus": 2, "vcpupin": 1}.get(site.knob, site.value + site.value // 2)
    site.set(again if site.knob != "memory_balloon" else 3584 * MIB)
    site.do(ReleaseKnob(guest=WEB, knob=site.knob))


def set_and_changed_by_hand(site: Site) -> None:
    """Somebody sets it back."""
    site.set()
    site.fleet.hypervisor(site.where).set_knob(WEB, site.knob, site.baseline)
    site.run(2)


def set_and_moved(site: Site) -> None:
    site.set()
    site.do(Migrate(guest=WEB, target="node-2", uri=site.fleet.migration_uri("node-2")))
    site.run(8)
    site.do(ReleaseKnob(guest=WEB, knob=site.knob))


def set_and_moved_by_hand(site: Site) -> None:
    site.set()
    site.fleet.hypervisor("node-1").migrate(WEB, site.fleet.migration_uri("node-2"))
    site.run(8)


def set_and_move_aborted(site: Site) -> None:
    site.set()
    site.do(Migrate(guest=WEB, target="node-2", uri=site.fleet.migration_uri("node-2")))
    site.do(Abort(guest=WEB))
    site.run(3)


def set_and_suspended(site: Site) -> None:
    site.set()
    site.do(Power(guest=WEB, verb=Verb.SUSPEND, within_s=10))
    site.run(2)
    site.do(Power(guest=WEB, verb=Verb.RESUME, within_s=10))
    site.run(2)


def set_and_destroyed(site: Site) -> None:
    """It starts anew, with its own values."""
    site.set()
    site.do(Power(guest=WEB, verb=Verb.DESTROY, within_s=10))
    site.run(2)
    site.do(Power(guest=WEB, verb=Verb.START, within_s=10))
    site.run(2)


SCENES: Final[dict[str, Callable[[Site], None]]] = {
    scene.__name__: scene
    for scene in (
        set_and_end,
        set_again_and_release,
        set_and_changed_by_hand,
        set_and_moved,
        set_and_moved_by_hand,
        set_and_move_aborted,
        set_and_suspended,
        set_and_destroyed,
    )
}


@cache
def passes(scene: str, knob: str) -> tuple[Point, ...]:
    """Return the points that a scene passes, in order."""
    with TemporaryDirectory() as folder:
        site = Site(Path(folder), knob)
        SCENES[scene](site)
        return tuple(site.passed)


def crashes() -> Iterator[tuple[str, str]]:
    """Every scene with the knobs that are unlike each other; the others are set, moved and given back."""
    for knob in KNOBS:
        for scene in SCENES:
            if knob in {"cpu_shares", "memory_balloon"} or scene == "set_and_moved":
                yield scene, knob


@pytest.mark.parametrize(("scene", "knob"), list(crashes()))
def test_killed_at_each_point_of_each_action(tmp_path: Path, scene: str, knob: str) -> None:
    for kill, point in enumerate(passes(scene, knob)):
        folder = tmp_path / str(kill)
        folder.mkdir()
        site = Site(folder, knob, kill)
        with pytest.raises(Killed):
            SCENES[scene](site)
        _puts_right(site, f"{scene} of {knob} killed {point}")


def _puts_right(site: Site, what: str) -> None:
    site.restart()
    site.run(8)  # a move under way comes to its end
    hypervisor = site.fleet.hypervisor(site.where)
    if hypervisor.state(WEB) is GuestState.RUNNING:
        _is_covered(site, what)
    site.settle()
    if hypervisor.state(WEB) is GuestState.PAUSED:
        hypervisor.power(WEB, Verb.RESUME)
    if hypervisor.state(WEB) is GuestState.SHUTOFF:
        hypervisor.power(WEB, Verb.START)
    site.settle()
    assert (site.holders(), site.read()) == ([], site.baseline), what
    assert not any(made.busy(WEB) for made in site.executors.values()), what
    assert not site.fleet.hypervisor(site.where).read_note(WEB), what


def _is_covered(site: Site, what: str) -> None:
    """The knob is at its baseline, or at the value of a lease that lives where the guest is and nowhere else."""
    held = [(host, made) for host, made in site.executors.items() if made.leased(WEB, site.knob)]
    if not held:
        assert site.read() == site.baseline, what
        return
    ((host, made),) = held
    (lease,) = made.leases()
    assert host == site.where, what
    lives = lease.state is LeaseState.HELD and lease.end_ns > site.fleet.now_ns
    assert lives or made.moving(WEB), what
    assert site.read() == lease.value, what


def test_the_scenes_pass_every_point_but_those_that_others_do() -> None:
    """A hook changes nothing of a guest (test_executor_hooks.py); a change that fails comes below."""
    passed = {point for scene in SCENES for point in passes(scene, "cpu_shares")}
    left = {point for point in Point if "HOOK" in point.name} | {Point.BEFORE_REVERT, Point.AFTER_REVERT}
    assert passed == set(Point) - left


@pytest.mark.parametrize("kill", range(8))
def test_killed_while_a_change_in_vain_is_taken_back(tmp_path: Path, kill: int) -> None:
    """Libvirt takes the value and gives another: the points that the scenes do not pass."""
    site = Site(tmp_path, "cpu_shares", kill)
    hypervisor = site.executors["node-1"]._site.hypervisor
    plain = hypervisor.set_knob

    def off_by_one(guest: str, knob: str, value: int) -> None:
        plain(guest, knob, value - 1 if value == 2048 else value)

    hypervisor.set_knob = off_by_one  # type: ignore[method-assign]
    with suppress(Killed):
        site.set()
    assert site.passed[-1] in {*passes("set_and_end", "cpu_shares"), Point.BEFORE_REVERT, Point.AFTER_REVERT}
    _puts_right(site, f"a change in vain killed {site.passed[-1]}")
