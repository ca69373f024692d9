"""A paho client that reads ordinary messages by itself; paho reads all else.

paho copies the rest of a packet before each of its properties and behind them, a dozen times a large payload, which was
two thirds of what a message of 167 KB cost here. The two names of paho's own that this stands on may go: then paho
reads everything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from paho.mqtt.client import Client
from paho.mqtt.enums import MQTTErrorCode

from virtpilot.model import Message
from virtpilot.pipeline.bus.filters import MAX_PAYLOAD_BYTES

_USER_PROPERTY: Final = 0x26
_EXPIRY: Final = 0x02
# What UTF-8 allows in a text and paho refuses.
_FORBIDDEN: Final = ("\0", "\ufeff")


class Receiver(Client):
    """Gives ordinary messages and their numbers (0: none) to `on_received` where that is set; paho gives all others."""

    on_received: Callable[[Message, int], None] | None = None

    def _handle_publish(self) -> MQTTErrorCode:
        found = None
        if self.on_received is not None and (packet := getattr(self, "_in_packet", None)) is not None:
            found = read_publish(packet["command"], packet["packet"])
        if found is None or self.on_received is None:
            return super()._handle_publish()
        self.on_received(*found)
        return MQTTErrorCode.MQTT_ERR_SUCCESS


def read_publish(command: int, packet: bytes | bytearray) -> tuple[Message, int] | None:
    """Return the message and the number of a PUBLISH packet (MQTT 5, section 3.3) without its fixed header.

    None where it is not ordinary: of QoS 2, with properties other than users' and an expiry, large beyond measure, or
    malformed.
    """
    qos = command >> 1 & 3
    if qos > 1:
        return None
    try:
        at = 2 + int.from_bytes(packet[:2], "big")
        topic, mid = packet[2:at].decode(), 0
        if qos:
            mid, at = int.from_bytes(packet[at : at + 2], "big"), at + 2
        end, at = _extent(packet, at)
        users, expiry_s = _properties(packet, at, end)
    except (IndexError, ValueError):
        return None
    if not 0 <= len(packet) - end <= MAX_PAYLOAD_BYTES:
        return None
    payload = bytes(memoryview(packet)[end:])
    return Message(topic, payload, properties=users, retain=bool(command & 1), expiry_s=expiry_s), mid


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
