"""The executor on the simulated fleet: other people's hypervisor, virtual time, scripted faults."""

from __future__ import annotations

from pathlib import Path

import pytest

from virtpilot.action import Action, Migrate, ReleaseKnob, SetKnob
from virtpilot.actuators.caps import Caps
from virtpilot.actuators.executor import Executor
from virtpilot.actuators.journal import Journal
from virtpilot.clock import SECOND
from virtpilot.model import Command, Outcome, Result
from virtpilot.simulator.fleet import Fleet
from virtpilot.simulator.scenario import (
    Event,
    GuestSpec,
    GuestStop,
    GuestVanish,
    HostDeath,
    HostSpec,
    HypervisorDown,
    HypervisorSlow,
    LinkDown,
    MigrationSpec,
    Scenario,
    guest_uuid,
)

WEB = guest_uuid("web")
HOST_SPECS = [HostSpec(name=f"node-{number}", cpus=4, memory_mib=16384) for number in (1, 2)]


class Lab:
    """Two simulated hosts with one guest, `web`, and the executor of the first one."""

    def __init__(self, folder: Path, *events: Event, dirty_mib_s: float = 0.0, caps: Caps | None = None) -> None:
        guest = GuestSpec(
            name="web", host="node-1", vcpus=2, memory_mib=4096, memory_used_mib=2048.0, dirty_mib_s=dirty_mib_s
        )
        migration = MigrationSpec(auto_converge=False, max_rounds=10_000)
        self.fleet = Fleet(
            Scenario(name="lab", hosts=HOST_SPECS, guests=[guest], events=list(events), migration=migration)
        )
        self.folder = folder
        self.caps = caps
        self.outcomes: list[Outcome] = []
        self.executor = self._open()

    def _open(self) -> Executor:
        journal = Journal(self.folder / "journal.jsonl")
        return Executor(self.fleet.hypervisor("node-1"), journal, host="node-1", caps=self.caps)

    def restart(self) -> None:
        """Let the agent stop and start again."""
        self.executor.close()
        self.executor = self._open()
        self.outcomes += self.executor.recover(self.fleet.now_ns)

    def run(self, seconds: int) -> None:
        """Let seconds pass, polled once in each."""
        for _second in range(seconds):
            self.fleet.advance(1.0)
            self.outcomes += self.executor.poll(self.fleet.now_ns)

    def submit(self, action: Action) -> None:
        now_ns = self.fleet.now_ns
        name = f"cm-{now_ns}-{type(action).__name__}"
        sent = Command(
            id=name,
            cause="dc",
            host="node-1",
            action=action,
            rule="starved",
            issued_ns=now_ns,
            not_after_ns=now_ns + 30 * SECOND,
            epoch=1,
        )
        self.outcomes += self.executor.submit(sent, now_ns)

    def set(self, value: int = 4096, lease_s: float = 20) -> None:
        self.submit(SetKnob(guest=WEB, knob="cpu_shares", value=value, expected=1024, lease_s=lease_s))

    def move(self) -> None:
        self.submit(Migrate(guest=WEB, target="node-2", uri=self.fleet.migration_uri("node-2")))

    def shares(self, host: str = "node-1") -> int:
        return self.fleet.hypervisor(host).get_knob(WEB, "cpu_shares")

    @property
    def results(self) -> list[tuple[str, Result]]:
        return [(outcome.action, outcome.result) for outcome in self.outcomes]


SET, RELEASE, MIGRATE = "set cpu_shares", "release cpu_shares", "migrate"


