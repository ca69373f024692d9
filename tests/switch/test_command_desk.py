"""Where an agent takes commands: not before it knows whether it may, and not after a stop."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.actuators.one_host import GUEST, OneHost
from virtpilot.action import Action, Migrate, ReleaseKnob, SetKnob
from virtpilot.actuators.command import Signer, Verifier
from virtpilot.actuators.executor import Executor
from virtpilot.actuators.journal import Journal
from virtpilot.actuators.order import Operators
from virtpilot.clock import VirtualClock, seconds
from virtpilot.model import Command, Delivery, Message, Outcome, Result
from virtpilot.orders import Stop
from virtpilot.pipeline.attention import Attention
from virtpilot.pipeline.audit.commands import CommandAudit
from virtpilot.pipeline.audit.log import NoAudit
from virtpilot.pipeline.command_desk import CommandDesk
from virtpilot.pipeline.presence import ControllerWatch
from virtpilot.pipeline.switch import Said, Switch

KEY: Final = Ed25519PrivateKey.from_private_bytes(bytes(32))
SIGNER: Final = Signer(KEY)
STOP: Final = msgspec.json.encode(Said(stop=Stop(id="1", by="ann", reason="fire")))


class Letter:
    """A delivery that remembers whether it was acknowledged."""

    def __init__(self, payload: bytes) -> None:
        self.message = Message("virtpilot/c1/commands/host-1", payload)
        self.acknowledged = False

    def ack(self) -> None:
        self.acknowledged = True


class Host:
    """A desk with a real executor and journal, on a host of the tests' own."""

    def __init__(self, folder: Path) -> None:
        self.clock = VirtualClock()
        self.hypervisor = OneHost()
        self.executor = Executor(self.hypervisor, Journal(folder / "journal.jsonl"), host="host-1")
        verifier = Verifier({SIGNER.key_id: KEY.public_key()}, "host-1")
        attention = Attention(self.executor, ControllerWatch(0.0, self.clock))
        switch = Switch(folder / "switch.json", Operators({}), "c1")
        self.desk = CommandDesk(attention, verifier, switch, CommandAudit(NoAudit()), self.clock, seconds(0.5))
        self.number = 0

    def send(self, action: Action, generation: int = 1) -> tuple[Letter, list[Outcome]]:
        self.number += 1
        now_ns = self.clock.now_ns()
        command = Command(
            id=f"cm-{self.number}",
            cause="dc-1",
            host="host-1",
            action=action,
            rule="starved",
            issued_ns=now_ns,
            not_after_ns=now_ns + seconds(30),
            epoch=1,
        )
        letter = Letter(SIGNER.seal(command))
        checked: Delivery = letter
        return letter, self.desk.take(checked, generation)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def shares(value: int, expected: int = 1024) -> SetKnob:
    return SetKnob(guest=GUEST, knob="cpu_shares", value=value, expected=expected, lease_s=60.0)


def test_on_a_new_connection_commands_wait(host: Host) -> None:
    letter, outcomes = host.send(shares(2048))
    assert (outcomes, letter.acknowledged, host.desk.due(1)) == ([], False, [])
    host.clock.advance(0.6)
    (outcome,) = host.desk.due(1)
    assert (outcome.result, letter.acknowledged) == (Result.DONE, True)
    _, (outcome,) = host.send(shares(512, expected=2048))
    assert outcome.result is Result.DONE, "from now on at once"
    letter, outcomes = host.send(shares(256, expected=512), generation=2)
    assert (outcomes, letter.acknowledged) == ([], False), "another connection: again"


def test_without_a_connection_nothing_is_done(host: Host) -> None:
    host.clock.advance(10)
    letter, outcomes = host.send(shares(2048), generation=0)
    host.clock.advance(10)
    assert (outcomes, host.desk.due(0), letter.acknowledged) == ([], [], False)


def test_a_stop_behind_a_command_forbids_it(host: Host) -> None:
    letter, _ = host.send(shares(2048))
    assert host.desk.said(STOP)
    host.clock.advance(0.6)
    (outcome,) = host.desk.due(1)
    assert (outcome.result, outcome.guard, outcome.reason) == (Result.REFUSED, "stopped", "stopped by ann: fire")
    assert letter.acknowledged
    assert host.hypervisor.get_knob(GUEST, "cpu_shares") == 1024


def test_after_a_stop_nothing_begins_and_what_is_held_is_given_back(host: Host) -> None:
    host.desk.due(1)
    host.clock.advance(1)
    assert host.send(shares(2048))[1][0].result is Result.DONE
    assert host.desk.said(STOP)
    assert host.desk.stopped == "stopped by ann: fire"
    for action in (shares(4096, expected=2048), Migrate(guest=GUEST, target="host-2", uri="qemu+tcp://host-2/system")):
        (outcome,) = host.send(action)[1]
        assert (outcome.result, outcome.guard) == (Result.REFUSED, "stopped")
    assert host.hypervisor.get_knob(GUEST, "cpu_shares") == 2048, "a lease runs on"
    host.clock.advance(61)
    (outcome,) = host.executor.poll(host.clock.now_ns())
    assert outcome.result is Result.REVERTED, "to its end"
    assert host.hypervisor.get_knob(GUEST, "cpu_shares") == 1024


def test_giving_back_is_no_beginning(host: Host) -> None:
    host.desk.due(1)
    host.clock.advance(1)
    host.send(shares(2048))
    host.desk.said(STOP)
    (outcome,) = host.send(ReleaseKnob(guest=GUEST, knob="cpu_shares"))[1]
    assert outcome.result is Result.REVERTED


def moving(host: Host, stop: bytes) -> list[Outcome]:
    """Let a migration begin, say the stop, and let a second pass."""
    host.desk.due(1)
    host.clock.advance(1)
    assert host.send(Migrate(guest=GUEST, target="host-2", uri="qemu+tcp://host-2/system"))[1] == []
    assert host.desk.said(stop)
    host.clock.advance(1)
    return host.executor.poll(host.clock.now_ns())


def test_a_migration_under_way_goes_on(host: Host) -> None:
    assert moving(host, STOP) == []
    assert host.hypervisor.aborted == []
    (job,) = host.hypervisor.jobs
    job.finish()
    (outcome,) = host.executor.poll(host.clock.now_ns())
    assert outcome.result is Result.DONE


def test_a_migration_under_way_is_aborted_where_the_operator_wants_that(host: Host) -> None:
    assert moving(host, msgspec.json.encode(Said(stop=Stop(id="1", abort_migrations=True)))) == []
    assert host.hypervisor.aborted == [GUEST]
    (job,) = host.hypervisor.jobs
    job.fail("operation aborted")
    (outcome,) = host.executor.poll(host.clock.now_ns())
    assert outcome.result is Result.FAILED
    assert outcome.reason == ("aborted: everything is to stop (operation aborted); the guest still runs on host-1")
