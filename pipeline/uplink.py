"""From an agent's samples to the store's word for them: spool, publish, trim by report, resend what is missing."""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures import Future
from typing import Final

import structlog

from virtpilot.clock import Clock, seconds
from virtpilot.errors import StateError
from virtpilot.model import Bus, Message, Stored
from virtpilot.pipeline.lines import split
from virtpilot.pipeline.pace import Pace
from virtpilot.pipeline.spool import Spool
from virtpilot.topics import BOOT_PROPERTY, MAX_METRICS_BYTES, SEQUENCE_PROPERTY, Topics

# Messages on their way to the broker at once: what is measured now always finds room beside what is sent again.
_MAX_SENDING: Final = 64
_MAX_RESENDING: Final = 32
# Each waits in memory for the broker's word, and once more in its client.
_MAX_RESENDING_BYTES: Final = 1 << 20
_RETRY_NS: Final = seconds(1)
_MAX_RESEND_NS: Final = seconds(600)
log = structlog.get_logger(__name__)

_Key = tuple[str, int]


class _Flight:
    """One message that was published and is not reported stored yet; `silent` of its resends saw no report at all."""

    __slots__ = ("at_ns", "future", "silent")

    def __init__(self, future: Future[None], at_ns: int, silent: int) -> None:
        self.future = future
        self.at_ns = at_ns
        self.silent = silent

    @property
    def failed(self) -> bool:
        return self.future.done() and self.future.exception() is not None


