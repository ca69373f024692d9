"""What a broker remembers of a session after it was killed: some former state, which clients must not rely on."""

from __future__ import annotations

import os
import signal
import socket

import pytest

from tests.conftest import MakeMosquitto
from tests.services import until
from virtpilot.errors import BusError
from virtpilot.model import Message
from virtpilot.pipeline.bus.mqtt import MqttBus, MqttOptions

pytestmark = [pytest.mark.server, pytest.mark.prompt]


def test_a_subscription_that_the_broker_forgot_with_the_session_at_hand_is_made_again(
    make_mosquitto: MakeMosquitto,
) -> None:
    """It was made after the broker had last saved: the session comes back without it."""
    broker = make_mosquitto(persistence=True)
    options = MqttOptions(port=broker.port, reconnect_min_s=0.1, reconnect_max_s=0.2)
    listener, sender = MqttBus(options, "listener"), MqttBus(options, "sender")
    try:
        assert until(lambda: listener.generation and sender.generation)
        listener.subscribe("saved/one")
        os.kill(broker.pid, signal.SIGUSR1)
        assert until((broker.folder / "mosquitto.db").exists)
        listener.subscribe("later/two")
        first = listener.generation
        broker.kill()
        assert until(lambda: not listener.generation and not sender.generation)
        broker.start()
        assert until(lambda: listener.generation > first and sender.generation)
        for topic in ("saved/one", "later/two"):
            sender.publish(Message(topic, b"heard")).result(5)
            delivery = listener.receive(5)
            assert delivery is not None, topic
            assert delivery.message.topic == topic
            delivery.ack()
        assert listener.receive(0.2) is None
    finally:
        listener.close()
        sender.close()


def test_what_is_too_large_for_the_broker_is_refused_here_and_costs_no_connection(
    make_mosquitto: MakeMosquitto,
) -> None:
    """Sent, it would end each connection anew, and nothing else would ever go out."""
    broker = make_mosquitto(extra="max_packet_size 20000")
    bus = MqttBus(MqttOptions(port=broker.port, reconnect_min_s=0.1, reconnect_max_s=0.2), "sender")
    try:
        assert until(lambda: bus.generation)
        bus.subscribe("large/+")
        with pytest.raises(BusError, match="20000 bytes at most"):
            bus.publish(Message("large/one", bytes(19_990))).result(5)
        bus.publish(Message("large/two", bytes(19_000))).result(5)
        delivery = bus.receive(5)
        assert delivery is not None
        assert delivery.message.topic == "large/two"
        assert bus.generation == 1
    finally:
        bus.close()


def test_retained_messages_come_once_to_each_start_of_a_client_and_not_after_a_reconnect(
    make_mosquitto: MakeMosquitto,
) -> None:
    broker = make_mosquitto(persistence=True)
    options = MqttOptions(port=broker.port, reconnect_min_s=0.1, reconnect_max_s=0.2)
    sender = MqttBus(options, "sender")
    sender.publish(Message("status/h1", b"online", retain=True)).result(5)
    for _ in range(2):
        listener = MqttBus(options, "listener")
        listener.subscribe("status/+")
        delivery = listener.receive(5)
        assert delivery is not None
        assert delivery.message.payload == b"online"
        delivery.ack()
        listener.publish(Message("other/h1", b"")).result(20)  # the broker has what was sent before it
        first = listener.generation
        broker.stop()
        assert until(lambda listener=listener: not listener.generation)  # type: ignore[misc]
        broker.start()
        assert until(lambda listener=listener, first=first: listener.generation > first)  # type: ignore[misc]
        assert listener.receive(0.3) is None
        listener.close()
    sender.close()


def test_small_messages_do_not_wait_for_one_another(make_mosquitto: MakeMosquitto) -> None:
    """Nagle's algorithm would hold a decision back for up to 40 ms behind the signal before it."""
    broker = make_mosquitto()
    bus = MqttBus(MqttOptions(port=broker.port), "prompt")
    try:
        assert until(lambda: bus.generation)
        connection = bus._client.socket()
        assert isinstance(connection, socket.socket)
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    finally:
        bus.close()
