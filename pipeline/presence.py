"""Whether a controller lives: it says so every few seconds, and its last will says when it is gone.

An agent counts what it hears while it listens; what the broker has retained may be from a controller long dead.
"""

from __future__ import annotations

from typing import Final

import msgspec
import structlog

from virtpilot.clock import SECOND, Clock, seconds
from virtpilot.model import Bus, Message
from virtpilot.topics import Topics

log = structlog.get_logger(__name__)

HEARTBEAT_S: Final = 10.0


class Presence(msgspec.Struct, frozen=True):
    """What a controller says of itself."""

    epoch: int
    online: bool
    at_ns: int


def presence(topics: Topics, epoch: int, now_ns: int, *, online: bool) -> Message:
    """Return what a controller says of itself; with `online` false its last will, or its goodbye."""
    return Message(topics.controller, msgspec.json.encode(Presence(epoch, online, now_ns)), retain=True)


class Heartbeat:
    """Says that a controller lives, at once on each new connection and then every ten seconds."""

    def __init__(self, bus: Bus, topics: Topics, epoch: int, clock: Clock) -> None:
        self._bus, self._topics, self._epoch, self._clock = bus, topics, epoch, clock
        self._next_ns = 0
        self._generation = 0

    def tick(self) -> None:
        """Say so, where it is due; what the broker does not take now is not worth keeping."""
        generation, now_ns = self._bus.generation, self._clock.monotonic_ns()
        if generation == 0 or (generation == self._generation and now_ns < self._next_ns):
            return
        self._generation, self._next_ns = generation, now_ns + seconds(HEARTBEAT_S)
        self._bus.publish(presence(self._topics, self._epoch, self._clock.now_ns(), online=True))

    def stop(self) -> None:
        """Say goodbye."""
        self._bus.publish(presence(self._topics, self._epoch, self._clock.now_ns(), online=False))


class ControllerWatch:
    """An agent's view of the controller: lost when nothing was heard of it for `grace_s` seconds; 0: it never is."""

    def __init__(self, grace_s: float, clock: Clock) -> None:
        self._grace_ns = seconds(grace_s)
        self._clock = clock
        self._heard_ns = clock.monotonic_ns()

    def heard(self) -> None:
        """Take a sign of life that cannot be mistaken: a command whose signature is right."""
        self._heard_ns = self._clock.monotonic_ns()

    def take(self, message: Message, newest_epoch: int) -> None:
        """Take what a controller says of itself; one that a newer one has superseded counts for nothing."""
        try:
            said = msgspec.json.decode(message.payload, type=Presence)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            log.warning("the controller's word is not readable", error=str(error))
            return
        if said.online and said.epoch >= newest_epoch and not message.retain:
            self.heard()

    @property
    def silent_s(self) -> float:
        """For how many seconds nothing was heard of a controller."""
        return (self._clock.monotonic_ns() - self._heard_ns) / SECOND

    def lost(self) -> str:
        """Return why the controller counts as lost, "" while it does not."""
        if not self._grace_ns or self.silent_s < self._grace_ns / SECOND:
            return ""
        return f"no controller was heard of for {self._grace_ns / SECOND:g} s"
