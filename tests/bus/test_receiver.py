"""Ordinary messages are read without paho, and nobody can tell from what comes of them."""

from __future__ import annotations

import socket
from typing import Final

import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tests.conftest import MakeMosquitto
from tests.services import until
from virtpilot.model import Message
from virtpilot.pipeline.bus.filters import MAX_PAYLOAD_BYTES
from virtpilot.pipeline.bus.mqtt import MqttBus, MqttOptions
from virtpilot.pipeline.bus.receiver import read_publish

TOPIC: Final = "virtpilot/c/metrics/h1"
AT_LEAST_ONCE: Final = 0x32


def packed(properties: bytes, payload: bytes, topic: str = TOPIC) -> bytearray:
    """Return a PUBLISH packet of number 7, without its fixed header."""
    raw = topic.encode()
    return bytearray(len(raw).to_bytes(2, "big") + raw + b"\0\7" + properties + payload)


def properties(**given: object) -> bytes:
    made = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call] # paho's own gap
    for name, value in given.items():
        setattr(made, name, value)
    return bytes(made.pack())  # type: ignore[no-untyped-call] # paho's own gap


@pytest.mark.parametrize("pairs", [[], [("boot", "b")], [("boot", "b" * 120), ("sequence", "12"), ("boot", "c")]])
@pytest.mark.parametrize("expiry_s", [None, 0, 60])
def test_what_agents_and_controllers_send_is_ordinary(pairs: list[tuple[str, str]], expiry_s: int | None) -> None:
    given: dict[str, object] = {"UserProperty": pairs} if pairs else {}
    if expiry_s is not None:
        given["MessageExpiryInterval"] = expiry_s
    found = read_publish(AT_LEAST_ONCE, packed(properties(**given), b"lines"))
    assert found == (Message(TOPIC, b"lines", properties=dict(pairs), expiry_s=expiry_s), 7)


@pytest.mark.parametrize(
    "given", [{"ContentType": "text/plain"}, {"ResponseTopic": "a/b"}, {"TopicAlias": 3}, {"PayloadFormatIndicator": 1}]
)
def test_what_else_a_message_may_bear_is_left_to_paho(given: dict[str, object]) -> None:
    assert read_publish(AT_LEAST_ONCE, packed(properties(**given), b"lines")) is None


def test_a_packet_that_ends_too_soon_is_left_to_paho() -> None:
    whole = packed(properties(UserProperty=[("boot", "b")], MessageExpiryInterval=60), b"")
    assert read_publish(AT_LEAST_ONCE, whole) is not None
    assert [end for end in range(len(whole)) if read_publish(AT_LEAST_ONCE, whole[:end])] == []


def test_what_is_larger_than_anybody_sends_is_left_to_paho() -> None:
    assert read_publish(AT_LEAST_ONCE, packed(b"\0", bytes(MAX_PAYLOAD_BYTES))) is not None
    assert read_publish(AT_LEAST_ONCE, packed(b"\0", bytes(MAX_PAYLOAD_BYTES + 1))) is None


@pytest.mark.server
@pytest.mark.prompt
def test_a_stranger_message_comes_as_any_other(make_mosquitto: MakeMosquitto) -> None:
    """What paho has read is acknowledged, refused or taken in the same way."""
    broker = make_mosquitto()
    bus = MqttBus(MqttOptions(port=broker.port), "listener")
    stranger = MqttBus(MqttOptions(port=broker.port), "stranger")
    try:
        assert until(lambda: bus.generation and stranger.generation)
        bus.subscribe("virtpilot/c/metrics/+")
        odd = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call] # paho's own gap
        odd.ContentType, odd.UserProperty = "text/plain", [("boot", "b")]
        for payload, given in ((b"first", None), (bytes(MAX_PAYLOAD_BYTES + 1), None), (b"second", odd)):
            stranger._client.publish(TOPIC, payload, 1, properties=given)
        for payload, pairs in ((b"first", {}), (b"second", {"boot": "b"})):
            delivery = bus.receive(5)
            assert delivery is not None
            assert delivery.message == Message(TOPIC, payload, properties=pairs)
            delivery.ack()
        assert bus.refused == 1
        assert isinstance(bus._client.socket(), socket.socket)
    finally:
        bus.close()
        stranger.close()
