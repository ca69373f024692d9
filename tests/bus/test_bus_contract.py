"""One contract for both buses: in memory, and MQTT 5 with a real mosquitto behind it."""

from __future__ import annotations

import contextlib
import itertools
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from tests.services import Mosquitto, until
from virtpilot.clock import VirtualClock
from virtpilot.errors import BusError
from virtpilot.model import Bus, Delivery, Message
from virtpilot.pipeline.bus.filters import MAX_PAYLOAD_BYTES
from virtpilot.pipeline.bus.memory import MemoryBroker, MemoryBus
from virtpilot.pipeline.bus.mqtt import MqttBus, MqttOptions

WAIT_S = 5.0


class World(Protocol):
    """A broker that the contract is held against."""

    def connect(self, client: str, will: Message | None = None) -> Bus: ...
    def crash(self, bus: Bus) -> None: ...
    def restart(self) -> None: ...
    def down(self) -> None: ...
    def up(self) -> None: ...
    def pass_time(self, seconds: float) -> None: ...


class MemoryWorld:
    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.broker = MemoryBroker(self.clock)

    def connect(self, client: str, will: Message | None = None) -> Bus:
        return self.broker.connect(client, will)

    def crash(self, bus: Bus) -> None:
        assert isinstance(bus, MemoryBus)
        bus.drop()

    def down(self) -> None:
        self.broker.down(forget=True)

    def up(self) -> None:
        self.broker.up()

    def restart(self) -> None:
        self.down()
        self.up()

    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)


class MqttWorld:
    def __init__(self, folder: Path) -> None:
        self.server = Mosquitto(folder)
        self.server.start()
        self.options = MqttOptions(port=self.server.port, reconnect_min_s=0.05, reconnect_max_s=0.2)
        self.buses: list[MqttBus] = []

    def connect(self, client: str, will: Message | None = None) -> Bus:
        bus = MqttBus(self.options, client, will)
        self.buses.append(bus)
        assert until(lambda: bus.generation, WAIT_S)
        return bus

    def crash(self, bus: Bus) -> None:
        """Cut the line as a killed process does: the socket goes without a word."""
        assert isinstance(bus, MqttBus)
        # An acknowledgement on its way would rightly be lost, and its message come again.
        assert until(lambda: not bus._client.want_write(), WAIT_S)
        bus._closing.set()
        line = bus._client.socket()
        assert isinstance(line, socket.socket)
        line.shutdown(socket.SHUT_RDWR)
        bus._thread.join(WAIT_S)

    def down(self) -> None:
        self.server.kill()
        assert until(lambda: all(bus.generation == 0 for bus in self.buses), WAIT_S)

    def up(self) -> None:
        self.server.start()
        assert until(lambda: all(bus.generation or bus._closing.is_set() for bus in self.buses), WAIT_S)

    def restart(self) -> None:
        self.down()
        self.up()

    def pass_time(self, seconds: float) -> None:
        assert not until(lambda: False, seconds)

    def end(self) -> None:
        for bus in self.buses:
            bus.close()
        self.server.stop()


@pytest.fixture(params=["memory", pytest.param("mosquitto", marks=pytest.mark.server)])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    if request.param == "memory":
        yield MemoryWorld()
        return
    mqtt = MqttWorld(tmp_path / "broker")
    yield mqtt
    mqtt.end()


def send(bus: Bus, topic: str, payload: bytes = b"x", **more: object) -> None:
    bus.publish(Message(topic, payload, **more)).result(WAIT_S)  # type: ignore[arg-type]


def take(bus: Bus) -> Delivery:
    delivery = bus.receive(WAIT_S)
    assert delivery is not None, "nothing came"
    return delivery


def payloads(bus: Bus, count: int) -> list[bytes]:
    got = []
    for _ in range(count):
        delivery = take(bus)
        got.append(delivery.message.payload)
        delivery.ack()
    return got


def nothing_comes(bus: Bus) -> bool:
    return bus.receive(0.3) is None


