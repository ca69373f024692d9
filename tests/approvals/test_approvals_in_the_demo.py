"""Approve mode in a whole virtpilot of one process: proposed once, done when accepted, re-checked, kept, expired."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec.structs import replace

from virtpilot.action import Migrate, SetKnob
from virtpilot.actuators.command import key_id
from virtpilot.actuators.order import Operators, sign
from virtpilot.clock import seconds
from virtpilot.model import Command, Message, Mode
from virtpilot.orders import Approvals, Pending, Settled, Verdict
from virtpilot.pipeline import pilot
from virtpilot.pipeline.approvals import ApprovalDesk, ApprovalOptions
from virtpilot.pipeline.demo import Demo
from virtpilot.pipeline.operations.announced import Announcement
from virtpilot.pipeline.rulebook import LIBRARY, RuleOptions

KEY: Final = Ed25519PrivateKey.from_private_bytes(bytes(32))
FORGER: Final = Ed25519PrivateKey.from_private_bytes(bytes([1] * 32))
OPERATORS: Final = Operators({key_id(KEY.public_key()): KEY.public_key()})
TTL_S: Final = 120.0
# From the first second on, two guests want all of a host of two cores.
SCENARIO: Final = 'name = "small"\nhosts = [{name = "host-1", cpus = 2, memory_mib = 16384}]\n' + "".join(
    f'[[guests]]\nname = "{name}"\nhost = "host-1"\nvcpus = 2\nmemory_mib = 256\ncpu_cores = 2.0\n{tags}'
    for name, tags in (("web", ""), ("batch", 'tags = {virtpilot_ignore = "yes"}\n'))
)


class Story:
    """A starved guest's demo in approve mode, with one operator who knows what was published."""

    def __init__(self, folder: Path) -> None:
        (folder / "scenario.toml").write_text(SCENARIO)
        rules = RuleOptions(paths=[str(LIBRARY / "cpu.yaml")], modes={"*": Mode.APPROVE})
        self.demo = Demo(folder / "demo", folder / "scenario.toml", rules)
        self.pilot = self.demo.controller.pilot
        self.pilot.approvals = desk = ApprovalDesk(ApprovalOptions(ttl_s=TTL_S), OPERATORS, self.demo.topics.cluster)
        self.demo.controller._keeper._parts["approvals"] = desk  # type: ignore[index] # as the assembly does
        self.bus = self.demo.broker.connect("operator")
        self.bus.subscribe(self.demo.topics.approvals)
        self.page = Approvals(at_ns=0)

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            self.demo.step()
            while (delivery := self.bus.receive(0)) is not None:
                self.page = msgspec.json.decode(delivery.message.payload, type=Approvals)
                delivery.ack()

    def proposed(self, within: int = 200) -> Pending:
        for _ in range(within):
            if self.page.pending:
                return self.page.pending[0]
            self.step()
        pytest.fail("nothing was proposed")

    def say(self, approval: str, key: Ed25519PrivateKey = KEY, *, accepted: bool = True, late_s: float = 0) -> None:
        now_ns = self.demo.clock.now_ns() - seconds(late_s)
        verdict = Verdict(
            cluster=self.demo.topics.cluster,
            approval=approval,
            accepted=accepted,
            by="ann",
            at_ns=now_ns,
            not_after_ns=now_ns + seconds(30),
        )
        payload = msgspec.json.encode(sign(verdict, key))
        self.bus.publish(Message(self.demo.topics.verdicts, payload)).result(1)

    def settled(self, approval: str) -> Settled | None:
        return next((one for one in self.page.settled if one.id == approval), None)

    def commands(self) -> list[Command]:
        return [one.record for one in self.demo.controller.entries() if isinstance(one.record, Command)]


@pytest.fixture
def story(tmp_path: Path) -> Iterator[Story]:
    made = Story(tmp_path)
    yield made
    made.demo.close()


def test_nothing_is_done_before_somebody_accepts_and_then_exactly_that(story: Story) -> None:
    pending = story.proposed()
    story.step(20)
    assert [one.id for one in story.page.pending if one.rule == pending.rule] == [pending.id], "proposed once"
    assert story.commands() == []
    story.say(pending.id)
    story.step()
    (command,) = story.commands()
    assert (command.action, command.rule) == (pending.action, pending.rule)
    settled = story.settled(pending.id)
    assert settled is not None
    assert (settled.result, settled.by) == ("accepted", "ann")
    story.say(pending.id)
    story.step(3)
    assert len(story.commands()) == 1, "a verdict counts once"


@pytest.mark.parametrize("wrong", ["forged", "late", "unknown", "noise"])
def test_who_may_not_say_so_is_not_heard(story: Story, wrong: str) -> None:
    pending = story.proposed()
    match wrong:
        case "forged":
            story.say(pending.id, FORGER)
        case "late":
            story.say(pending.id, late_s=31)
        case "unknown":
            story.say("ap-0000000000000000")
        case _:
            story.bus.publish(Message(story.demo.topics.verdicts, b"\xff" * 100)).result(1)
    story.step(5)
    assert story.commands() == []
    assert pending.id in {one.id for one in story.page.pending}


