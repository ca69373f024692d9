"""The writer: bus to store. Acknowledged is what the store took, reported what the store holds safely.

metrics/+ → a batch in hand → store → acknowledge; store.durable → stored/<host> → the agents' spools are trimmed.
"""

from __future__ import annotations

import threading
from collections import deque
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Final

import msgspec
import structlog

from virtpilot.clock import SECOND, Clock, seconds
from virtpilot.errors import StoreRefused, StoreUnavailable
from virtpilot.model import Bus, Delivery, Message, Store, Stored
from virtpilot.pipeline.backoff import Backoff
from virtpilot.pipeline.cardinality import LimitOptions, SeriesGuard
from virtpilot.pipeline.dead_letters import DeadLetters, sift
from virtpilot.pipeline.sequences import SequenceSet
from virtpilot.pipeline.store.batch import BatchStore, CandidStore
from virtpilot.topics import BOOT_PROPERTY, SEQUENCE_PROPERTY, Topics, check_name

_POLL_S: Final = 0.2
_MAX_BATCH: Final = 64
_MAX_BATCH_BYTES: Final = 2 << 20
_MAX_BATCHES: Final = 16
_MAX_SEQUENCE_CHARS: Final = 18
log = structlog.get_logger(__name__)


class _Item(msgspec.Struct, frozen=True):
    """One message in hand."""

    delivery: Delivery
    message_id: str
    lines: bytes


