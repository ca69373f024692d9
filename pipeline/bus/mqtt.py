"""The bus over MQTT 5 through paho-mqtt: persistent session, acknowledged by hand, reconnecting for ever.

One network thread per client serves the connection. What was published and not yet acknowledged by the broker is sent
again by paho after a reconnect; what was received and not yet acknowledged here is sent again by the broker.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures import wait as wait_for_futures
from typing import Any, Final

import structlog
from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from virtpilot.clock import SystemClock
from virtpilot.errors import BusError
from virtpilot.model import Message
from virtpilot.pipeline.bus.filters import check_message, packet_bytes, shared
from virtpilot.pipeline.bus.inbox import Inbox
from virtpilot.pipeline.bus.loop import Loop
from virtpilot.pipeline.bus.mqtt_options import MqttOptions, new_client
from virtpilot.pipeline.bus.paho_words import message_of, properties_of, session
from virtpilot.pipeline.bus.reconnect import Reconnect
from virtpilot.pipeline.bus.sender import Sender
from virtpilot.topics import MAX_METRICS_BYTES

__all__ = ["MqttBus", "MqttDelivery", "MqttOptions"]

_QOS: Final = 1
_SUBSCRIBE_S: Final = 5.0
_NO_LIMIT: Final = 1 << 28  # of MQTT itself
_WILDCARDS: Final = frozenset("+#")
_TAKEN_OVER: Final = 0x8E  # MQTT 5's reason "session taken over"
_log = structlog.get_logger(__name__)


class MqttDelivery:
    """A message from the broker, bound to the connection that it came through."""

    def __init__(self, bus: MqttBus, message: Message, generation: int, mid: int) -> None:
        self._bus = bus
        self._message = message
        self.generation = generation
        self.mid = mid

    @property
    def message(self) -> Message:
        """The message."""
        return self._message

    def ack(self) -> None:
        """Acknowledge: the work that the message asked for is safe. Calling it twice is harmless."""
        mid, self.mid = self.mid, 0
        if mid:
            self._bus.acknowledge(mid, self.generation)


class MqttBus:
    """A client of an MQTT 5 broker, which need not be there yet; raises ConfigError for secrets or keys not there."""

    def __init__(self, options: MqttOptions, client_id: str, will: Message | None = None) -> None:
        self.refused = 0
        self._options = options
        self._changed = threading.Condition()
        # The number of the connection that there is just now, and the same once all is subscribed on it; else 0.
        self._line = 0
        self._generation = 0
        self._connections = 0
        self._closing = threading.Event()
        self._received: Inbox[MqttDelivery] = Inbox()
        self._patterns: dict[str, None] = {}
        self._asked: dict[int, str] = {}
        self._confirmed: set[str] = set()
        self._sent: dict[int, Future[None]] = {}
        self._max_packet = _NO_LIMIT
        self._holds = False
        clock = SystemClock()
        self._reconnect = Reconnect(options, clock)
        self._log = _log.bind(client=client_id, broker=f"{options.host}:{options.port}")
        self._client = self._dressed(new_client(options, client_id))
        self._loop = Loop(self._client, clock)
        if will is not None:
            properties = properties_of(will, PacketTypes.WILLMESSAGE)
            self._client.will_set(will.topic, will.payload, _QOS, will.retain, properties)
        self._thread = threading.Thread(target=self._run, name=f"mqtt-{client_id}", daemon=True)
        self._thread.start()

    def _dressed(self, client: Sender) -> Sender:
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        client.on_publish = self._on_publish
        client.on_message = self._on_message
        client.on_received = self._take
        client.on_taken = self._on_taken
        return client

    @property
    def generation(self) -> int:
        """How often a connection was made, 0 while there is none."""
        return self._generation

    @property
    def takeovers(self) -> int:
        """How often another client seems to have thrown this one out by coming with the same name."""
        return self._reconnect.takeovers

    def publish(self, message: Message) -> Future[None]:
        """Send; the future is done when the broker has it, or fails with BusError."""
        mine = _future()
        reason = self._why_not(message)
        if not reason:
            mid = self._client.post(message)
            if mid:
                future = self._awaiting(mid, mine)
                self._leave()
                return future
            reason = f"{self._options.max_outgoing} messages are waiting for the broker already"
        mine.set_exception(BusError(reason))
        return mine

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Let what is published and acknowledged in between leave at the end, which costs less than one by one."""
        if self._holds:
            yield
            return
        self._holds = True
        try:
            yield
        finally:
            self._holds = False
            self._leave()

    def _leave(self) -> None:
        if not self._holds:
            self._loop.send()

    def _why_not(self, message: Message) -> str:
        if self._closing.is_set():
            return "the connection is closed"
        if packet_bytes(message) > self._max_packet:
            # Sent, it would end this connection and, sent again, each one after it.
            return f"the broker takes packets of {self._max_packet} bytes at most"
        return check_message(message)

    def _awaiting(self, mid: int, mine: Future[None]) -> Future[None]:
        """Return the future of a message; the broker's answer may have been here first."""
        future = self._sent.setdefault(mid, mine)
        if future is not mine:
            self._sent.pop(mid, None)
        return future

    def subscribe(self, pattern: str, group: str | None = None) -> None:
        """Receive what matches (`+` and `#` wildcards); a group shares the load among its members.

        Where the broker is there, waits until it has answered, 5 seconds at most.
        """
        wanted = shared(pattern, group)
        with self._changed:
            self._patterns[wanted] = None
            if self._line:
                self._ask(wanted)
                self._leave()
                self._changed.wait_for(lambda: wanted not in self._asked.values(), _SUBSCRIBE_S)

    def _ask(self, pattern: str) -> None:
        # What is retained comes once to this process, and again only where the broker had forgotten that it was wanted;
        # on a topic alone each time: it is one message, and may say what must not be missed.
        known = pattern in self._confirmed and not _WILDCARDS.isdisjoint(pattern)
        retained = SubscribeOptions.RETAIN_SEND_IF_NEW_SUB if known else SubscribeOptions.RETAIN_SEND_ON_SUBSCRIBE
        _, mid = self._client.subscribe(pattern, options=SubscribeOptions(qos=_QOS, retainHandling=retained))
        if mid is not None:
            self._asked[mid] = pattern

    def receive(self, timeout_s: float) -> MqttDelivery | None:
        """Return the next message, or None after `timeout_s` seconds without one."""
        return self._received.take(timeout_s)

    def acknowledge(self, mid: int, generation: int) -> None:
        """Tell the broker that a message is dealt with; one of an earlier connection comes again."""
        with self._changed:
            if generation == self._line:
                self._client.acknowledge(mid)
        self._leave()

    def close(self) -> None:
        """Leave in order: no last will, and what was published goes out first, within `close_timeout_s` seconds."""
        if self._closing.is_set():
            return
        wait_for_futures(list(self._sent.values()), self._options.close_timeout_s)
        with self._changed:
            self._closing.set()
            self._received.end()
            self._changed.notify_all()
        self._client.disconnect()
        self._leave()
        self._thread.join(self._options.close_timeout_s)
        for future in list(self._sent.values()):
            if not future.done():
                future.set_exception(BusError("the connection was closed before the broker had it"))
        self._sent.clear()
        # paho closes its sockets when the client goes: at once, where nothing refers to each other in a circle.
        callbacks = (
            "connect",
            "disconnect",
            "subscribe",
            "publish",
            "message",
            "received",
            "taken",
            "socket_register_write",
        )
        for callback in callbacks:
            setattr(self._client, f"on_{callback}", None)

    # The network thread.

    def _run(self) -> None:
        self._client.connect_async(
            self._options.host, self._options.port, self._options.keepalive_s, **session(self._options)
        )
        while not self._closing.is_set():
            try:
                if self._client.reconnect() == MQTTErrorCode.MQTT_ERR_SUCCESS:
                    self._serve()
            except OSError as error:
                self._log.info("broker not there", error=str(error))
            except Exception:  # noqa: BLE001 # see below
                # Whatever paho makes of packets that are none: this thread must not end by it.
                self._log.exception("connection given up")
            self._lost()
            if not self._closing.is_set():
                self._closing.wait(self._reconnect.pause_s())
        self._loop.close()

    def _serve(self) -> None:
        """Serve the connection until it is gone."""
        while self._loop.turn() == MQTTErrorCode.MQTT_ERR_SUCCESS:
            if self._closing.is_set():
                # Again, where `close` said so before there was a connection.
                self._client.disconnect()

    def _lost(self) -> None:
        with self._changed:
            self._line = self._generation = 0
            self._asked.clear()
            self._changed.notify_all()

    def _on_connect(
        self, _client: Client, _data: Any, flags: ConnectFlags, reason: ReasonCode, properties: Properties | None
    ) -> None:
        if reason.is_failure:
            self._log.warning("broker refuses the connection", reason=str(reason))
            return
        with self._changed:
            if flags.session_present:
                # The broker gives these again.
                self._received.clear()
            self._max_packet = getattr(properties, "MaximumPacketSize", _NO_LIMIT)
            self._reconnect.connected()
            self._connections += 1
            self._line = self._connections
            # Each one, also where the session is there: a broker that was killed may have kept it as it once was.
            for pattern in self._patterns:
                self._ask(pattern)
            if not self._asked:
                self._generation = self._line
            self._changed.notify_all()
        self._log.info("connected", session_present=flags.session_present)
        allowed = getattr(properties, "ReceiveMaximum", 65_535)
        if allowed < self._options.max_inflight:
            # paho does not heed it, and a broker may close the connection over it.
            self._log.warning("broker takes fewer messages at once: lower max_inflight", allowed=allowed)
        if self._max_packet < MAX_METRICS_BYTES + 4096:
            self._log.warning("broker takes small packets only: raise its limit", bytes=self._max_packet)

    def _on_subscribe(
        self, _client: Client, _data: Any, mid: int, reasons: list[ReasonCode], _properties: Properties | None
    ) -> None:
        with self._changed:
            pattern = self._asked.pop(mid, None)
            if pattern is None:
                return
            if any(reason.is_failure for reason in reasons):
                self._log.error("broker refuses the subscription", pattern=pattern, reason=str(reasons[0]))
            else:
                self._confirmed.add(pattern)
            if not self._asked and not self._generation:
                # Only now is everything subscribed that was before: a message sent from here on is received.
                self._generation = self._line
            self._changed.notify_all()

    def _on_disconnect(
        self, _client: Client, _data: Any, _flags: DisconnectFlags, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        self._lost()
        if self._closing.is_set():
            return
        if self._reconnect.lost(taken_over=reason.value == _TAKEN_OVER):
            message = "connection lost again and again: does another process use this name?"
            self._log.error(message, reason=str(reason), takeovers=self.takeovers)
        else:
            self._log.warning("connection lost", reason=str(reason))

    def _on_taken(self, mid: int) -> None:
        future = self._sent.pop(mid, None)
        if future is None:
            # It is about to be awaited.
            self._answered(mid, None)
        elif not future.done():
            future.set_result(None)

    def _on_publish(
        self, _client: Client, _data: Any, mid: int, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        self._answered(mid, BusError(f"the broker refuses: {reason}") if reason.is_failure else None)

    def _answered(self, mid: int, error: BusError | None) -> None:
        early = _future()
        future = self._sent.setdefault(mid, early)
        if future is not early:
            self._sent.pop(mid, None)
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(None)

    def _on_message(self, _client: Client, _data: Any, received: MQTTMessage) -> None:
        self._take(message_of(received), received.mid if received.qos else 0)

    def _take(self, message: Message | None, mid: int) -> None:
        crowded = not mid and len(self._received) >= 2 * self._options.receive_maximum
        if message is not None and not crowded:
            self._received.put(MqttDelivery(self, message, self._line, mid))
            return
        self.refused += 1
        # Acknowledged: what cannot be taken must not come again and again.
        if mid:
            self._client.acknowledge(mid)


def _future() -> Future[None]:
    """Return a future that nobody can cancel: the message is on its way."""
    future: Future[None] = Future()
    future.set_running_or_notify_cancel()
    return future
