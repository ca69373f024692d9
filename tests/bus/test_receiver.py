"""Ordinary messages are read without paho, and nobody can tell from what comes of them."""

from __future__ import annotations

import socket
from collections import deque
from typing import Any, Final

import pytest
from paho.mqtt.exception import MalformedPacket
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tests.conftest import MakeMosquitto
from tests.services import until
from virtpilot.model import Message
from virtpilot.pipeline.bus.filters import MAX_PAYLOAD_BYTES
from virtpilot.pipeline.bus.mqtt import MqttBus, MqttOptions
from virtpilot.pipeline.bus.mqtt_options import new_client
from virtpilot.pipeline.bus.packets import Packets, join, read_puback, read_publish, sent
from virtpilot.pipeline.bus.paho_words import properties_of

TOPIC: Final = "virtpilot/c/metrics/h1"
AT_LEAST_ONCE: Final = 0x32


def packed(properties: bytes, payload: bytes, topic: str = TOPIC) -> bytearray:
    """Return a PUBLISH packet of number 7, without its fixed header."""
    raw = topic.encode()
    return bytearray(len(raw).to_bytes(2, "big") + raw + b"\0\7" + properties + payload)


def read(packet: bytearray) -> tuple[Message, int] | None:
    return read_publish(AT_LEAST_ONCE, packet, 0, len(packet))


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
    found = read(packed(properties(**given), b"lines"))
    assert found == (Message(TOPIC, b"lines", properties=dict(pairs), expiry_s=expiry_s), 7)


@pytest.mark.parametrize(
    "given", [{"ContentType": "text/plain"}, {"ResponseTopic": "a/b"}, {"TopicAlias": 3}, {"PayloadFormatIndicator": 1}]
)
def test_what_else_a_message_may_bear_is_left_to_paho(given: dict[str, object]) -> None:
    assert read(packed(properties(**given), b"lines")) is None


def test_a_packet_that_ends_too_soon_is_left_to_paho() -> None:
    whole = packed(properties(UserProperty=[("boot", "b")], MessageExpiryInterval=60), b"")
    assert read(whole) is not None
    assert [end for end in range(len(whole)) if read(whole[:end])] == []
    # What follows is of the next packet.
    assert [end for end in range(len(whole)) if read_publish(AT_LEAST_ONCE, whole, 0, end)] == []


def test_what_is_larger_than_anybody_sends_is_left_to_paho() -> None:
    assert read(packed(b"\0", bytes(MAX_PAYLOAD_BYTES))) is not None
    assert read(packed(b"\0", bytes(MAX_PAYLOAD_BYTES + 1))) is None


def headed(rest: bytes | bytearray) -> bytes:
    """Return a packet whole, with its length in as many bytes as it takes."""
    length, left = bytearray(), len(rest)
    while left > 0x7F:
        length.append(left & 0x7F | 0x80)
        left >>= 7
    return bytes([AT_LEAST_ONCE, *length, left]) + rest


def put(packets: Packets, data: bytes) -> list[bytes]:
    """Return the packets that are whole once some bytes have come."""
    with packets.room() as room:
        room[: len(data)] = data
    return [bytes(packets.bytes[start:end]) for _, start, end in packets.take(len(data))]


@pytest.mark.parametrize("step", [1, 2, 3, 7, 100, 5000])
def test_packets_are_whole_however_their_bytes_come(step: int) -> None:
    wanted = [bytes([number % 256]) * size for number, size in enumerate((0, 1, 2, 127, 128, 3, 16_383, 16_384, 0))]
    stream = b"".join(map(headed, wanted))
    packets = Packets()
    found = [one for at in range(0, len(stream), step) for one in put(packets, stream[at : at + step])]
    assert found == wanted


def test_a_packet_larger_than_the_room_for_it_is_taken_and_the_next_one_finds_room() -> None:
    packets, large = Packets(), bytes(range(256)) * 3000
    assert len(large) > len(packets.bytes)
    stream, found = headed(b"before") + headed(large) + headed(b"behind"), []
    while stream:
        size = len(packets.room())
        assert size
        found += put(packets, stream[:size])
        stream = stream[size:]
    assert found == [b"before", large, b"behind"]
    room = packets.bytes
    assert put(packets, headed(large)) == [large]
    assert packets.bytes is room


