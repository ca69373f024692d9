"""What controller and agents of a simulated fleet write down, and what an agent refuses."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

from tests.demos import CPU_RULES
from virtpilot.action import SetKnob
from virtpilot.actuators.command import Signer, Verifier
from virtpilot.clock import SECOND, VirtualClock
from virtpilot.model import Command, Message
from virtpilot.pipeline.agent import Agent
from virtpilot.pipeline.audit.audit_cli import app
from virtpilot.pipeline.audit.chain import CURRENT, Line
from virtpilot.pipeline.audit.show import Asked, chosen, lines
from virtpilot.pipeline.audit.verify import verify
from virtpilot.pipeline.bus.memory import MemoryBroker
from virtpilot.pipeline.demo import Demo, simulated_agent
from virtpilot.simulator import scenario
from virtpilot.simulator.fleet import Fleet
from virtpilot.topics import Topics


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo in which a guest was helped."""
    folder = tmp_path_factory.mktemp("demo")
    demo = Demo(folder, rules=CPU_RULES)
    for _ in range(220):
        demo.step()
    demo.close()
    return folder


def test_every_log_is_whole_and_says_what_was_done(played: Path) -> None:
    kept = list(lines(played / "controller"))
    assert verify(played / "controller").problems == []
    assert [line.kind for line in kept[:2]] == ["start", "rules"]
    assert kept[1].entry["taken"] is True
    commands = {line.entry["id"] for line in kept if line.kind == "command"}
    assert commands
    for command in commands:
        related = chosen(kept, Asked(record=command))
        assert {"decision", "command", "outcome"} <= {line.kind for line in related}
        host = next(line.entry["host"] for line in related if line.kind == "command")
        told = list(lines(played / host))
        assert verify(played / host).problems == []
        assert command in {line.entry["id"] for line in told if line.kind == "command"}
        assert command in {line.entry["command"] for line in told if line.kind == "outcome"}


def test_causes_are_walked_both_ways(played: Path) -> None:
    kept = list(lines(played / "controller"))
    effect = next(line for line in kept if line.kind == "outcome" and line.entry["result"] == "effective")
    back = chosen(kept, Asked(record=effect.entry["id"]))
    first = back[0]
    assert (first.kind, first.entry["accepted"]) == ("decision", True)
    assert effect.entry["id"] in {line.entry["id"] for line in chosen(kept, Asked(record=first.entry["id"]))}


def test_the_command_line_verifies_and_shows(played: Path, tmp_path: Path) -> None:
    runner, folder = CliRunner(), str(played / "controller")
    assert runner.invoke(app, ["verify", folder]).exit_code == 0
    name = next(
        line.entry["subject"]["name"] for line in lines(played / "controller") if line.entry.get("accepted") is True
    )
    shown = runner.invoke(app, ["show", folder, "--guest", name])
    assert shown.exit_code == 0
    assert {"decision", "command", "outcome"} <= set(shown.output.split())
    document = msgspec.json.decode(runner.invoke(app, ["show", folder, "--guest", name, "--json"]).output)
    assert len(document) == len(shown.output.splitlines())
    raw = (played / "controller" / CURRENT).read_bytes()
    changed = tmp_path / CURRENT
    changed.write_bytes(raw.replace(b'"accepted":true', b'"accepted":false', 1))
    result = runner.invoke(app, ["verify", str(changed)])
    assert result.exit_code == 1
    assert "was changed: its hash is another one" in result.output


class Site:
    """One simulated host with its agent, and a controller's key."""

    def __init__(self, folder: Path) -> None:
        self.clock = VirtualClock()
        fleet = Fleet(scenario.load(scenario.demo_path()), self.clock.now_ns())
        broker = MemoryBroker(self.clock)
        self.folder = folder
        self._key = Ed25519PrivateKey.generate()
        self.signer = Signer(self._key)
        self.forger = Signer(Ed25519PrivateKey.generate())
        public = self._key.public_key()
        self.host = next(iter(fleet.hosts))
        self.agent: Agent = simulated_agent(
            fleet,
            self.host,
            cluster="c",
            boot="b",
            broker=broker,
            clock=self.clock,
            folder=folder,
            verifier=Verifier({self.signer.key_id: public}, self.host),
        )
        self.agent.start()
        self.agent.step(0)
        self.clock.advance(1.0)  # on a new connection commands wait for a moment
        guest = fleet.hypervisor(self.host).guests()[0]
        self.guest, self.shares = guest.uuid, int(guest.knobs["cpu_shares"])
        self.knob: Callable[[], int] = lambda: int(fleet.hypervisor(self.host).get_knob(self.guest, "cpu_shares"))
        self._bus, self._topics = broker.connect("controller"), Topics("c")

    def command(self, name: str = "cm-1", **more: object) -> Command:
        now_ns = self.clock.now_ns()
        action = SetKnob(guest=self.guest, knob="cpu_shares", value=2048, expected=self.shares, lease_s=600)
        made = Command(
            id=name,
            cause="dc-1",
            host=self.host,
            action=action,
            rule="r",
            issued_ns=now_ns,
            not_after_ns=now_ns + 30 * SECOND,
            epoch=7,
        )
        return msgspec.structs.replace(made, **more)

    def seal(self, inner: bytes) -> bytes:
        """Sign whatever bytes: what a controller of another version might send."""
        signature = base64.b64encode(self._key.sign(b"virtpilot command v1\n" + inner)).decode()
        return b'{"key":"%b","signature":"%b","command":%b}' % (self.signer.key_id.encode(), signature.encode(), inner)

    def send(self, payload: bytes) -> list[Line]:
        """Let the agent have a message, and return what it writes down of it."""
        known = len(list(lines(self.folder)))
        self._bus.publish(Message(self._topics.commands(self.host), payload))
        self.agent.step(0)
        return list(lines(self.folder))[known:]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.agent.close()
    assert verify(tmp_path).problems == []


