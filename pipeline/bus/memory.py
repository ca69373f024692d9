"""The bus in memory: what MQTT 5 gives at QoS 1, in one process and on whatever clock it is told.

For the demo, tests and replay. Sessions persist, messages that were not acknowledged come again after a reconnect,
and faults can be played: a client's line drops, the broker goes down, with or without forgetting its queues.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from typing import Final

from virtpilot.clock import Clock, SystemClock
from virtpilot.errors import BusError
from virtpilot.model import Message
from virtpilot.pipeline.bus.exchange import Exchange, Session, Subscription
from virtpilot.pipeline.bus.filters import check_filter, check_message

_MAX_OUTGOING: Final = 10_000


class MemoryBroker:
    """A broker; a session holds `max_queued` messages at most, more are dropped and counted."""

    def __init__(self, clock: Clock | None = None, max_queued: int = 100_000) -> None:
        self._exchange = Exchange(clock or SystemClock(), max_queued)
        self._buses: dict[str, MemoryBus] = {}

    @property
    def dropped(self) -> int:
        """How many messages did not fit into a session."""
        return self._exchange.dropped

    @property
    def expired(self) -> int:
        """How many messages were too old when their turn came."""
        return self._exchange.expired

    def connect(self, client_id: str, will: Message | None = None) -> MemoryBus:
        """Return a client's connection, which takes its session over from an earlier one."""
        with self._exchange.arrived:
            if client_id in self._buses:
                self._buses[client_id].drop()
            session = self._exchange.sessions.setdefault(client_id, Session())
            bus = self._buses[client_id] = MemoryBus(self._exchange, session, will)
            if self._exchange.up:
                bus.attach()
            return bus

    def down(self, forget: bool = False) -> None:
        """Lose all connections; with `forget` also every session, as a broker killed without persistence does."""
        with self._exchange.arrived:
            self._exchange.up = False
            for session in self._exchange.sessions.values():
                session.connected = False
                session.rewind()
            if forget:
                self._exchange.forget()
            self._exchange.arrived.notify_all()

    def up(self) -> None:
        """Come back; the clients reconnect at once, subscribe again and send what they kept."""
        with self._exchange.arrived:
            self._exchange.up = True
            buses = [bus for bus in self._buses.values() if not bus.closed]
            for bus in buses:
                bus.attach()
        for bus in buses:
            bus.flush()


class MemoryDelivery:
    """A message from the bus in memory."""

    def __init__(self, bus: MemoryBus, number: int, message: Message) -> None:
        self._bus = bus
        self._number = number
        self._message = message

    @property
    def message(self) -> Message:
        """The message."""
        return self._message

    def ack(self) -> None:
        """Acknowledge: the work that the message asked for is safe. Calling it twice is harmless."""
        self._bus.acknowledge(self._number)


class MemoryBus:
    """One client's connection; made by `MemoryBroker.connect`."""

    def __init__(self, exchange: Exchange, session: Session, will: Message | None) -> None:
        self.closed = False
        self._exchange = exchange
        self._session = session
        self._will = will
        self._connections = 0
        self._subscriptions: dict[Subscription, None] = {}
        self._outgoing: deque[tuple[Message, Future[None]]] = deque()

    @property
    def generation(self) -> int:
        """How often a connection was made, 0 while there is none."""
        return self._connections if self._connected else 0

    @property
    def _connected(self) -> bool:
        return self._session.connected and not self.closed

    def attach(self) -> None:
        """Connect; a session that was forgotten gets its subscriptions again."""
        with self._exchange.arrived:
            self._session.connected = True
            self._connections += 1
            self._session.rewind()
            for subscription in self._subscriptions:
                if subscription not in self._session.subscriptions:
                    self._exchange.subscribe(self._session, subscription)
            self._exchange.arrived.notify_all()

    def publish(self, message: Message) -> Future[None]:
        """Send; the future is done when the broker has it, or fails with BusError."""
        future: Future[None] = Future()
        with self._exchange.arrived:
            reason = self._why_not(message)
            if not reason:
                self._outgoing.append((message, future))
        if reason:
            future.set_exception(BusError(reason))
        self.flush()
        return future

    def together(self) -> AbstractContextManager[None]:
        """Do nothing: here nothing is gained by it."""
        return nullcontext()

    def _why_not(self, message: Message) -> str:
        if self.closed:
            return "the connection is closed"
        if len(self._outgoing) >= _MAX_OUTGOING:
            return f"{_MAX_OUTGOING} messages are waiting for the broker already"
        return check_message(message)

    def flush(self) -> None:
        """Hand over what waits for the broker, where it is there."""
        done: list[Future[None]] = []
        with self._exchange.arrived:
            while self._connected and self._outgoing:
                message, future = self._outgoing.popleft()
                self._exchange.route(message)
                done.append(future)
        # Outside the lock: whoever waits for a future may well publish next.
        for future in done:
            future.set_result(None)

    def subscribe(self, pattern: str, group: str | None = None) -> None:
        """Receive what matches (`+` and `#` wildcards); a group shares the load among its members."""
        subscription = (check_filter(pattern), group)
        with self._exchange.arrived:
            self._subscriptions[subscription] = None
            if self._connected:
                self._exchange.subscribe(self._session, subscription)
                self._exchange.arrived.notify_all()

    def receive(self, timeout_s: float) -> MemoryDelivery | None:
        """Return the next message, or None after `timeout_s` seconds without one."""
        found: list[tuple[int, Message]] = []

        def arrived() -> bool:
            if self._connected and (item := self._exchange.take(self._session)) is not None:
                found.append(item)
            return bool(found) or self.closed

        with self._exchange.arrived:
            self._exchange.arrived.wait_for(arrived, timeout_s)
        return MemoryDelivery(self, *found[0]) if found else None

    def acknowledge(self, number: int) -> None:
        """Forget a delivered message; one of an earlier connection has come again under another number."""
        with self._exchange.arrived:
            self._session.unacknowledged.pop(number, None)

    def drop(self) -> None:
        """Lose the line as a crash does: the last will is published, the session waits for a reconnect."""
        self._leave(self._will)

    def close(self) -> None:
        """Leave in order: no last will, and what was published goes out first."""
        self.flush()
        self._leave(None)

    def _leave(self, will: Message | None) -> None:
        with self._exchange.arrived:
            if self.closed:
                return
            self.closed = True
            self._session.connected = False
            self._session.rewind()
            left, self._outgoing = self._outgoing, deque()
            if will is not None and self._exchange.up:
                self._exchange.route(will)
            self._exchange.arrived.notify_all()
        for _, future in left:
            future.set_exception(BusError("the connection was closed before the broker was there"))
