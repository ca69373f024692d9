"""A controller that lives says so; without it an agent's leases end after the grace period, whatever became of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.actuators.one_host import command, set_to
from virtpilot.action import SetKnob
from virtpilot.actuators.command import Signer, Verifier
from virtpilot.clock import VirtualClock
from virtpilot.model import Message
from virtpilot.pipeline.agent import Agent
from virtpilot.pipeline.bus.memory import MemoryBroker, MemoryBus
from virtpilot.pipeline.demo import simulated_agent
from virtpilot.pipeline.presence import ControllerWatch, Heartbeat, presence
from virtpilot.simulator.fleet import Fleet
from virtpilot.simulator.scenario import GuestSpec, HostSpec, Scenario, guest_uuid
from virtpilot.topics import Topics

TOPICS = Topics("demo")
WEB = guest_uuid("web")
EPOCH = 7


class Site:
    """One simulated host with its agent, and a controller that does no more than live."""

    def __init__(self, folder: Path) -> None:
        self.clock = VirtualClock()
        self.broker = MemoryBroker(self.clock)
        guest = GuestSpec(name="web", host="host-1", vcpus=1, memory_mib=512)
        hosts = [HostSpec(name="host-1", cpus=2, memory_mib=4096)]
        self.fleet = Fleet(Scenario(name="presence", hosts=hosts, guests=[guest]), self.clock.now_ns())
        key = Ed25519PrivateKey.generate()
        self.signer = Signer(key)
        self.folder, self.verifier = folder, Verifier({self.signer.key_id: key.public_key()}, "host-1")
        self.agent = self.start_agent()
        self.bus, self.heart = self.controller(EPOCH)
        self.beating = True

    def controller(self, epoch: int) -> tuple[MemoryBus, Heartbeat]:
        will = presence(TOPICS, epoch, self.clock.now_ns(), online=False)
        bus = self.broker.connect(f"controller-{epoch}", will)
        return bus, Heartbeat(bus, TOPICS, epoch, self.clock)

    def start_agent(self) -> Agent:
        agent = simulated_agent(self.fleet, "host-1", cluster="demo", boot="b", broker=self.broker, clock=self.clock,
                                folder=self.folder, verifier=self.verifier)  # fmt: skip
        agent.start()
        return agent

    def set(self, lease_s: float = 3600, *, epoch: int = EPOCH) -> None:
        now_ns = self.clock.now_ns()
        action: SetKnob = set_to(2048, guest=WEB, lease_s=lease_s)
        sent = command(action, f"cm-{now_ns}", at_ns=now_ns, epoch=epoch)
        self.bus.publish(Message(TOPICS.commands("host-1"), self.signer.seal(sent)))
        self.agent.step(0)

    def run(self, seconds: int) -> None:
        for _second in range(seconds):
            self.fleet.advance(1.0)
            self.clock.advance(1.0)
            if self.beating:
                self.heart.tick()
            self.agent.step(0)

    @property
    def shares(self) -> int:
        return self.fleet.hypervisor("host-1").get_knob(WEB, "cpu_shares")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_a_lease_lives_as_long_as_the_controller_does(site: Site) -> None:
    site.set()
    site.run(1000)
    assert site.shares == 2048
    site.beating = False
    site.run(285)
    assert site.shares == 2048
    site.run(30)
    assert (site.shares, site.agent.executor.leases()) == (1024, [])


def test_a_controller_that_was_killed_leaves_word_but_the_grace_counts(site: Site) -> None:
    """A restart within it changes nothing."""
    site.set()
    site.run(20)
    site.beating = False
    site.bus.drop()
    site.run(200)
    assert site.shares == 2048
    site.bus, site.heart = site.controller(EPOCH + 1)
    site.beating = True
    site.run(600)
    assert site.shares == 2048


def test_what_the_broker_has_retained_is_no_sign_of_life(site: Site) -> None:
    """A broker and a controller that were lost together: the last word was `online`, and is told again for ever."""
    site.set()
    site.run(20)
    site.beating = False
    site.agent.close()
    site.agent = site.start_agent()
    site.run(100)
    assert site.agent.attention.controller.silent_s > 90
    site.run(210)
    assert site.shares == 1024


def test_without_a_broker_nobody_is_heard(site: Site) -> None:
    site.set()
    site.run(20)
    site.broker.down()
    site.run(320)
    assert site.shares == 1024


def test_a_superseded_controller_keeps_no_lease_alive(site: Site) -> None:
    """Its epoch is older than that of a command that was obeyed."""
    site.set(epoch=EPOCH + 1)
    site.run(320)
    assert site.shares == 1024


def test_a_command_is_a_sign_of_life_too(site: Site) -> None:
    site.beating = False
    site.run(280)
    site.set()
    site.run(280)
    assert site.shares == 2048


@pytest.mark.parametrize("payload", [b"", b"\xff", b"[]", b'{"online": true}', b"{" * 5000])
def test_what_cannot_be_read_is_no_sign_of_life(payload: bytes) -> None:
    clock = VirtualClock()
    watch = ControllerWatch(10, clock)
    clock.advance(20)
    watch.take(Message(TOPICS.controller, payload), 0)
    assert watch.lost() == "no controller was heard of for 10 s"


def test_a_grace_of_nothing_is_none() -> None:
    clock = VirtualClock()
    watch = ControllerWatch(0, clock)
    clock.advance(1e6)
    assert watch.lost() == ""


def test_it_says_goodbye_and_its_last_word_is_kept(site: Site) -> None:
    site.run(1)
    site.heart.stop()
    late = site.broker.connect("late")
    late.subscribe(TOPICS.controller)
    delivery = late.receive(0)
    assert delivery is not None
    assert delivery.message.retain
    assert b'"online":false' in delivery.message.payload