class Writer:
    """One of the group that shares the metrics among itself; the counters are for the exporter."""

    def __init__(
        self,
        bus: Bus,
        store: Store,
        topics: Topics,
        clock: Clock,
        *,
        dead_letters: Path,
        limits: LimitOptions | None = None,
        group: str = "writers",
    ) -> None:
        self.written = 0
        self.batches = 0
        self.retries = 0
        self.dead_lines = 0
        self.reported = 0
        self.store_takes = True
        self.bus = bus
        self.series = SeriesGuard(limits or LimitOptions(), clock)
        self._store = store
        self._topics = topics
        self._clock = clock
        self._dead_letters = DeadLetters(dead_letters)
        self._stop = threading.Event()
        self._hand: deque[_Item] = deque()
        self._buried: list[str] = []
        self._not_before_ns = 0
        self._together = _MAX_BATCH
        self._backoff = Backoff(0.2, 10.0)
        bus.subscribe(topics.metrics("+"), group=group)

    def step(self, timeout_s: float) -> int:
        """Store what waits, for `timeout_s` seconds at most until a first message comes; return how many."""
        handled = 0
        for batch in range(_MAX_BATCHES):
            if not self._take(timeout_s if batch == 0 else 0) or not self._is_due(timeout_s if batch == 0 else 0):
                break
            stored = self._store_hand()
            handled += stored
            self._report()
            if not stored:
                break
        self._report()
        return handled

    def _take(self, timeout_s: float) -> bool:
        """Fill an empty hand with what is waiting; return whether there is anything in it."""
        if self._hand:
            return True
        size = 0
        delivery = self.bus.receive(timeout_s)
        while delivery is not None:
            self._hand.append(_Item(delivery, self._id(delivery.message), self._admitted(delivery.message)))
            size += len(delivery.message.payload)
            full = len(self._hand) >= _MAX_BATCH or size >= _MAX_BATCH_BYTES
            delivery = None if full else self.bus.receive(0)
        return bool(self._hand)

    def _admitted(self, message: Message) -> bytes:
        """Return the lines of a message but for those of series that its host has too many of."""
        lines, bad = self.series.admit(self._topics.host_of(message.topic), message.payload)
        if bad:
            # A flood must not cost the others a disk's answer for each of its messages.
            self._bury(message.topic, bad, sync=False)
        return lines

    def _is_due(self, timeout_s: float) -> bool:
        """Return whether the store may be tried, having waited for that up to `timeout_s` or the stop."""
        left_ns = self._not_before_ns - self._clock.monotonic_ns()
        if left_ns > 0 and timeout_s > 0:
            self._stop.wait(min(timeout_s, left_ns / SECOND))
        return self._clock.monotonic_ns() >= self._not_before_ns

    def _store_hand(self) -> int:
        """Store and acknowledge what is in hand; what the store does not take now stays in it."""
        before = len(self._hand)
        try:
            while self._hand:
                for _ in range(self._store_together()):
                    self._store_one(self._hand[0])
                    self._done()
                self._together = min(self._together * 2, _MAX_BATCH)
            self._backoff.reset()
            self.store_takes = True
        except StoreUnavailable as error:
            self.retries += 1
            self.store_takes = False
            # It may have been too much for the time it is given: what is asked for again and again is never through.
            self._together = max(self._together // 2, 1)
            pause_s = max(self._backoff.next_s(), error.retry_after_s)
            self._not_before_ns = self._clock.monotonic_ns() + seconds(pause_s)
            log.warning("store does not take it now", error=str(error), again_in_s=round(pause_s, 1))
        return before - len(self._hand)

    def _store_together(self) -> int:
        """Store the first ones in hand in one write; return how many are to be stored each for itself instead."""
        count = min(self._together, len(self._hand))
        if count < 2 or not isinstance(self._store, BatchStore):
            return count
        try:
            self._store.write_all([(item.message_id, item.lines) for item in islice(self._hand, count)])
        except StoreRefused as refused:
            log.info("a batch is refused: each message for itself", reason=str(refused))
            return count
        self.batches += 1
        for _ in range(count):
            self._done()
        return 0

    def _store_one(self, item: _Item) -> None:
        try:
            self._store.write(item.message_id, item.lines)
        except StoreRefused as refused:
            log.warning("store refuses lines", topic=item.delivery.message.topic, reason=str(refused))
            self._store_the_good(item)

    def _store_the_good(self, item: _Item) -> None:
        """Store what the store takes of a message, and put the rest aside with the reason."""
        sifted = sift(item.lines, self._refusal)
        bad, kept = sifted.bad, bool(sifted.good)
        try:
            if kept:
                # As a whole once more: only so does the store answer for the message.
                self._store.write(item.message_id, sifted.good)
        except StoreRefused as refused:
            # One by one it took them: a store that contradicts itself must not be asked for ever.
            kept = False
            bad = [*bad, *((line, str(refused)) for line in sifted.good.splitlines())]
        if not kept:
            self._buried.append(item.message_id)
        self._bury(item.delivery.message.topic, bad)

    def _bury(self, topic: str, bad: list[tuple[bytes, str]], *, sync: bool = True) -> None:
        self.dead_lines += len(bad)
        self._dead_letters.keep(topic, bad, self._clock.now_ns(), sync=sync)

    def _refusal(self, lines: bytes) -> StoreRefused | None:
        if lines:
            try:
                self._store.write(_name("probe", lines), lines)
            except StoreRefused as refused:
                return refused
        return None

    def _done(self) -> None:
        self._hand.popleft().delivery.ack()
        self.written += 1

    def _id(self, message: Message) -> str:
        """Return host/boot/sequence; of publishers without numbers nothing is known but what they send."""
        host, properties = self._topics.host_of(message.topic), message.properties
        boot, sequence = properties.get(BOOT_PROPERTY, ""), properties.get(SEQUENCE_PROPERTY, "")
        if not (sequence.isascii() and sequence.isdigit() and len(sequence) <= _MAX_SEQUENCE_CHARS):
            return _name(message.topic, message.payload)
        try:
            return f"{check_name(host)}/{check_name(boot)}/{int(sequence)}"
        except ValueError:
            return _name(message.topic, message.payload)

    def _report(self) -> None:
        """Tell agents what the store holds safely; a report that is lost is made again for the message resent."""
        found: dict[tuple[str, str], SequenceSet] = {}
        buried, self._buried = self._buried, []
        durable = self._store.durable(self._clock.now_ns())
        self._bury_dropped()
        for message_id in [*durable, *buried]:
            if message_id.count("/") == 2:
                host, boot, sequence = message_id.split("/")
                found.setdefault((host, boot), SequenceSet()).add(int(sequence))
        for (host, boot), sequences in found.items():
            self.reported += sequences.count
            report = Stored(host=host, boot=boot, ranges=sequences.ranges())
            self.bus.publish(Message(self._topics.stored(host), msgspec.json.encode(report)))

    def _bury_dropped(self) -> None:
        """Put aside what the store has dropped without a word, before its message is reported."""
        if not isinstance(self._store, CandidStore):
            return
        found: dict[str, list[tuple[bytes, str]]] = {}
        for refused in self._store.refused():
            source, numbered, _ = refused.message_id.partition("/")
            topic = self._topics.metrics(source) if numbered else refused.message_id
            found.setdefault(topic, []).append((refused.line, refused.reason))
        for topic, bad in found.items():
            log.warning("store has dropped lines without a word", topic=topic, lines=len(bad), reason=bad[0][1])
            self._bury(topic, bad)

    def run(self, stop: threading.Event) -> None:
        """Step until `stop` is set, then close."""
        self._stop = stop
        try:
            while not stop.is_set():
                self.step(_POLL_S)
        finally:
            self.close()

    def close(self) -> None:
        """Report what can be reported and leave; what is not acknowledged comes again, here or to another writer."""
        self._report()
        self.bus.close()
        self._store.close()


def _name(source: str, lines: bytes) -> str:
    """Return an id made of what a message holds, without the slashes of a numbered one."""
    digest = blake2b(source.encode(errors="replace") + b"\0" + lines, digest_size=16)
    return f"foreign-{digest.hexdigest()}"