def test_what_is_rejected_is_not_proposed_again(story: Story) -> None:
    pending = story.proposed()
    story.say(pending.id, accepted=False)
    story.step(30)
    settled = story.settled(pending.id)
    assert settled is not None
    assert (settled.result, settled.by) == ("rejected", "ann")
    again = [one for one in story.page.pending if (one.rule, one.subject.id, one.cause) == (
        pending.rule, pending.subject.id, pending.cause)]  # fmt: skip
    assert again == []
    assert story.commands() == []


def test_what_nobody_answers_expires_and_is_proposed_anew_as_things_are(story: Story) -> None:
    pending = story.proposed()
    story.step(int(TTL_S) + 5)
    settled = story.settled(pending.id)
    assert settled is not None
    assert settled.result in {"expired", "withdrawn"}
    story.say(pending.id)
    story.step(3)
    assert story.commands() == [], "too late"


def test_accepted_when_a_guard_refuses_by_now_it_is_not_done(story: Story) -> None:
    pending = story.proposed()
    story.pilot.guards.foreign.noticed(
        pending.subject.id, "set cpu_shares of it", story.demo.clock.now_ns(), story.demo.clock.now_ns()
    )
    story.say(pending.id)
    story.step(3)
    settled = story.settled(pending.id)
    assert settled is not None
    assert settled.result == "stale"
    assert settled.reason.startswith("foreign-change: somebody else set cpu_shares of it")
    assert story.commands() == []


def test_accepted_when_the_knob_is_another_by_now_it_is_not_done(story: Story) -> None:
    pending = story.proposed()
    action = pending.action
    if isinstance(action, Migrate):
        pytest.fail("the demo begins with a knob")
    assert isinstance(action, SetKnob)
    story.demo.fleet.hypervisor(pending.subject.host).set_knob(action.guest, action.knob, action.expected + 100)
    story.step(15)
    story.say(pending.id)
    story.step(3)
    settled = story.settled(pending.id)
    assert settled is not None
    assert settled.result in {"stale", "withdrawn"}, settled
    assert story.commands() == []


def test_on_a_new_connection_all_is_told_again_for_the_broker_may_have_lost_it(story: Story) -> None:
    pending = story.proposed()
    story.step(2)
    story.page = Approvals(at_ns=0)
    story.step(2)
    assert story.page.pending == [], "no news"
    story.demo.broker.down(forget=True)
    story.demo.broker.up()
    story.step(2)
    assert pending in story.page.pending


@pytest.mark.parametrize("by_s", [3600, -3600])
def test_when_all_clocks_are_set_what_waits_has_as_long_as_before(story: Story, by_s: int) -> None:
    pending = story.proposed()
    story.demo.clock.step(by_s)
    story.step(5)
    (moved,) = (one for one in story.page.pending if one.id == pending.id)
    assert moved.until_ns == pending.until_ns + by_s * 10**9
    story.say(pending.id)
    story.step()
    assert [command.action for command in story.commands()] == [pending.action]


def test_what_waits_for_its_turn_is_told_as_accepted(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a migration does; here it is the guest's backup that a knob waits for."""
    monkeypatch.setattr(pilot, "waits_in_line", lambda _want: True)
    pending = story.proposed()
    subject, work = pending.subject, Announcement(id="nightly", takes_s=600, guest=pending.subject.id)
    assert story.pilot.desk.announce(work, subject.host, subject.id, story.demo.clock.now_ns()) is not None
    story.step(2)
    story.say(pending.id)
    story.step(3)
    (told,) = (one for one in story.page.pending if one.id == pending.id)
    assert (told.accepted_by, story.settled(pending.id), story.commands()) == ("ann", None, [])
    story.pilot.desk.ended("nightly")
    story.step(2)
    assert [command.action for command in story.commands()] == [pending.action]
    settled = story.settled(pending.id)
    assert settled is not None
    assert (settled.result, settled.by) == ("accepted", "ann")


def test_what_is_done_without_anybodys_word_is_not_told_as_accepted(story: Story) -> None:
    """The rule may act by itself by now."""
    pending = story.proposed()
    ruleset = story.demo.controller.rulebook.ruleset
    acting = replace(ruleset, rules=tuple(replace(rule, mode=Mode.ACT) for rule in ruleset.rules))
    story.pilot.decider.reload(acting)
    story.step(2)
    assert pending.action in [command.action for command in story.commands()]
    settled = story.settled(pending.id)
    assert settled is not None
    assert (settled.result, settled.by) == ("withdrawn", "")


def test_a_restart_forgets_neither_what_waits_nor_what_was_said(story: Story) -> None:
    pending = story.proposed()
    again = ApprovalDesk(ApprovalOptions(ttl_s=TTL_S), OPERATORS, story.demo.topics.cluster)
    again.restore(msgspec.json.decode(msgspec.json.encode(story.pilot.approvals.saved())))
    assert again.page(0) == story.pilot.approvals.page(0)
    story.say(pending.id, accepted=False)
    story.step()
    again = ApprovalDesk(ApprovalOptions(ttl_s=TTL_S), OPERATORS, story.demo.topics.cluster)
    again.restore(msgspec.json.decode(msgspec.json.encode(story.pilot.approvals.saved())))
    assert again.page(0) == story.pilot.approvals.page(0)
    assert again.counts["rejected"] == 1