def test_a_length_without_end_or_beyond_what_was_allowed_is_no_packet() -> None:
    """No broker takes memory here by saying how much will come."""
    for length in (b"\xff\xff\xff\xff\x01", b"\xff\xff\xff\x7f", b"\xfe\xff\xff\x00"):
        with pytest.raises(MalformedPacket):
            put(Packets(), b"\x32" + length)
    assert put(Packets(), b"\x32\xfb\xff\x7f") == []


@pytest.mark.parametrize("rest", [b"\0\7", b"\0\7\0", b"\0\7\x10", b"\0\7\x10\0"])
def test_what_brokers_say_to_nearly_each_message_is_ordinary(rest: bytes) -> None:
    assert read_puback(rest, 0, len(rest)) == 7


@pytest.mark.parametrize("rest", [b"", b"\0", b"\0\7\x97", b"\0\7\0\5\x1f\0\2no", b"\0\7\x80\0"])
def test_a_refusal_and_what_else_is_told_is_left_to_paho(rest: bytes) -> None:
    assert read_puback(rest, 0, len(rest)) is None


@pytest.mark.parametrize("retain", [False, True])
@pytest.mark.parametrize("expiry_s", [None, 0, 2**32 - 1])
@pytest.mark.parametrize("pairs", [{}, {"boot": "b", "sequence": "12"}, {"ö": "ü" * 9000}])
@pytest.mark.parametrize("size", [0, 90, 100, 110, 16_300, 16_383, 200_000])
def test_a_message_is_packed_as_paho_does_it(
    size: int, pairs: dict[str, str], expiry_s: int | None, retain: bool
) -> None:
    message = Message(TOPIC, b"x" * size, pairs, retain=retain, expiry_s=expiry_s)
    packed = properties_of(message, PacketTypes.PUBLISH)
    client = new_client(MqttOptions(), "unconnected")
    client.on_socket_register_write = lambda *_: None
    with socket.socket() as line:
        client._sock = line
        assert client.post(message) == 1
        assert client._send_publish(1, TOPIC.encode(), message.payload, 1, retain, properties=packed) == 0
        # What is sent again is so, too.
        kept = client._out_messages[1]
        assert client._send_publish(1, kept.topic.encode(), kept.payload, 1, retain, properties=kept.properties) == 0
        first, *others = (bytes(packet["packet"]) for packet in client._out_packet)
        client._sock = None
    assert others == [first, first]


def test_an_acknowledgement_is_packed_as_paho_does_it() -> None:
    client = new_client(MqttOptions(), "unconnected")
    client.on_socket_register_write = lambda *_: None
    client.acknowledge(0x1234)
    client.ack(0x1234, 1)
    assert client._out_packet[0] == client._out_packet[1]


def waiting(*packets: tuple[int, bytes, int]) -> deque[Any]:
    return deque(
        {"command": command, "mid": 1, "qos": qos, "pos": 0, "to_process": len(text), "packet": text, "info": None}
        for command, text, qos in packets
    )


def test_small_packets_leave_together_and_others_by_themselves() -> None:
    packets = waiting((0x32, b"first", 1), (0x40, b"ack", 1), (0x30, b"once", 0), (0x32, b"last", 1), (0xE0, b"end", 0))
    packets[0] |= {"pos": 2, "to_process": 3}
    join(packets)
    assert [packet["packet"] for packet in packets] == [b"rstack", b"once", b"last", b"end"]
    assert (packets[0]["pos"], packets[0]["to_process"]) == (0, 6)
    packets = waiting((0x32, b"small", 1), (0x32, bytes(100_000), 1), (0x32, b"other", 1))
    join(packets)
    assert [packet["to_process"] for packet in packets] == [5, 100_000, 5]


def test_of_what_a_connection_takes_in_part_the_rest_goes_when_it_takes_more() -> None:
    text, got, refusals = bytes(range(256)) * 2000, b"", 0
    packets = waiting((0x32, b"first", 1), (0x32, text, 1), (0x40, b"ack", 1), (0xE0, b"end", 0))
    near, far = socket.socketpair()
    with near, far:
        near.setblocking(False)
        far.setblocking(False)
        while len(packets) > 1:
            if not sent(near, packets):
                refusals += 1
                got += far.recv(1_000_000)
        got += far.recv(1_000_000)
        # It is paho's: it tells of it.
        assert not sent(near, packets)
    assert got == b"first" + text + b"ack"
    assert refusals > 1


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
