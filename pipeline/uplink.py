"""The agent's way to the store: spool, publish, send again what no writer has reported.

Live data goes first: of what waits, only as much is sent again as a small window allows.
"""

from __future__ import annotations

from concurrent.futures import Future
from typing import Final

import structlog

from virtpilot.clock import seconds
from virtpilot.errors import StateError
from virtpilot.model import Bus, Message, Stored
from virtpilot.pipeline.spool import Entry, Spool
from virtpilot.topics import BOOT_PROPERTY, MAX_METRICS_BYTES, SEQUENCE_PROPERTY, Topics

log = structlog.get_logger(__name__)

_WINDOW: Final = 32
_Key = tuple[str, int]


class Uplink:
    """Carries lines to the bus, at least once, also through an absent broker and a restart."""

    def __init__(self, bus: Bus, spool: Spool, topics: Topics, host: str, resend_after_s: float = 60.0) -> None:
        self.published = 0
        self.resent = 0
        self._bus = bus
        self._spool = spool
        self._topic = topics.metrics(host)
        self._resend_after_ns = seconds(resend_after_s)
        self._sent: dict[_Key, int] = {}
        self._resending: dict[_Key, Future[None]] = {}
        self._generation = 0

    @property
    def pending(self) -> int:
        """How many messages are not reported stored yet."""
        return len(self._spool)

    @property
    def dropped(self) -> int:
        """How many messages a full spool has lost."""
        return self._spool.dropped

    def send(self, lines: bytes, now_ns: int) -> None:
        """Spool and publish; without a broker the spool keeps it."""
        for payload in _split(lines):
            try:
                entry = self._spool.append(payload, now_ns)
            except StateError as error:
                log.error("not spooled, only sent once", error=str(error))
                self._bus.publish(Message(self._topic, payload))
                continue
            if self._bus.generation:
                self._publish(entry, now_ns)
                self.published += 1

    def _publish(self, entry: Entry, now_ns: int) -> Future[None]:
        self._sent[entry.boot, entry.sequence] = now_ns
        numbers = {BOOT_PROPERTY: entry.boot, SEQUENCE_PROPERTY: str(entry.sequence)}
        return self._bus.publish(Message(self._topic, entry.payload, numbers))

    def on_stored(self, report: Stored) -> None:
        """Let go of what a writer has reported."""
        if self._spool.trim(report.boot, report.ranges):
            kept = set(self._spool.pending())
            self._sent = {key: at for key, at in self._sent.items() if key in kept}

    def tick(self, now_ns: int) -> None:
        """Send again: all that is unreported after a reconnect, else what has waited too long."""
        generation = self._bus.generation
        if generation == 0:
            return
        if generation != self._generation:
            # What was on its way with the old connection may be lost: a killed broker forgets its queues.
            self._generation = generation
            self._resending.clear()
            self._sent.clear()
        self._resending = {key: future for key, future in self._resending.items() if not future.done()}
        for key in self._spool.pending():
            if len(self._resending) >= _WINDOW:
                return
            if key in self._resending or now_ns - self._sent.get(key, 0) < self._resend_after_ns:
                continue
            entry = self._spool.read(*key)
            if entry is not None:
                self._resending[key] = self._publish(entry, now_ns)
                self.resent += 1

    def close(self) -> None:
        """Let go of the spool; what is in it stays."""
        self._spool.close()


def _split(lines: bytes) -> list[bytes]:
    """Cut at line borders into messages of the agreed size; a single line is never cut."""
    parts = []
    while len(lines) > MAX_METRICS_BYTES:
        at = lines.rfind(b"\n", 0, MAX_METRICS_BYTES)
        if at < 0:
            at = lines.find(b"\n", MAX_METRICS_BYTES)
        if at < 0:
            break
        parts.append(lines[: at + 1])
        lines = lines[at + 1 :]
    if lines.strip():
        parts.append(lines)
    return parts
