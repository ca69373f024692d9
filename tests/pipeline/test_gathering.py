"""Messages that may wait are evaluated together, in time; each is acknowledged once it is evaluated, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from virtpilot.actuators.command import Signer
from virtpilot.clock import SECOND, VirtualClock, seconds
from virtpilot.lineblocks import Lines
from virtpilot.lineprotocol import encode_lines
from virtpilot.model import Message, Outcome, Result, Sample, Signal
from virtpilot.pipeline import assembly
from virtpilot.pipeline.bus.memory import MemoryBroker
from virtpilot.pipeline.controller_config import ControllerConfig
from virtpilot.pipeline.gathering import Gathering, Heard
from virtpilot.pipeline.rulebook import RuleOptions
from virtpilot.pipeline.timing import ControllerTiming
from virtpilot.topics import BOOT_PROPERTY, SEQUENCE_PROPERTY, Topics

RULES = """
virtpilot: 1
rules:
  - {name: hot, on: host, when: cpu_usage_ratio > 80%}
  - {name: busy, on: host, when: cpu_usage_ratio > 50%, for: 5m}
"""
TOPICS = Topics("c")


class Held:
    """A message that says when it is acknowledged."""

    def __init__(self, host: str, acknowledged: list[str]) -> None:
        self.message = Message(TOPICS.metrics(host), b"")
        self._host, self._acknowledged = host, acknowledged

    def ack(self) -> None:
        self._acknowledged.append(self._host)


class Room:
    """A gathering with a clock, told of each message whether it hurries by the first letter of its host."""

    def __init__(self) -> None:
        self.clock, self.acknowledged = VirtualClock(), list[str]()
        self.gathering = Gathering(seconds(0.5), self.clock)
        self.evaluated: list[list[str]] = []

    def hear(self, *hosts: str, after_s: float = 0.05) -> None:
        self.clock.advance(after_s)
        found = [Heard(Held(host, self.acknowledged), Lines([], {}, []), host, host) for host in hosts]
        self.gathering.came(one.delivery for one in found)
        told = iter(hosts)
        haste: dict[str, bool | None] = {"c": False, "u": True, "o": None}
        self.evaluate(self.gathering.sift(found, lambda _lines: haste[next(told)[0]]))

    def evaluate(self, batches: Iterable[list[Heard]]) -> None:
        for some in batches:
            self.evaluated.append([one.host for one in some])
            for delivery in self.gathering.done(one.delivery for one in some):
                delivery.ack()


def test_what_hurries_goes_by_and_what_waits_is_acknowledged_before_it() -> None:
    room = Room()
    for host in ("c0", "c1", "u2", "c3"):
        room.hear(host)
    # The first one comes after a silence: nobody would share its wait.
    assert room.evaluated == [["c0"], ["u2"]]
    assert room.acknowledged == ["c0"]
    room.evaluate(room.gathering.take())
    assert room.evaluated[2:] == [["c1", "c3"]]
    assert room.acknowledged == ["c0", "c1", "u2", "c3"]


def test_nothing_passes_what_is_not_simple_nor_its_own_host() -> None:
    room = Room()
    for host in ("c0", "c1", "o2", "c3", "c4", "c3"):
        room.hear(host)
    assert room.evaluated == [["c0"], ["c1"], ["o2"], ["c3", "c4"], ["c3"]]


def test_the_wait_ends_with_the_span_of_the_first_and_with_many() -> None:
    room = Room()
    assert room.gathering.left_ns() is None
    room.hear("c0")
    room.hear("c1")
    room.hear("c2", after_s=0.3)
    assert room.gathering.left_ns() == seconds(0.2)
    room.clock.advance(1.0)
    assert room.gathering.left_ns() == 0
    room.evaluate(room.gathering.take())
    room.hear("c0")
    room.evaluated.clear()
    room.hear(*(f"c{number}" for number in range(1, 20)))
    assert [len(some) for some in room.evaluated] == [16]


class Site:
    """A controller with two rules about hosts, which agents tell of."""

    def __init__(self, folder: Path, gather_s: float = 0.5) -> None:
        rules = folder / "rules.yaml"
        rules.write_text(RULES)
        self.clock, self._number = VirtualClock(1_700_000_000 * SECOND), 0
        broker = MemoryBroker(self.clock)
        self.bus = broker.connect("agents")
        self.bus.subscribe(TOPICS.signals("+"))
        self.controller = assembly.controller(
            ControllerConfig(
                cluster="c",
                state_folder=str(folder),
                rules=RuleOptions(paths=[str(rules)]),
                timing=ControllerTiming(gather_s=gather_s, tick_s=60.0),
            ),
            bus=lambda _will: broker.connect("controller"),
            clock=self.clock,
            signer=Signer(Ed25519PrivateKey.generate()),
            folder=None,
        )
        self.controller.start()
        self.controller.step(0)
        for host in ("h1", "h2", "h3"):
            self.tell(host, 0.1)
        self.controller.step(0)
        self.hears("h3", 0.1)

    def tell(self, host: str, usage: float) -> None:
        """Publish what an agent measures."""
        self.clock.advance(0.01)
        self._number += 1
        line = encode_lines(
            [Sample("host", {"cluster": "c", "host": host}, {"cpu_usage_ratio": usage}, self.clock.now_ns())]
        )
        properties = {BOOT_PROPERTY: "b", SEQUENCE_PROPERTY: str(self._number)}
        self.bus.publish(Message(TOPICS.metrics(host), line, properties))

    def hears(self, host: str, usage: float) -> None:
        """Tell, and let the controller handle it."""
        self.tell(host, usage)
        self.controller.step(0.001)

    def signals(self) -> list[str]:
        """Return what has been signalled since the last call."""
        found = []
        while (delivery := self.bus.receive(0)) is not None:
            signal = msgspec.json.decode(delivery.message.payload, type=Signal)
            found.append(f"{signal.rule} {signal.subject.id} {signal.state.value}")
            delivery.ack()
        return found


def test_a_signal_that_begins_to_fire_does_not_wait_and_others_do(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.hears("h1", 0.6)
    assert site.signals() == []
    site.hears("h2", 0.9)
    assert site.signals() == ["hot h2 firing", "busy h2 pending"]
    site.clock.advance(0.5)
    site.controller.step(0.001)
    assert site.signals() == ["busy h1 pending"]


def settled_by(act: Callable[[Site], None], folder: Path) -> list[str]:
    """What is signalled by something that is done while a message waits."""
    site = Site(folder)
    site.hears("h1", 0.6)
    assert site.signals() == []
    act(site)
    return site.signals()


def test_what_waits_is_evaluated_before_anything_is_asked(tmp_path: Path) -> None:
    def outcome(host: str) -> Callable[[Site], None]:
        def tell(site: Site) -> None:
            told = Outcome(id="o", cause="c", command="c", host=host, guest="g", result=Result.DONE, at_ns=1)
            site.bus.publish(Message(TOPICS.outcomes(host), msgspec.json.encode(told)))
            site.controller.step(0.001)

        return tell

    def ticks(site: Site) -> None:
        site.clock.advance(60.0)
        site.controller.step(0.001)

    seen = ["busy h1 pending"]
    assert settled_by(outcome("h1"), tmp_path) == seen
    assert settled_by(outcome("h2"), tmp_path) == []
    assert settled_by(ticks, tmp_path) == seen
    assert settled_by(lambda site: site.controller.step(0), tmp_path) == seen
    assert settled_by(lambda site: site.controller.close(), tmp_path) == seen


def test_nothing_waits_where_that_is_switched_off(tmp_path: Path) -> None:
    site = Site(tmp_path, gather_s=0.0)
    site.hears("h1", 0.6)
    assert site.signals() == ["busy h1 pending"]