def test_what_is_published_arrives_in_order(world: World) -> None:
    reader, sender = world.connect("reader"), world.connect("sender")
    reader.subscribe("a/b")
    for number in range(50):
        send(sender, "a/b", b"%d" % number)
    assert payloads(reader, 50) == [b"%d" % number for number in range(50)]
    assert nothing_comes(reader)


def test_what_is_said_together_arrives_in_order_also_where_it_ends_in_an_error(world: World) -> None:
    reader, sender = world.connect("reader"), world.connect("sender")
    reader.subscribe("a/b")
    send(sender, "a/b", b"first")
    futures = []
    with contextlib.suppress(ValueError), sender.together():
        for number in range(30):
            with sender.together():
                futures.append(sender.publish(Message("a/b", b"%d" % number)))
        raise ValueError
    with reader.together():
        assert payloads(reader, 31) == [b"first", *(b"%d" % number for number in range(30))]
    for future in futures:
        future.result(WAIT_S)
    assert nothing_comes(reader)


def test_what_is_said_together_while_the_broker_goes_reaches_it_once_it_is_back(world: World) -> None:
    sender = world.connect("sender")
    with sender.together():
        futures = [sender.publish(Message("a/b", b"before"))]
        world.restart()
        futures.append(sender.publish(Message("a/b", b"behind")))
    for future in futures:
        future.result(WAIT_S)


@pytest.mark.parametrize(
    ("pattern", "taken", "not_taken"),
    [
        ("a/+/c", "a/b/c", "a/b/c/d"),
        ("a/#", "a", "b/a"),
        ("a/#", "a/b/c", "ab/c"),
        ("+/+", "/x", "x"),
        ("#", "any/thing", "$hidden/x"),
    ],
)
def test_wildcards(world: World, pattern: str, taken: str, not_taken: str) -> None:
    reader, sender = world.connect("reader"), world.connect("sender")
    reader.subscribe(pattern)
    send(sender, not_taken, b"no")
    send(sender, taken, b"yes")
    assert payloads(reader, 1) == [b"yes"]


def test_retained_messages_wait_for_the_subscriber_and_can_be_cleared(world: World) -> None:
    sender = world.connect("sender")
    send(sender, "s/one", b"old", retain=True)
    send(sender, "s/one", b"new", retain=True)
    send(sender, "s/two", b"gone", retain=True)
    send(sender, "s/two", b"", retain=True)
    reader = world.connect("reader")
    reader.subscribe("s/+")
    delivery = take(reader)
    assert (delivery.message.payload, delivery.message.retain) == (b"new", True)
    send(sender, "s/one", b"live", retain=True)
    delivery = take(reader)
    assert (delivery.message.payload, delivery.message.retain) == (b"live", False)
    assert nothing_comes(reader)


def test_a_crash_publishes_the_will_and_closing_does_not(world: World) -> None:
    reader = world.connect("reader")
    reader.subscribe("will/#")
    crashing = world.connect("crashing", Message("will/crashing", b"gone", {"why": "crash"}, retain=True))
    closing = world.connect("closing", Message("will/closing", b"gone"))
    closing.close()
    world.crash(crashing)
    delivery = take(reader)
    assert (delivery.message.topic, delivery.message.properties) == ("will/crashing", {"why": "crash"})
    delivery.ack()
    assert nothing_comes(reader)


def test_what_was_not_acknowledged_comes_again_after_a_reconnect(world: World) -> None:
    reader, sender = world.connect("reader"), world.connect("sender")
    reader.subscribe("a")
    for payload in (b"one", b"two", b"three"):
        send(sender, "a", payload)
    take(reader).ack()
    assert take(reader).message.payload == b"two"
    world.crash(reader)
    send(sender, "a", b"four")
    again = world.connect("reader")
    assert payloads(again, 3) == [b"two", b"three", b"four"]
    assert nothing_comes(again)


def test_acknowledging_twice_and_late_is_harmless(world: World) -> None:
    reader, sender = world.connect("reader"), world.connect("sender")
    reader.subscribe("a")
    send(sender, "a", b"one")
    late = take(reader)
    late.ack()
    late.ack()
    send(sender, "a", b"two")
    stale = take(reader)
    world.restart()
    stale.ack()
    send(sender, "a", b"three")
    assert payloads(reader, 1) == [b"three"]
    assert nothing_comes(reader)