def test_shares_are_given_and_taken_back(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.set()
    assert lab.shares() == 4096
    lab.run(19)
    assert lab.shares() == 4096
    lab.run(1)
    assert (lab.shares(), lab.results) == (1024, [(SET, Result.DONE), (RELEASE, Result.REVERTED)])


def test_a_lease_travels_with_its_guest(tmp_path: Path) -> None:
    """Set here, moved, held and ended there; here nothing of it is left."""
    lab = Lab(tmp_path)
    lab.set(lease_s=30)
    lab.run(5)
    lab.move()
    lab.run(10)
    assert lab.results == [(SET, Result.DONE), (MIGRATE, Result.DONE)]
    assert (lab.fleet.guest_host(WEB), lab.shares("node-2"), lab.executor.leases()) == ("node-2", 4096, [])
    assert 0 < lab.outcomes[-1].after["took_seconds"] < 10
    there = Executor(lab.fleet.hypervisor("node-2"), Journal(tmp_path / "there.jsonl"), host="node-2")
    assert there.recover(lab.fleet.now_ns) == []
    (lease,) = there.leases()
    assert (lease.baseline, lease.value, lease.end_ns) == (1024, 4096, lab.fleet.now_ns + 15 * SECOND)
    lab.fleet.advance(15.0)
    (ended,) = there.poll(lab.fleet.now_ns)
    assert (ended.result, ended.command, lab.shares("node-2")) == (Result.REVERTED, lease.command, 1024)
    lab.set()
    assert (lab.outcomes[-1].result, lab.outcomes[-1].guard) == (Result.REFUSED, "guest")


def test_a_link_that_fails_in_the_middle(tmp_path: Path) -> None:
    lab = Lab(tmp_path, LinkDown(at_s=1.5, host="node-2", for_s=5))
    lab.move()
    lab.run(5)
    (failed,) = lab.outcomes
    assert failed.result is Result.FAILED
    assert failed.reason.endswith("the guest still runs on node-1")
    lab.run(5)
    lab.move()
    lab.run(10)
    assert lab.results == [(MIGRATE, Result.FAILED), (MIGRATE, Result.DONE)]


def test_a_guest_that_dirties_its_memory_too_fast(tmp_path: Path) -> None:
    """It never converges: aborted at the host's limit, and the guest goes on where it is."""
    lab = Lab(tmp_path, dirty_mib_s=5000.0, caps=Caps(migration_timeout_s=30))
    lab.move()
    lab.run(40)
    (failed,) = lab.outcomes
    assert failed.reason.startswith("aborted: not finished within 30 s (operation aborted")
    assert (lab.fleet.guest_host(WEB), lab.executor.busy(WEB)) == ("node-1", False)


@pytest.mark.parametrize(
    "event",
    [
        HypervisorDown(at_s=10, host="node-1", for_s=30),
        HypervisorSlow(at_s=10, host="node-1", answer_s=9, for_s=30),
    ],
)
def test_libvirt_is_away_when_the_lease_ends(tmp_path: Path, event: Event) -> None:
    """The knob is given back as soon as libvirt is there again, also by the next run of the agent."""
    lab = Lab(tmp_path, event)
    lab.set()
    lab.run(30)
    assert lab.results == [(SET, Result.DONE)]
    lab.restart()
    assert lab.executor.leased(WEB, "cpu_shares")
    lab.run(45)
    assert (lab.shares(), lab.results) == (1024, [(SET, Result.DONE), (RELEASE, Result.REVERTED)])


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (GuestVanish(at_s=10, guest="web"), ""),
        (GuestStop(at_s=10, guest="web"), "the guest is shutoff"),
    ],
)
def test_the_guest_is_away_when_the_lease_ends(tmp_path: Path, event: Event, reason: str) -> None:
    lab = Lab(tmp_path, event)
    lab.set()
    lab.run(20)
    assert reason in lab.outcomes[-1].reason
    assert lab.executor.leases() == []


def test_the_host_loses_power_with_a_lease(tmp_path: Path) -> None:
    """After the boot the guest is shut off, and there is nothing to give back."""
    lab = Lab(tmp_path, HostDeath(at_s=5, host="node-1", for_s=30))
    lab.set()
    lab.fleet.advance(40.0)
    lab.restart()
    lab.run(31)
    assert lab.results == [(SET, Result.DONE), (RELEASE, Result.REVERTED)]
    assert lab.executor.leases() == []


def test_a_move_goes_on_while_the_agent_restarts(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.move()
    lab.run(1)
    lab.restart()
    assert lab.executor.busy(WEB)
    lab.run(10)
    assert lab.results == [(MIGRATE, Result.DONE)]
    assert "restarted" in lab.outcomes[0].reason


def test_a_release_in_time(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.set()
    lab.run(3)
    lab.submit(ReleaseKnob(guest=WEB, knob="cpu_shares"))
    assert (lab.shares(), lab.results) == (1024, [(SET, Result.DONE), (RELEASE, Result.REVERTED)])
    lab.run(30)
    assert len(lab.outcomes) == 2
