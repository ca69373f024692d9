"""A host's division that waits for a person: proposed whole, done whole as shown, or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec.structs import replace

from tests.allocating import test_dividing
from tests.allocating.test_dividing import Site
from virtpilot.action import AllocationPolicy, Decided, Divide, Resource, SetKnob
from virtpilot.actuators.command import key_id
from virtpilot.actuators.order import Operators, sign
from virtpilot.clock import seconds
from virtpilot.model import Command, Message
from virtpilot.orders import Pending, Verdict
from virtpilot.pipeline.approvals import ApprovalDesk, ApprovalOptions, Waiting
from virtpilot.pipeline.rehearsal import CLUSTER

KEY: Final = Ed25519PrivateKey.from_private_bytes(bytes(32))
OPERATORS: Final = Operators({key_id(KEY.public_key()): KEY.public_key()})


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A host of three guests whose rule divides it on approval only."""
    monkeypatch.setattr(test_dividing, "RULE", test_dividing.RULE.replace("mode: act", "mode: approve"))
    made = Site(tmp_path, "policy: demand, resource: cpu")
    made.site.controller.pilot.approvals = ApprovalDesk(ApprovalOptions(), OPERATORS, CLUSTER)
    return made


def pending(site: Site) -> Pending:
    (found,) = site.site.controller.pilot.approvals.page(0).pending
    return found


def accept(site: Site, approval: str) -> None:
    now_ns = site.site.clock.now_ns()
    verdict = Verdict(
        cluster=CLUSTER, approval=approval, accepted=True, by="ann", at_ns=now_ns, not_after_ns=now_ns + seconds(30)
    )
    payload = msgspec.json.encode(sign(verdict, KEY))
    site.site.controller.bus.publish(Message(site.site.topics.verdicts, payload)).result(1)
    site.play(5)


def commands(site: Site) -> list[Command]:
    return [record for record in site.site.records() if isinstance(record, Command)]


def test_it_is_proposed_whole_and_done_whole(site: Site) -> None:
    site.play(30)
    proposed = pending(site)
    assert isinstance(proposed.action, Divide)
    assert len(proposed.action.sets) > 1
    assert commands(site) == []
    accept(site, proposed.id)
    sets = [one.action for one in commands(site)]
    assert tuple(one for one in sets if isinstance(one, SetKnob)) == proposed.action.sets
    (settled,) = site.site.controller.pilot.approvals.page(0).settled
    assert (settled.result, settled.by) == ("accepted", "ann")


@pytest.mark.parametrize("other", ["a policy", "a resource", "an action"])
def test_what_was_accepted_for_another_remedy_is_not_done_nor_is_the_rules_own(site: Site, other: str) -> None:
    """The rule has changed while a person thought."""
    site.play(30)
    proposed, desk = pending(site), site.site.controller.pilot.approvals
    assert isinstance(proposed.action, Divide)
    others: dict[str, Decided] = {
        "a policy": replace(proposed.action, policy=AllocationPolicy.CAPACITY),
        "a resource": replace(proposed.action, resource=Resource.MEMORY),
        "an action": proposed.action.sets[0],
    }
    key = f"{proposed.rule} {proposed.subject.id}"
    desk._waiting[key] = Waiting(pending=replace(proposed, action=others[other]))
    accept(site, proposed.id)
    assert commands(site) == []
    (settled,) = desk.page(0).settled
    assert (settled.result, settled.reason) == ("stale", "approval: the rule wants something else by now")
    assert pending(site).action == proposed.action, "asked anew"


def test_when_one_guests_knob_is_another_by_now_nothing_is_done(site: Site) -> None:
    site.play(30)
    proposed = pending(site)
    site.site.agents.knobs["uuid-web", "cpu_shares"] = 7777
    site.play(10)
    accept(site, proposed.id)
    assert commands(site) == []
    (settled,) = site.site.controller.pilot.approvals.page(0).settled
    assert (settled.result, settled.reason) == ("stale", "approval: cpu_shares of web is no longer 1024")