def test_a_group_shares_the_load_and_each_message_comes_once(world: World) -> None:
    members = [world.connect(f"writer-{number}") for number in range(3)]
    single = world.connect("single")
    for member in members:
        member.subscribe("m/+", group="writers")
    single.subscribe("m/+")
    sender = world.connect("sender")
    for number in range(30):
        send(sender, "m/x", b"%d" % number)
    everything = [b"%d" % number for number in range(30)]
    assert payloads(single, 30) == everything
    shares: list[list[bytes]] = []
    for member in members:
        share = []
        while (delivery := member.receive(0.2)) is not None:
            share.append(delivery.message.payload)
            delivery.ack()
        shares.append(share)
    assert sorted(itertools.chain(*shares)) == sorted(everything)
    assert all(len(share) >= 5 for share in shares)


def test_user_properties_travel(world: World) -> None:
    reader, sender = world.connect("reader"), world.connect("sender")
    reader.subscribe("p")
    properties = {"virtpilot-boot": "b1", "virtpilot-seq": "42", "ünï": "çødé"}
    send(sender, "p", properties=properties)
    assert take(reader).message.properties == properties


def test_a_broker_restart_changes_the_generation_and_subscriptions_come_back(world: World) -> None:
    reader, sender = world.connect("reader"), world.connect("sender")
    reader.subscribe("a/+")
    before = reader.generation
    assert before > 0
    world.down()
    assert reader.generation == sender.generation == 0
    world.up()
    assert reader.generation > before
    send(sender, "a/b", b"after")
    assert payloads(reader, 1) == [b"after"]


def test_what_is_published_without_a_broker_goes_out_when_it_is_back(world: World) -> None:
    reader, sender = world.connect("reader"), world.connect("sender")
    reader.subscribe("a")
    world.down()
    # Retained: this broker forgot its sessions, and the sender may be back before the reader.
    future = sender.publish(Message("a", b"patient", retain=True))
    assert not future.done()
    world.up()
    future.result(WAIT_S)
    assert payloads(reader, 1) == [b"patient"]


def test_a_message_that_expired_is_not_delivered(world: World) -> None:
    reader, sender = world.connect("reader"), world.connect("sender")
    reader.subscribe("c")
    reader.close()
    send(sender, "c", b"short", expiry_s=1)
    send(sender, "c", b"long", expiry_s=3600)
    world.pass_time(2.2)
    again = world.connect("reader")
    assert payloads(again, 1) == [b"long"]
    assert nothing_comes(again)


def test_close_sends_what_was_published_before(world: World) -> None:
    reader, sender = world.connect("reader"), world.connect("sender")
    reader.subscribe("z")
    futures = [sender.publish(Message("z", b"%d" % number)) for number in range(100)]
    sender.close()
    assert all(future.done() and future.exception() is None for future in futures)
    assert payloads(reader, 100) == [b"%d" % number for number in range(100)]


def test_a_closed_bus_refuses(world: World) -> None:
    bus = world.connect("closed")
    bus.close()
    bus.close()
    with pytest.raises(BusError):
        bus.publish(Message("a", b"x")).result(WAIT_S)
    assert bus.receive(0) is None
    assert bus.generation == 0


@pytest.mark.parametrize(
    "message",
    [Message("a/+", b""), Message("", b""), Message("a", bytes(MAX_PAYLOAD_BYTES + 1))],
    ids=["wild", "empty", "large"],
)
def test_what_cannot_be_published_fails_its_future_only(world: World, message: Message) -> None:
    bus = world.connect("sender")
    with pytest.raises(BusError):
        bus.publish(message).result(WAIT_S)
    send(bus, "fine")


@pytest.mark.parametrize("pattern", ["", "a/#/b", "a+/b", "#a"])
def test_a_pattern_that_is_none_is_refused(world: World, pattern: str) -> None:
    with pytest.raises(ValueError, match=r"filter|level"):
        world.connect("reader").subscribe(pattern)
