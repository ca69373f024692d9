"""The writer: bus to store. Acknowledged is what the store took, reported what the store holds safely."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
import structlog

from virtpilot.clock import SECOND, Clock, seconds
from virtpilot.errors import StoreRefused, StoreUnavailable
from virtpilot.model import Bus, Delivery, Message, Store, Stored
from virtpilot.topics import BOOT_PROPERTY, SEQUENCE_PROPERTY, Topics

log = structlog.get_logger(__name__)

_POLL_S: Final = 0.2
_BACKOFF_S: Final = (0.2, 10.0)
_MAX_DEAD_BYTES: Final = 64 * 1024 * 1024
_SEPARATOR: Final = "/"


class Writer:
    """One of the group that shares the metrics among itself."""

    def __init__(
        self, bus: Bus, store: Store, topics: Topics, clock: Clock, *, dead_letters: Path, group: str = "writers"
    ) -> None:
        self.written = 0
        self.retries = 0
        self.dead_lines = 0
        self.reported = 0
        self._bus = bus
        self._store = store
        self._topics = topics
        self._clock = clock
        self._dead_letters = dead_letters
        self._stop = threading.Event()
        self._waiting: Delivery | None = None
        self._not_before_ns = 0
        self._backoff_s = _BACKOFF_S[0]
        self._foreign = 0
        bus.subscribe(topics.metrics("+"), group=group)

    def step(self, timeout_s: float) -> int:
        """Store what is there, waiting `timeout_s` seconds at most for a first message; return how many."""
        done = 0
        while (delivery := self._next(timeout_s if done == 0 else 0)) is not None:
            if not self._handle(delivery):
                break
            done += 1
        self._report()
        return done

    def _next(self, timeout_s: float) -> Delivery | None:
        if self._waiting is None:
            return self._bus.receive(timeout_s)
        left_ns = self._not_before_ns - self._clock.monotonic_ns()
        if left_ns > 0:
            self._stop.wait(min(timeout_s, left_ns / SECOND))
        return self._waiting if self._clock.monotonic_ns() >= self._not_before_ns else None

    def _handle(self, delivery: Delivery) -> bool:
        """Store one message; False where the store is not there: it then waits, unacknowledged."""
        message = delivery.message
        message_id = self._id(message)
        try:
            self._write(message_id, message.payload, message.topic)
        except StoreUnavailable as error:
            self._wait(delivery, error)
            return False
        self._waiting = None
        self._backoff_s = _BACKOFF_S[0]
        self.written += 1
        delivery.ack()
        return True

    def _id(self, message: Message) -> str:
        host = self._topics.host_of(message.topic)
        boot, sequence = message.properties.get(BOOT_PROPERTY), message.properties.get(SEQUENCE_PROPERTY)
        if boot and sequence and sequence.isascii() and sequence.isdigit() and _SEPARATOR not in boot:
            return _SEPARATOR.join((host, boot, sequence))
        # Of publishers without numbers nothing is known but what they send: plain QoS 1.
        self._foreign += 1
        return _SEPARATOR.join((host, "", f"{self._clock.now_ns()}-{self._foreign}"))

    def _wait(self, delivery: Delivery, error: Exception) -> None:
        self.retries += 1
        self._waiting = delivery
        pause_s = self._backoff_s * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
        self._not_before_ns = self._clock.monotonic_ns() + seconds(pause_s)
        self._backoff_s = min(self._backoff_s * 2, _BACKOFF_S[1])
        log.warning("store does not take it now", error=str(error), again_in_s=round(pause_s, 1))

    def _write(self, message_id: str, lines: bytes, topic: str) -> None:
        """Write a message; lines that the store will never take are put aside, one by one."""
        try:
            self._store.write(message_id, lines)
        except StoreRefused as refused:
            good = self._without_bad(lines, topic, refused, lambda part: self._store.write(message_id, part))
            log.warning("store refuses lines", topic=topic, good=good, reason=str(refused))

    def _without_bad(self, lines: bytes, topic: str, refused: StoreRefused, write: Callable[[bytes], None]) -> int:
        """Halve until the bad lines stand alone; return how many lines the store took."""
        parts = [line for line in lines.split(b"\n") if line.strip()]
        if len(parts) <= 1:
            self._bury(b"\n".join(parts), topic, str(refused))
            return 0
        taken = 0
        for half in (parts[: len(parts) // 2], parts[len(parts) // 2 :]):
            body = b"\n".join(half) + b"\n"
            try:
                write(body)
                taken += len(half)
            except StoreRefused as again:
                taken += self._without_bad(body, topic, again, write)
        return taken

    def _bury(self, line: bytes, topic: str, reason: str) -> None:
        self.dead_lines += 1
        record = {
            "at_ns": self._clock.now_ns(),
            "topic": topic,
            "reason": reason,
            "line": line.decode("utf-8", "replace"),
        }
        path = self._dead_letters / "dead.jsonl"
        try:
            self._dead_letters.mkdir(parents=True, exist_ok=True, mode=0o700)
            if path.exists() and path.stat().st_size > _MAX_DEAD_BYTES:
                path.replace(path.with_suffix(".jsonl.1"))
            with path.open("ab") as file:
                file.write(msgspec.json.encode(record) + b"\n")
        except OSError as error:
            log.error("dead letter cannot be kept", error=str(error), topic=topic)

    def _report(self) -> None:
        """Tell agents what the store holds safely."""
        found: dict[tuple[str, str], set[int]] = {}
        for message_id in self._store.durable(self._clock.now_ns()):
            host, boot, sequence = message_id.split(_SEPARATOR, 2)
            if boot:
                found.setdefault((host, boot), set()).add(int(sequence))
        for (host, boot), sequences in found.items():
            report = Stored(host=host, boot=boot, ranges=_ranges(sequences))
            self.reported += len(sequences)
            self._bus.publish(Message(self._topics.stored(host), msgspec.json.encode(report)))

    def run(self, stop: threading.Event) -> None:
        """Step until `stop` is set, then close."""
        self._stop = stop
        try:
            while not stop.is_set():
                self.step(_POLL_S)
        finally:
            self.close()

    def close(self) -> None:
        """Report what can be reported and leave; what is not acknowledged goes to another writer, or comes again."""
        self._report()
        self._bus.close()
        self._store.close()


def _ranges(sequences: set[int]) -> list[tuple[int, int]]:
    """Return numbers as inclusive ranges, ascending."""
    found: list[tuple[int, int]] = []
    for number in sorted(sequences):
        if found and found[-1][1] == number - 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found
