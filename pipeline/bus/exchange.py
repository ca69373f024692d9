"""What a broker in memory holds: sessions, retained messages, and who gets what. One lock guards all of it."""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict, deque

import msgspec

from virtpilot.clock import Clock, seconds
from virtpilot.model import Message
from virtpilot.pipeline.bus.filters import matches

Subscription = tuple[str, str | None]


class Queued(msgspec.Struct, frozen=True, eq=False):
    """A message and when it is too old to be delivered, by the monotonic clock."""

    message: Message
    expires_ns: int | None


class Session:
    """What the broker keeps of a client, connected or not."""

    def __init__(self) -> None:
        self.connected = False
        self.subscriptions: dict[Subscription, None] = {}
        self.waiting: deque[Queued] = deque()
        self.unacknowledged: OrderedDict[int, Queued] = OrderedDict()

    @property
    def held(self) -> int:
        """How many messages it holds."""
        return len(self.waiting) + len(self.unacknowledged)

    def rewind(self) -> None:
        """Put what was not acknowledged back in front."""
        self.waiting.extendleft(reversed(self.unacknowledged.values()))
        self.unacknowledged.clear()

    def forget(self) -> None:
        """Lose everything."""
        self.waiting.clear()
        self.unacknowledged.clear()
        self.subscriptions.clear()


class Exchange:
    """Takes messages and puts them into sessions; call it with `arrived` held."""

    def __init__(self, clock: Clock, max_queued: int) -> None:
        self.arrived = threading.Condition()
        self.up = True
        self.dropped = 0
        self.expired = 0
        self.sessions: dict[str, Session] = {}
        self._clock = clock
        self._max_queued = max_queued
        self._retained: dict[str, Queued] = {}
        self._turns: dict[Subscription, int] = {}
        self._numbers = itertools.count(1)

    def forget(self) -> None:
        """Lose every session's content and the retained messages."""
        for session in self.sessions.values():
            session.forget()
        self._retained.clear()

    def subscribe(self, session: Session, subscription: Subscription) -> None:
        """Note a subscription and send the retained messages that match; a group gets none of these."""
        session.subscriptions[subscription] = None
        pattern, group = subscription
        if group is not None:
            return
        for topic, queued in list(self._retained.items()):
            if self._has_expired(queued):
                del self._retained[topic]
            elif matches(pattern, topic):
                self._enqueue(session, queued)

    def route(self, message: Message) -> None:
        """Give a message to everyone who subscribed to it."""
        expiry = message.expiry_s
        expires_ns = None if expiry is None else self._clock.monotonic_ns() + seconds(expiry)
        if message.retain:
            if message.payload:
                self._retained[message.topic] = Queued(message, expires_ns)
            else:
                self._retained.pop(message.topic, None)
        live = Queued(msgspec.structs.replace(message, retain=False), expires_ns)
        for session in self._takers(message.topic):
            self._enqueue(session, live)
        self.arrived.notify_all()

    def _takers(self, topic: str) -> list[Session]:
        """Return the sessions that get a message: each single one once, and one of each group in turn."""
        takers: list[Session] = []
        groups: dict[Subscription, list[Session]] = {}
        for session in self.sessions.values():
            for pattern, group in session.subscriptions:
                if not matches(pattern, topic):
                    continue
                if group is not None:
                    groups.setdefault((pattern, group), []).append(session)
                elif session not in takers:
                    takers.append(session)
        for key, members in groups.items():
            present = [member for member in members if member.connected] or members
            turn = self._turns.get(key, 0)
            self._turns[key] = turn + 1
            takers.append(present[turn % len(present)])
        return takers

    def _enqueue(self, session: Session, queued: Queued) -> None:
        if session.held >= self._max_queued:
            self.dropped += 1
        else:
            session.waiting.append(queued)

    def _has_expired(self, queued: Queued) -> bool:
        return queued.expires_ns is not None and self._clock.monotonic_ns() >= queued.expires_ns

    def take(self, session: Session) -> tuple[int, Message] | None:
        """Return the next message of a session with its number, unacknowledged from now on."""
        while session.waiting:
            queued = session.waiting.popleft()
            if self._has_expired(queued):
                self.expired += 1
                continue
            number = next(self._numbers)
            session.unacknowledged[number] = queued
            return number, queued.message
        return None
