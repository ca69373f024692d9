"""A paho client that queues and sends ordinary packets by itself; paho keeps messages, and sends them again.

For each message paho makes a condition that somebody could wait for and properties with the names of all that there
are. Where the names of paho's own that this stands on go, paho does all of it.
"""

from __future__ import annotations

import socket
import threading
from typing import Any, Final

from paho.mqtt.client import MQTTMessage, MQTTMessageInfo
from paho.mqtt.enums import MessageState, MQTTErrorCode

from virtpilot.model import Message
from virtpilot.pipeline.bus.packets import PUBACK, PUBLISH, join, packed_properties, packed_publish, sent
from virtpilot.pipeline.bus.receiver import Receiver

_QOS: Final = 1
# Nobody waits for it: one for all.
_INFO: Final = MQTTMessageInfo(0)


class _Properties:
    """A message's properties, packed already."""

    __slots__ = ("_bytes",)

    def __init__(self, packed: bytes) -> None:
        self._bytes = packed

    def pack(self) -> bytes:
        """Return them as paho wants them."""
        return self._bytes


class Sender(Receiver):
    """Sends from whichever thread has something to send; what the connection does not take the network thread sends."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._writing = threading.Lock()

    def reconnect(self) -> MQTTErrorCode:
        """Connect anew."""
        # What is queued is thrown away meanwhile: nobody may be sending it.
        with self._writing:
            return super().reconnect()

    def loop_write(self) -> MQTTErrorCode:
        """Write what is queued, small packets together."""
        with self._writing:
            if self._knows_paho:
                join(self._out_packet)
            return super().loop_write()

    def send(self) -> bool:
        """Send what is queued from any thread; return whether it has left, or whoever is sending will see to it."""
        line = self.socket()
        if not self._knows_paho or type(line) is not socket.socket or not self.is_connected():
            return False
        while self._out_packet and self._writing.acquire(blocking=False):
            try:
                if not sent(line, self._out_packet):
                    return False
            finally:
                self._writing.release()
            self._last_msg_out = self._now_s()
        return True

    def post(self, message: Message) -> int:
        """Queue a message and return its number; 0 where too many wait for the broker already."""
        properties: Any = _Properties(packed_properties(message))
        if not self._knows_paho:
            info = self.publish(message.topic, message.payload, _QOS, message.retain, properties)
            return 0 if info.rc == MQTTErrorCode.MQTT_ERR_QUEUE_SIZE else info.mid
        with self._out_message_mutex:
            mid = self._mid_generate()
            if len(self._out_messages) >= self._max_queued_messages or mid in self._out_messages:
                return 0
            kept = self._out_messages[mid] = _kept(mid, message, properties)
            if self._inflight_messages >= self._max_inflight_messages:
                kept.state = MessageState.MQTT_MS_QUEUED
            elif self.socket() is None:
                kept.state = MessageState.MQTT_MS_PUBLISH
            else:
                self._inflight_messages += 1
                self._queue(PUBLISH, mid, packed_publish(message, mid, properties.pack()))
        return mid

    def acknowledge(self, mid: int) -> None:
        """Queue the acknowledgement of a message that came."""
        if self._knows_paho:
            self._queue(PUBACK, mid, b"\x40\x02" + mid.to_bytes(2, "big"))
        else:
            self.ack(mid, _QOS)

    def _queue(self, command: int, mid: int, packet: bytes) -> None:
        self._out_packet.append({
            "command": command, "mid": mid, "qos": _QOS, "pos": 0, "to_process": len(packet), "packet": packet,
            "info": None,
        })  # fmt: skip


def _kept(mid: int, message: Message, properties: Any) -> MQTTMessage:
    """Return a message as paho keeps it until the broker has it."""
    kept = MQTTMessage.__new__(MQTTMessage)
    kept.mid, kept.qos, kept.dup, kept.timestamp = mid, _QOS, False, 0.0
    kept._topic, kept.payload, kept.retain = message.topic.encode(), message.payload, message.retain  # noqa: SLF001 - paho's setter wants a text of MQTT 3
    kept.properties, kept.info, kept.state = properties, _INFO, MessageState.MQTT_MS_WAIT_FOR_PUBACK
    return kept