class Uplink:
    """Carries line protocol of one host; `window` bounds the resent messages that wait for a report.

    Live messages go out at once; what an outage left behind follows from `tick`, oldest first and in that window. What
    stays unreported for `resend_after_s` (by default the spool's option) is sent again; while no reports come at all,
    each time after twice as long, up to ten minutes: without a writer the broker does not fill with copies. All of
    these waits are measured by the monotonic clock: the wall clock may step.
    """

    def __init__(
        self,
        bus: Bus,
        spool: Spool,
        topics: Topics,
        host: str,
        clock: Clock,
        *,
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
        self._clock = clock
        self._resend_ns = seconds(resend_after_s or spool.options.resend_after_s)
        self._pace = Pace(window)
        # Each message of the spool is in one of these: published once and in order, published again, to be published.
        self._live: OrderedDict[_Key, _Flight] = OrderedDict()
        self._again: dict[_Key, _Flight] = {}
        self._backlog: OrderedDict[_Key, int] = OrderedDict()
        self._sending: dict[_Key, tuple[Future[None], int]] = {}
        self._generation = 0
        self._reported_ns = -1
        self._dropped = 0
        self._unsent = 0
        self._disk_fails = False
        self._backlog.update((entry.key, 0) for entry in spool.pending())

    @property
    def pending(self) -> int:
        """Messages on disk that nobody has reported stored."""
        return len(self._spool)

    @property
    def size_bytes(self) -> int:
        """Bytes that they take."""
        return self._spool.size

    @property
    def limit_bytes(self) -> int:
        """Bytes that they may take."""
        return self._spool.options.max_bytes

    @property
    def dropped(self) -> int:
        """Messages that had to go because the spool was full, or never came into it and could not be sent either."""
        return self._spool.dropped + self._unsent

    @property
    def keeps_all(self) -> bool:
        """Whether all that is measured just now is on disk until it is stored."""
        return not (self._disk_fails or self._spool.full)

    def fields(self) -> dict[str, int | float]:
        """Return what a host's sample tells of its spool, so that rules can alarm on it."""
        size = self._spool.size
        return {
            "spool_messages_count": len(self._spool),
            "spool_size_bytes": size,
            "spool_used_ratio": round(size / self.limit_bytes, 6),
            "spool_dropped_total": self.dropped,
            "spool_unspooled_total": self.unspooled,
        }

    def send(self, lines: bytes, now_ns: int) -> None:
        """Spool lines, then publish them where the broker is there, in messages of 256 KiB at most."""
        for payload in split(lines, MAX_METRICS_BYTES):
            try:
                entry = self._spool.append(payload, now_ns)
            except StateError as error:
                self._send_unspooled(payload, error)
                continue
            self._disk_works()
            self.spooled += 1
            if self._is_connected() and self._room(_MAX_SENDING):
                self._live[entry.key] = self._publish(entry.key, payload, 0)
            else:
                self._backlog[entry.key] = 0

    def on_stored(self, stored: Stored) -> None:
        """Forget what the store holds safely."""
        now_ns = self._reported_ns = self._clock.monotonic_ns()
        for entry in self._spool.trim(stored.boot, stored.ranges):
            if (flight := self._live.pop(entry.key, None)) is not None:
                self._pace.live_reported(now_ns - flight.at_ns, now_ns)
            elif self._again.pop(entry.key, None) is not None:
                self._pace.resent_reported()
            else:
                self._backlog.pop(entry.key, None)

    def tick(self) -> None:
        """Send again what a reconnect or the lack of a report asks for."""
        if not self._is_connected() or not len(self._spool):
            return
        self._forget_dropped()
        now_ns = self._clock.monotonic_ns()
        self._give_up_waiting(now_ns)
        for key, flight in list(self._again.items()):
            if not self._room_to_resend():
                return
            if self._is_due(flight, now_ns):
                self._resend(key, self._silent(flight))
        while self._backlog and len(self._again) < self._pace.window and self._room_to_resend():
            self._resend(*self._backlog.popitem(last=False))

    def _is_connected(self) -> bool:
        """Return whether the broker is there; after a reconnect it may have forgotten all that it had."""
        generation = self._bus.generation
        if generation and generation != self._generation:
            self._generation = generation
            self._begin_anew()
        return generation > 0

    def _begin_anew(self) -> None:
        """Put all in the backlog, oldest first, but for what the bus itself sends again."""
        silent = dict(self._backlog)
        for flights in (self._live, self._again):
            for key, flight in list(flights.items()):
                if flight.future.done():
                    silent[key] = self._silent(flight)
                    del flights[key]
        keys = (entry.key for entry in self._spool.pending())
        self._backlog = OrderedDict((key, silent[key]) for key in keys if key in silent)

    def _forget_dropped(self) -> None:
        """Forget the flights of messages that a full spool has lost."""
        if self._dropped == self._spool.dropped:
            return
        self._dropped = self._spool.dropped
        for kept in (self._live, self._again, self._backlog):
            for key in [key for key in kept if key not in self._spool]:
                del kept[key]

    def _give_up_waiting(self, now_ns: int) -> None:
        """Put what nobody has reported for too long in the backlog."""
        while self._live:
            key, flight = next(iter(self._live.items()))
            if now_ns - flight.at_ns < self._resend_ns:
                return
            del self._live[key]
            if flight.future.done():
                self._backlog[key] = 0
            else:
                # The bus itself sends it again after a reconnect.
                self._live[key] = _Flight(flight.future, now_ns, 0)

    def _is_due(self, flight: _Flight, now_ns: int) -> bool:
        if not flight.future.done():
            return False
        first_ns = _RETRY_NS if flight.failed else self._resend_ns
        return now_ns - flight.at_ns >= min(first_ns << min(self._silent(flight), 20), _MAX_RESEND_NS)

    def _silent(self, flight: _Flight) -> int:
        """Return how often a message was resent without any report since.

        Where reports come, a writer is alive and did not get this one: a dead one's queue at the broker may have it.
        """
        return 0 if self._reported_ns > flight.at_ns and not flight.failed else flight.silent

    def _resend(self, key: _Key, silent: int) -> None:
        entry = self._spool.entry(key)
        if entry is None:
            self._again.pop(key, None)
            return
        try:
            payload = self._spool.payload(entry)
        except StateError as error:
            log.error("spooled message cannot be read", boot=entry.boot, seq=entry.seq, error=str(error))
            unread: Future[None] = Future()
            unread.set_exception(error)
            self._again[key] = _Flight(unread, self._clock.monotonic_ns(), silent + 1)
            return
        self.resent += 1
        self._again[key] = self._publish(key, payload, silent + 1)

    def _publish(self, key: _Key, payload: bytes, silent: int) -> _Flight:
        boot, seq = key
        properties = {BOOT_PROPERTY: boot, SEQUENCE_PROPERTY: str(seq)}
        future = self._bus.publish(Message(self._topic, payload, properties))
        self.published += 1
        self._sending[key] = future, len(payload)
        return _Flight(future, self._clock.monotonic_ns(), silent)

    def _send_unspooled(self, payload: bytes, error: StateError) -> None:
        """Do what can be done without a disk: plain QoS 1, without a number, for nobody could send it again."""
        if not self._disk_fails:
            self._disk_fails = True
            log.error("measurements are published without a spool", error=str(error))
        if not (self._is_connected() and self._room(_MAX_SENDING)):
            # Neither on disk nor on its way: kept in memory it would soon take all of it.
            self._unsent += 1
            return
        self.unspooled += 1
        self._sending["", self.unspooled] = self._bus.publish(Message(self._topic, payload)), len(payload)
        self.published += 1

    def _disk_works(self) -> None:
        if self._disk_fails:
            self._disk_fails = False
            log.info("measurements are spooled again", unspooled=self.unspooled)

    def _room(self, limit: int) -> bool:
        """Return whether less than `limit` is on its way; what the bus has failed to send is to be sent again."""
        for key, (future, _size) in list(self._sending.items()):
            if future.done():
                del self._sending[key]
                if future.exception() is not None and key in self._live:
                    self._again[key] = self._live.pop(key)
        return len(self._sending) < limit

    def _room_to_resend(self) -> bool:
        if not self._room(_MAX_RESENDING):
            return False
        return sum(size for _future, size in self._sending.values()) < _MAX_RESENDING_BYTES

    def close(self) -> None:
        """Let go of the spool; what is unreported stays in it."""
        self._spool.close()
