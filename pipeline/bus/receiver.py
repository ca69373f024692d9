"""A paho client that reads ordinary packets by itself; paho reads all else.

paho asks the socket for a packet's head byte by byte, copies the rest of it before each of its properties and behind
them, a dozen times a large payload, and makes a table of all properties that there are for each acknowledgement. The
names of paho's own that this stands on may go: then paho reads everything.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, Final

from paho.mqtt.client import Client
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.exception import MalformedPacket

from virtpilot.clock import SECOND, SystemClock
from virtpilot.model import Message
from virtpilot.pipeline.bus.packets import PUBACK, PUBLISH, Packets, read_puback, read_publish

_OWN_NAMES: Final = (
    "_in_packet",
    "_inflight_messages",
    "_last_bytes_received",
    "_last_msg_out",
    "_loop_rc_handle",
    "_max_inflight_messages",
    "_max_queued_messages",
    "_mid_generate",
    "_out_message_mutex",
    "_out_messages",
    "_out_packet",
    "_packet_handle",
    "_update_inflight",
)


class Receiver(Client):
    """Gives ordinary messages and their numbers (0: none) to `on_received` where that is set; paho gives all others.

    `on_taken` hears of the number of each message that the broker has taken, unless paho's `on_publish` does.
    """

    on_received: Callable[[Message, int], None] | None = None
    on_taken: Callable[[int], None] | None = None

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._packets = Packets()
        self._clock = SystemClock()
        self._knows_paho = all(hasattr(self, name) for name in _OWN_NAMES)

    def reconnect(self) -> MQTTErrorCode:
        """Connect anew."""
        self._packets = Packets()
        return super().reconnect()

    def loop_read(self, max_packets: int = 1) -> MQTTErrorCode:
        """Read what there is, as far as there is room for it, and do what comes of it."""
        line = self.socket()
        # TLS has reasons of its own for not giving anything just now.
        if not self._knows_paho or type(line) is not socket.socket:
            return super().loop_read(max_packets)
        try:
            size = line.recv_into(self._packets.room())
        except BlockingIOError:
            return MQTTErrorCode.MQTT_ERR_SUCCESS
        except OSError:
            size = 0
        if not size:
            return self._loop_rc_handle(MQTTErrorCode.MQTT_ERR_CONN_LOST)
        self._last_bytes_received = self._now_s()
        try:
            for command, start, end in self._packets.take(size):
                result = self._handle(command, start, end)
                if result or self.socket() is None:
                    return self._loop_rc_handle(result)
        except MalformedPacket:
            return self._loop_rc_handle(MQTTErrorCode.MQTT_ERR_PROTOCOL)
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def _now_s(self) -> float:
        return self._clock.monotonic_ns() / SECOND

    def _handle(self, command: int, start: int, end: int) -> MQTTErrorCode:
        data = self._packets.bytes
        if command & 0xF0 == PUBLISH and self._received(command, data, start, end):
            return MQTTErrorCode.MQTT_ERR_SUCCESS
        if command == PUBACK and (mid := read_puback(data, start, end)) is not None:
            return self._taken(mid)
        packet = data[start:end]
        self._in_packet |= {"command": command, "remaining_length": len(packet), "packet": packet, "pos": 0}
        try:
            return self._packet_handle()
        finally:
            self._in_packet |= {"command": 0, "remaining_length": 0, "packet": bytearray()}

    def _received(self, command: int, data: bytearray, start: int, end: int) -> bool:
        """Give a message, where it is ordinary."""
        found = read_publish(command, data, start, end) if self.on_received is not None else None
        if found is None or self.on_received is None:
            return False
        self.on_received(*found)
        return True

    def _taken(self, mid: int) -> MQTTErrorCode:
        """Take it that the broker has a message; make room for the next."""
        with self._out_message_mutex:
            if self._out_messages.pop(mid, None) is None:
                return MQTTErrorCode.MQTT_ERR_SUCCESS
            self._inflight_messages -= 1
            waits = len(self._out_messages) > self._inflight_messages
            result = self._update_inflight() if waits else MQTTErrorCode.MQTT_ERR_SUCCESS
        if self.on_taken is not None:
            self.on_taken(mid)
        return result

    # Where paho takes packets from the socket, these come to be read all the same.

    def _handle_publish(self) -> MQTTErrorCode:
        packet = self._in_packet if self._knows_paho else None
        if packet is not None and self._received(packet["command"], packet["packet"], 0, len(packet["packet"])):
            return MQTTErrorCode.MQTT_ERR_SUCCESS
        return super()._handle_publish()

    def _handle_pubackcomp(self, cmd: Any) -> MQTTErrorCode:
        packet = self._in_packet["packet"] if self._knows_paho and cmd == "PUBACK" else b""
        mid = read_puback(packet, 0, len(packet))
        return super()._handle_pubackcomp(cmd) if mid is None else self._taken(mid)
