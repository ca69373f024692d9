"""A paho client that reads ordinary packets by itself; paho reads all else.

paho asks the socket for a packet's head byte by byte, copies the rest of it before each of its properties and behind
them, a dozen times a large payload, and makes a table of all properties that there are for each acknowledgement. The
names of paho's own that this stands on may go: then paho reads everything.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import Any, Final

from paho.mqtt.client import Client
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.exception import MalformedPacket
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from virtpilot.clock import SECOND, SystemClock
from virtpilot.model import Message
from virtpilot.pipeline.bus.packets import PUBACK, PUBLISH, Packets, join, read_puback, read_publish, sent

# What a broker says to nearly each message.
_TAKEN: Final = ReasonCode(PacketTypes.PUBACK)
_NOTHING_TOLD: Final = Properties(PacketTypes.PUBACK)  # type: ignore[no-untyped-call] # paho's own gap
_OWN_NAMES: Final = (
    "_do_on_publish",
    "_in_packet",
    "_last_bytes_received",
    "_last_msg_out",
    "_loop_rc_handle",
    "_out_message_mutex",
    "_out_messages",
    "_out_packet",
    "_packet_handle",
)


class Receiver(Client):
    """Gives ordinary messages and their numbers (0: none) to `on_received` where that is set; paho gives all others."""

    on_received: Callable[[Message, int], None] | None = None

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._packets = Packets()
        self._writing = threading.Lock()
        self._clock = SystemClock()
        self._knows_paho = all(hasattr(self, name) for name in _OWN_NAMES)

    def reconnect(self) -> MQTTErrorCode:
        """Connect anew."""
        self._packets = Packets()
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

    def loop_read(self, max_packets: int = 1) -> MQTTErrorCode:
        """Read what there is, a quarter of a megabyte at most, and do what comes of it."""
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
            return self._acknowledged(mid)
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

    def _acknowledged(self, mid: int) -> MQTTErrorCode:
        with self._out_message_mutex:
            if mid in self._out_messages:
                return self._do_on_publish(mid, _TAKEN, _NOTHING_TOLD)
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    # Where paho takes packets from the socket, these come to be read all the same.

    def _handle_publish(self) -> MQTTErrorCode:
        packet = self._in_packet if self._knows_paho else None
        if packet is not None and self._received(packet["command"], packet["packet"], 0, len(packet["packet"])):
            return MQTTErrorCode.MQTT_ERR_SUCCESS
        return super()._handle_publish()

    def _handle_pubackcomp(self, cmd: Any) -> MQTTErrorCode:
        packet = self._in_packet["packet"] if self._knows_paho and cmd == "PUBACK" else b""
        mid = read_puback(packet, 0, len(packet))
        return super()._handle_pubackcomp(cmd) if mid is None else self._acknowledged(mid)
