"""The connection is served with few wakes and without paho where packets are ordinary, and nobody can tell."""

from __future__ import annotations

import socket
import threading
from collections import deque
from typing import Any, Final

import pytest
from paho.mqtt.client import Client

from tests.conftest import MakeMosquitto
from tests.services import until
from virtpilot.model import Message
from virtpilot.pipeline.bus import loop, packets, receiver, sender
from virtpilot.pipeline.bus.filters import MAX_PAYLOAD_BYTES
from virtpilot.pipeline.bus.mqtt import MqttBus, MqttOptions

pytestmark = [pytest.mark.server, pytest.mark.prompt]
SIZES: Final = (0, 1, 100, 40_000, 200_000, 300_000, MAX_PAYLOAD_BYTES, 3)


def round_trip(bus: MqttBus) -> None:
    """Send messages of all sizes, one behind the other, and take them."""
    sent = [Message("a/b", bytes([number]) * size, {"n": str(number)}) for number, size in enumerate(SIZES)]
    futures = [bus.publish(message) for message in sent]
    for message in sent:
        delivery = bus.receive(10)
        assert delivery is not None
        assert delivery.message == message
        delivery.ack()
    for future in futures:
        future.result(10)
    assert bus.receive(0.1) is None


def test_what_is_ordinary_comes_without_paho(make_mosquitto: MakeMosquitto, monkeypatch: pytest.MonkeyPatch) -> None:
    bus = MqttBus(MqttOptions(port=make_mosquitto().port), "both")
    try:
        assert until(lambda: bus.generation)
        bus.subscribe("a/+")
        with monkeypatch.context() as patched:
            for name in ("_packet_read", "_handle_publish", "_handle_pubackcomp", "_send_publish", "_send_puback"):
                patched.delattr(Client, name)
            round_trip(bus)
    finally:
        bus.close()


def test_without_the_names_that_are_pahos_own_paho_reads_all(
    make_mosquitto: MakeMosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiver, "_OWN_NAMES", ("_gone_some_day",))
    monkeypatch.setattr(receiver, "read_publish", None)
    monkeypatch.setattr(sender, "packed_publish", None)
    bus = MqttBus(MqttOptions(port=make_mosquitto().port), "both")
    try:
        assert until(lambda: bus.generation)
        bus.subscribe("a/+")
        round_trip(bus)
    finally:
        bus.close()


def test_what_is_said_together_leaves_at_the_end_in_order(
    make_mosquitto: MakeMosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus = MqttBus(MqttOptions(port=make_mosquitto().port), "both")
    sends: list[int] = []
    send = packets.sent

    def counted(line: socket.socket, waiting: deque[Any]) -> bool:
        sends.append(len(waiting))
        return send(line, waiting)

    try:
        assert until(lambda: bus.generation)
        bus.subscribe("a/+")
        bus.publish(Message("a/b", b"first")).result(5)
        delivery = bus.receive(5)
        assert delivery is not None
        monkeypatch.setattr(sender, "sent", counted)
        with bus.together():
            delivery.ack()
            with bus.together():
                futures = [bus.publish(Message("a/b", b"%d" % number)) for number in range(5)]
            assert sends == []
        assert sends == [6]
        for future in futures:
            future.result(5)
        found = [bus.receive(5) for _ in futures]
        assert [one.message.payload for one in found if one is not None] == [b"0", b"1", b"2", b"3", b"4"]
    finally:
        bus.close()


def test_what_the_connection_does_not_take_at_once_leaves_in_order(
    make_mosquitto: MakeMosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever publishes never waits for the connection: the network thread sends the rest."""
    bus = MqttBus(MqttOptions(port=make_mosquitto().port, max_inflight=200), "both")
    left: list[bool] = []
    send = packets.sent

    def watched(line: socket.socket, waiting: deque[Any]) -> bool:
        left.append(send(line, waiting))
        return left[-1]

    try:
        assert until(lambda: bus.generation)
        bus.subscribe("a/+")
        monkeypatch.setattr(sender, "sent", watched)
        futures = [bus.publish(Message("a/b", bytes([number]) * MAX_PAYLOAD_BYTES)) for number in range(40)]
        assert False in left
        for number in range(40):
            delivery = bus.receive(20)
            assert delivery is not None
            assert delivery.message.payload == bytes([number]) * MAX_PAYLOAD_BYTES
            delivery.ack()
        for future in futures:
            future.result(10)
    finally:
        bus.close()


@pytest.mark.parametrize("own_names", [(), ("_gone_some_day",)], ids=["sent by whoever publishes", "by the thread"])
def test_no_wake_is_lost_where_many_threads_publish(
    own_names: tuple[str, ...], make_mosquitto: MakeMosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but a wake ends the network thread's waiting here, and each message waits for the one before."""
    monkeypatch.setattr(receiver, "_OWN_NAMES", (*receiver._OWN_NAMES, *own_names))
    monkeypatch.setattr(loop, "_PATIENCE_S", 3600)
    bus = MqttBus(MqttOptions(port=make_mosquitto().port), "sender")
    done: list[int] = []

    def publish(number: int) -> None:
        for turn in range(200):
            bus.publish(Message(f"a/{number}", b"%d" % turn)).result(20)
        done.append(number)

    try:
        assert until(lambda: bus.generation)
        threads = [threading.Thread(target=publish, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(done) == [0, 1, 2, 3]
    finally:
        bus.close()
