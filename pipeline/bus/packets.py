"""MQTT packets that are ordinary, as bytes: taken out of what came, read, and joined to be written at once."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Iterator
from typing import Any, Final

from paho.mqtt.exception import MalformedPacket

from virtpilot.model import Message
from virtpilot.pipeline.bus.filters import MAX_PAYLOAD_BYTES

PUBLISH: Final = 0x30
PUBACK: Final = 0x40
_DISCONNECT: Final = 0xE0
_USER_PROPERTY: Final = 0x26
_EXPIRY: Final = 0x02
_NO_SUBSCRIBER: Final = 0x10
# What UTF-8 allows in a text and paho refuses.
_FORBIDDEN: Final = ("\0", "\ufeff")
_TOGETHER: Final = 32_768
_ROOM: Final = 32_768
# Room for the topic and the properties.
MAX_PACKET_BYTES: Final = MAX_PAYLOAD_BYTES * 2
_LENGTH_BYTES: Final = 4


class Packets:
    """Holds what came through a connection until packets of it are whole."""

    def __init__(self) -> None:
        self.bytes = bytearray(_ROOM)
        self._held = 0

    def room(self) -> memoryview:
        """Return where what comes next is to be put; there is always some."""
        return memoryview(self.bytes)[self._held :]

    def take(self, size: int) -> Iterator[tuple[int, int, int]]:
        """Yield each packet that is whole with `size` more bytes: its first byte, and where in `bytes` its rest lies.

        Nothing may be put until all were taken. Raises MalformedPacket for a length that is none or too much.
        """
        held, at, room = self._held + size, 0, len(self.bytes)
        while (extent := _rest(self.bytes, at, held)) is not None:
            start, end = extent
            if end - at > MAX_PACKET_BYTES:
                raise MalformedPacket(end - at)
            if end > held:
                # Once it was needed it stays: such a packet rarely comes alone.
                while room < end - at:
                    room *= 2
                break
            yield self.bytes[at], start, end
            at = end
        self._held = held - at
        if room > len(self.bytes):
            kept = self.bytes[at:held]
            self.bytes = bytearray(room)
            self.bytes[: self._held] = kept
        elif at and self._held:
            self.bytes[: self._held] = self.bytes[at:held]


def _rest(data: bytearray, at: int, held: int) -> tuple[int, int] | None:
    """Return where the rest of a packet begins and ends (MQTT 5, section 2.1.4), None where that is not known yet."""
    size = 0
    for place in range(_LENGTH_BYTES):
        start = at + 2 + place
        if start > held:
            return None
        byte = data[start - 1]
        size |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return start, start + size
    raise MalformedPacket(size)


def join(packets: deque[Any]) -> None:
    """Make one of the first packets that wait to be written, where they are small and nothing comes of writing them.

    Only one thread takes packets away; others may add some meanwhile.
    """
    parts, size = [], 0
    for place in range(len(packets)):
        packet = packets[place]
        size += packet["to_process"]
        if _is_told(packet) or size > _TOGETHER:
            break
        parts.append(packet["packet"][packet["pos"] :])
    if len(parts) > 1:
        whole = b"".join(parts)
        packets[len(parts) - 1] |= {"pos": 0, "to_process": len(whole), "packet": whole}
        for _ in parts[1:]:
            packets.popleft()


def sent(line: socket.socket, packets: deque[Any]) -> bool:
    """Send the first packets that wait; return whether the connection took them, and nothing else comes of it."""
    if not packets:
        return True
    join(packets)
    packet = packets[0]
    if _is_told(packet):
        return False
    try:
        with memoryview(packet["packet"]) as view, view[packet["pos"] :] as rest:
            size = line.send(rest)
    except OSError:
        # Who reads from it hears of it.
        return False
    packet["pos"] += size
    packet["to_process"] -= size
    if packet["to_process"]:
        return False
    packets.popleft()
    return True


def _is_told(packet: Any) -> bool:
    """Tell whether paho tells of a packet when it is written."""
    return packet["command"] & 0xF0 == _DISCONNECT or not packet["qos"]


def read_publish(command: int, packet: bytes | bytearray, at: int, end: int) -> tuple[Message, int] | None:
    """Return the message and the number of a PUBLISH (MQTT 5, section 3.3) that lies between two places, headless.

    None where it is not ordinary: of QoS 2, with properties other than users' and an expiry, large beyond measure, or
    malformed.
    """
    qos = command >> 1 & 3
    if qos > 1:
        return None
    try:
        begin, at = at + 2, at + 2 + int.from_bytes(packet[at : at + 2], "big")
        topic, mid = packet[begin:at].decode(), 0
        if qos:
            mid, at = int.from_bytes(packet[at : at + 2], "big"), at + 2
        begin, at = _extent(packet, at)
        users, expiry_s = _properties(packet, at, begin)
    except (IndexError, ValueError):
        return None
    if not 0 <= end - begin <= MAX_PAYLOAD_BYTES:
        return None
    with memoryview(packet) as view:
        payload = bytes(view[begin:end])
    return Message(topic, payload, properties=users, retain=bool(command & 1), expiry_s=expiry_s), mid


def read_puback(packet: bytes | bytearray, at: int, end: int) -> int | None:
    """Return the number of a message that the broker took, of a PUBACK (MQTT 5, section 3.4) without its fixed header.

    None where it is not ordinary: the broker refuses, or tells more than that nobody has subscribed, or malformed.
    """
    size = end - at
    if not 2 <= size <= 4 or (size > 2 and packet[at + 2] not in (0, _NO_SUBSCRIBER)) or (size > 3 and packet[at + 3]):
        return None
    return packet[at] << 8 | packet[at + 1]


def packed_publish(message: Message, mid: int, properties: bytes) -> bytes:
    """Return the PUBLISH packet of a message of QoS 1, with properties that are packed."""
    topic = message.topic.encode()
    head = bytes((PUBLISH | 2 | message.retain,))
    rest = 4 + len(topic) + len(properties) + len(message.payload)
    number = mid.to_bytes(2, "big")
    return b"".join((
        head, _length(rest), len(topic).to_bytes(2, "big"), topic, number, properties, message.payload,
    ))  # fmt: skip


def packed_properties(message: Message) -> bytes:
    """Return a message's properties as a packet bears them; raises OverflowError for a text that is too long."""
    if not message.properties and message.expiry_s is None:
        return b"\0"
    parts = [] if message.expiry_s is None else [bytes((_EXPIRY,)) + message.expiry_s.to_bytes(4, "big")]
    for pair in message.properties.items():
        parts.append(bytes((_USER_PROPERTY,)))
        for text in pair:
            raw = text.encode()
            parts += (len(raw).to_bytes(2, "big"), raw)
    packed = b"".join(parts)
    return _length(len(packed)) + packed


