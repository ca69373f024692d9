"""From an agent's samples to the store's word for them: spool, publish, trim by report, resend what is missing."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from typing import Final

import structlog

from virtpilot.clock import seconds
from virtpilot.errors import StateError
from virtpilot.model import Bus, Message, Stored
from virtpilot.pipeline.spool import Entry, Spool
from virtpilot.topics import BOOT_PROPERTY, MAX_METRICS_BYTES, SEQUENCE_PROPERTY, Topics

# Messages on their way to the broker at once: what is measured now always finds room beside what is sent again.
_MAX_SENDING: Final = 64
_MAX_RESENDING: Final = 32
_RETRY_NS: Final = seconds(1)
_MAX_RESEND_NS: Final = seconds(600)
log = structlog.get_logger(__name__)


class _Flight:
    """One message that was published and is not reported stored yet; `silent` of its resends saw no report at all."""

    __slots__ = ("at_ns", "future", "generation", "resends", "silent")

    def __init__(self, future: Future[None], at_ns: int, generation: int, resends: int, silent: int) -> None:
        self.future = future
        self.at_ns = at_ns
        self.generation = generation
        self.resends = resends
        self.silent = silent

    @property
    def failed(self) -> bool:
        return self.future.done() and self.future.exception() is not None


class Uplink:
    """Carries line protocol of one host; `window` bounds the resent messages that wait for a report.

    Live messages go out at once; what an outage left behind follows from `tick`, oldest first and in that window. What
    stays unreported for `resend_after_s` (by default the spool's option) is sent again; while no reports come at all,
    each time after twice as long, up to ten minutes: without a writer the broker does not fill with copies.
    """

    def __init__(
        self,
        bus: Bus,
        spool: Spool,
        topics: Topics,
        host: str,
        resend_after_s: float | None = None,
        window: int = 256,
    ) -> None:
        self.published = 0
        self.resent = 0
        self.spooled = 0
        self.unspooled = 0
        self._bus = bus
        self._spool = spool
        self._topic = topics.metrics(host)
        self._resend_ns = seconds(resend_after_s or spool.options.resend_after_s)
        self._window = window
        self._flights: dict[tuple[str, int], _Flight] = {}
        self._sending: list[Future[None]] = []
        self._now_ns = 0
        self._reported_ns = 0

    @property
    def pending(self) -> int:
        """Messages on disk that nobody has reported stored."""
        return len(self._spool)

    @property
    def dropped(self) -> int:
        """Messages that had to go because the spool was full."""
        return self._spool.dropped

    def send(self, lines: bytes, now_ns: int) -> None:
        """Spool lines, then publish them where the broker is there, in messages of 256 KiB at most."""
        for payload in split(lines, MAX_METRICS_BYTES):
            try:
                entry = self._spool.append(payload, now_ns)
            except StateError as error:
                self._send_unspooled(payload, error)
                continue
            self.spooled += 1
            if self._bus.generation and self._room(_MAX_SENDING):
                self._publish(entry, payload, now_ns)

    def on_stored(self, stored: Stored) -> None:
        """Forget what the store holds safely."""
        self._reported_ns = self._now_ns
        for entry in self._spool.trim(stored.boot, stored.ranges):
            self._flights.pop(entry.key, None)

    def tick(self, now_ns: int) -> None:
        """Send again what a reconnect or the lack of a report asks for."""
        self._now_ns = now_ns
        generation = self._bus.generation
        if not generation or not len(self._spool):
            return
        self._forget_dropped()
        waiting = sum(flight.resends > 0 and flight.generation == generation for flight in self._flights.values())
        for entry in self._spool.pending():
            if not self._room(_MAX_RESENDING):
                return
            flight = self._flights.get(entry.key)
            if flight is not None and not self._is_due(flight, generation, now_ns):
                continue
            if flight is None or flight.generation != generation or not flight.resends:
                if waiting >= self._window:
                    return
                waiting += 1
            self._resend(entry, flight, now_ns)

    def _forget_dropped(self) -> None:
        """Forget the flights of messages that a full spool has lost."""
        if len(self._flights) > len(self._spool):
            kept = {entry.key for entry in self._spool.pending()}
            self._flights = {key: flight for key, flight in self._flights.items() if key in kept}

    def _is_due(self, flight: _Flight, generation: int, now_ns: int) -> bool:
        if not flight.future.done():
            # The bus itself sends it again after a reconnect.
            return False
        if flight.generation != generation:
            return True
        # The clock may have been set back.
        flight.at_ns = min(flight.at_ns, now_ns)
        first_ns = _RETRY_NS if flight.failed else self._resend_ns
        return now_ns - flight.at_ns >= min(first_ns << min(self._silent(flight), 20), _MAX_RESEND_NS)

    def _silent(self, flight: _Flight) -> int:
        """Return how often a message was resent without any report since.

        Where reports come, a writer is alive and did not get this one: a dead one's queue at the broker may have it.
        """
        return 0 if self._reported_ns > flight.at_ns and not flight.failed else flight.silent

    def _resend(self, entry: Entry, flight: _Flight | None, now_ns: int) -> None:
        resends, silent = (1, 1) if flight is None else (flight.resends + 1, self._silent(flight) + 1)
        try:
            payload = self._spool.payload(entry)
        except StateError as error:
            log.error("spooled message cannot be read", boot=entry.boot, seq=entry.seq, error=str(error))
            unread: Future[None] = Future()
            unread.set_exception(error)
            self._flights[entry.key] = _Flight(unread, now_ns, self._bus.generation, resends, silent)
            return
        self.resent += 1
        self._publish(entry, payload, now_ns, resends, silent)

    def _publish(self, entry: Entry, payload: bytes, now_ns: int, resends: int = 0, silent: int = 0) -> None:
        properties = {BOOT_PROPERTY: entry.boot, SEQUENCE_PROPERTY: str(entry.seq)}
        generation = self._bus.generation
        future = self._bus.publish(Message(self._topic, payload, properties))
        self.published += 1
        self._sending.append(future)
        self._flights[entry.key] = _Flight(future, now_ns, generation, resends, silent)

    def _send_unspooled(self, payload: bytes, error: StateError) -> None:
        """Do what can be done without a disk: plain QoS 1, without a number, for nobody could send it again."""
        if not self.unspooled:
            log.error("measurements are published without a spool", error=str(error))
        self.unspooled += 1
        self._bus.publish(Message(self._topic, payload))
        self.published += 1

    def _room(self, limit: int) -> bool:
        self._sending = [future for future in self._sending if not future.done()]
        return len(self._sending) < limit

    def close(self) -> None:
        """Let go of the spool; what is unreported stays in it."""
        self._spool.close()


def split(lines: bytes, max_bytes: int) -> Iterator[bytes]:
    """Yield `lines` in parts of `max_bytes` at most, cut at line ends; a longer line is a part of its own."""
    at = 0
    while at < len(lines):
        end = at + max_bytes
        if end < len(lines):
            cut = lines.rfind(b"\n", at, end)
            cut = cut if cut >= 0 else lines.find(b"\n", end)
            end = cut + 1 if cut >= 0 else len(lines)
        if part := lines[at:end].strip(b"\n"):
            yield part + b"\n"
        at = end