def _action(site: Site, **more: object) -> SetKnob:
    action = site.command().action
    assert isinstance(action, SetKnob)
    return msgspec.structs.replace(action, **more)


# What is wrong with a command, how it is made, and the guard that refuses it.
HOSTILE: dict[str, tuple[Callable[[Site], bytes], str]] = {
    "signed by nobody known": (lambda site: site.forger.seal(site.command()), "key"),
    "bad signature": (
        lambda site: site.signer.seal(site.command()).replace(b'"value":2048', b'"value":9999'),
        "signature",
    ),
    "of another host": (lambda site: site.signer.seal(site.command(host="host-9")), "host"),
    "for all hosts": (lambda site: site.signer.seal(site.command(host="+")), "wildcard-host"),
    "expired": (
        lambda site: site.signer.seal(
            site.command(issued_ns=site.clock.now_ns() - 60 * SECOND, not_after_ns=site.clock.now_ns() - SECOND)
        ),
        "expired",
    ),
    "by a clock 10 minutes ahead": (
        lambda site: site.signer.seal(
            site.command(issued_ns=site.clock.now_ns() + 600 * SECOND, not_after_ns=site.clock.now_ns() + 630 * SECOND)
        ),
        "future",
    ),
    "by a clock 10 minutes behind": (
        lambda site: site.signer.seal(
            site.command(issued_ns=site.clock.now_ns() - 600 * SECOND, not_after_ns=site.clock.now_ns() - 570 * SECOND)
        ),
        "expired",
    ),
    "of 200 KiB": (lambda site: site.signer.seal(site.command(rule="x" * 200 * 2**10)), "size"),
    "broken UTF-8": (
        lambda site: site.seal(msgspec.json.encode(site.command()).replace(b"cm-1", b"cm\xff1")),
        "malformed",
    ),
    "no JSON": (lambda _site: b"stop all guests", "malformed"),
    "an unknown action": (
        lambda site: site.seal(msgspec.json.encode(site.command()).replace(b'"set_knob"', b'"set_fire"')),
        "action",
    ),
    "a value out of range": (
        lambda site: site.signer.seal(site.command(action=_action(site, value=10**9))),
        "caps",
    ),
    "a lease without end": (
        lambda site: site.signer.seal(site.command(action=_action(site, lease_s=1e12))),
        "caps",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_command_is_refused_with_its_reason_and_audited(site: Site, name: str) -> None:
    make, guard = HOSTILE[name]
    payload = make(site)
    written = site.send(payload)
    assert site.knob() == site.shares
    (refused,) = [line for line in written if line.kind == "refused" or line.entry.get("result") == "refused"]
    assert (refused.entry["guard"], bool(refused.entry["reason"])) == (guard, True)
    if refused.kind == "refused":
        assert refused.entry["sha256"] == sha256(payload).hexdigest()


def test_a_megabyte_does_not_even_reach_the_agent(site: Site) -> None:
    """The bus takes a mebibyte at most; `size` is the limit of the agent itself, below that."""
    assert site.send(site.signer.seal(site.command(rule="x" * 2**20))) == []
    assert site.knob() == site.shares


def test_a_replay_does_nothing_and_is_audited(site: Site) -> None:
    payload = site.signer.seal(site.command())
    assert [line.kind for line in site.send(payload)] == ["command", "outcome"]
    assert site.knob() == 2048
    for _ in range(3):
        assert [(line.kind, line.entry) for line in site.send(payload)] == [("repeated", {"id": "cm-1"})]


def test_an_older_epoch_and_a_command_that_comes_too_late_for_another_are_refused(site: Site) -> None:
    first = site.signer.seal(site.command("cm-1", epoch=8))
    reordered = site.signer.seal(site.command("cm-0", action=_action(site, value=512)))
    older = site.signer.seal(site.command("cm-2", epoch=7, action=_action(site, expected=2048, value=4096)))
    late = site.signer.seal(site.command("cm-3", epoch=8, action=_action(site, value=512)))
    site.send(first)
    for payload, guard in ((older, "epoch"), (reordered, "epoch"), (late, "stale")):
        (told,) = [line for line in site.send(payload) if line.kind == "outcome"]
        assert (told.entry["result"], told.entry["guard"]) == ("refused", guard)
    assert site.knob() == 2048


def test_a_flood_of_forgeries_does_not_fill_the_disk(site: Site) -> None:
    for number in range(300):
        site.send(b"forged %d" % number)
    site.clock.advance(61)
    site.send(b"one more")
    told = [line for line in lines(site.folder) if line.kind == "refused"]
    assert len(told) == 102
    assert told[100].entry == {"reason": "200 more within a minute"}