def _length(size: int) -> bytes:
    """Return a length as MQTT writes it, seven bits a byte."""
    found = bytearray()
    while size > 0x7F:
        found.append(size & 0x7F | 0x80)
        size >>= 7
    found.append(size)
    return bytes(found)


def _extent(packet: bytes | bytearray, at: int) -> tuple[int, int]:
    """Return where the properties end and begin whose length is at a place; ValueError where they are very long."""
    size = packet[at]
    if size < 0x80:
        return at + 1 + size, at + 1
    more = packet[at + 1]
    if more >= 0x80:
        raise ValueError(more)
    return at + 2 + size - 0x80 + more * 0x80, at + 2


def _properties(packet: bytes | bytearray, at: int, end: int) -> tuple[dict[str, str], int | None]:
    """Return users' properties and the expiry that lie between two places; raises IndexError, ValueError."""
    users: dict[str, str] = {}
    expiry_s = None
    while at < end:
        kind = packet[at]
        if kind == _USER_PROPERTY:
            key, at = _text(packet, at + 1)
            users[key], at = _text(packet, at)
        elif kind == _EXPIRY and expiry_s is None:
            expiry_s, at = int.from_bytes(packet[at + 1 : at + 5], "big"), at + 5
        else:
            raise ValueError(kind)
    if at != end:
        raise ValueError(at)
    return users, expiry_s


def _text(packet: bytes | bytearray, at: int) -> tuple[str, int]:
    """Return the text at a place and the place behind it; raises ValueError where it is none."""
    end = at + 2 + int.from_bytes(packet[at : at + 2], "big")
    text = packet[at + 2 : end].decode()
    if any(char in text for char in _FORBIDDEN):
        raise ValueError(text)
    return text, end
