"""Sending again what a spool or dead letters hold: over the bus under the same numbers, or straight into the store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from virtpilot.clock import Clock, seconds
from virtpilot.errors import StateError, StoreRefused
from virtpilot.model import Bus, Store, Stored
from virtpilot.pipeline.dead_letters import DeadLetter, read_letters, sift, write_letters
from virtpilot.pipeline.process import boot_id
from virtpilot.pipeline.spool import Spool
from virtpilot.pipeline.store.batch import CandidStore
from virtpilot.pipeline.uplink import Uplink
from virtpilot.topics import Topics

_POLL_S = 0.2


class Replayed(msgspec.Struct, frozen=True):
    """How many messages or lines are safe in the store now, how many are left, and why where the store said it."""

    stored: int
    left: int
    refused: list[str] = []


def to_bus(folder: Path, bus: Bus, topics: Topics, host: str, clock: Clock, within_s: float) -> Replayed:
    """Publish a spool's messages under their own numbers until writers have reported them stored."""
    spool = Spool(folder, boot_id())
    uplink = Uplink(bus, spool, topics, host, clock)
    count = uplink.pending
    bus.subscribe(topics.stored(host))
    for _ in _until(lambda: not uplink.pending, clock, within_s):
        uplink.tick()
        delivery = bus.receive(_POLL_S)
        while delivery is not None:
            report = _report(delivery.message.payload)
            if report is not None and report.host == host:
                uplink.on_stored(report)
            delivery.ack()
            delivery = bus.receive(0)
    left = uplink.pending
    uplink.close()
    return Replayed(count - left, left)


def _report(payload: bytes) -> Stored | None:
    try:
        return msgspec.json.decode(payload, type=Stored)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def to_store(
    folder: Path, store: Store, host: str, clock: Clock, within_s: float, wait: Callable[[float], object]
) -> Replayed:
    """Write a spool's messages into the store and trim what it has safely; what it refuses stays in the spool."""
    spool = Spool(folder, boot_id())
    count, refused = len(spool), []
    for entry in spool.pending():
        try:
            store.write(f"{host}/{entry.boot}/{entry.seq}", spool.payload(entry))
        except StoreRefused as error:
            refused.append(f"{entry.boot}/{entry.seq}: {error}")
    for _ in _until(lambda: len(spool) <= len(refused), clock, within_s):
        for message_id in store.durable(clock.now_ns()):
            _, boot, seq = message_id.split("/")
            spool.trim(boot, [(int(seq), int(seq))])
        wait(_POLL_S)
    left = len(spool)
    spool.close()
    return Replayed(count - left, left, refused)


def letters_to_store(
    path: Path, store: Store, clock: Clock, within_s: float, wait: Callable[[float], object]
) -> Replayed:
    """Write the lines of dead letters, corrected by now, into the store; the file keeps what it does not take."""
    letters, torn = read_letters(path)
    if torn:
        raise StateError(f"{path}: {torn} lines are no dead letters: correct them or take them out first")
    lines = "".join(f"{letter.line}\n" for letter in letters).encode()

    def refusal(part: bytes) -> StoreRefused | None:
        if part:
            try:
                store.write("replayed", part)
            except StoreRefused as refused:
                return refused
        return None

    bad = {line.decode(errors="replace"): reason for line, reason in sift(lines, refusal).bad}
    if len(bad) < len(letters) and not _is_safe(store, clock, within_s, wait):
        raise StateError(f"the store did not say within {within_s:g} s that the lines are safe: {path} stays as it is")
    if isinstance(store, CandidStore):
        bad |= {refused.line.decode(errors="replace"): refused.reason for refused in store.refused()}
    left = [
        DeadLetter(letter.at_ns, letter.topic, bad[letter.line], letter.line)
        for letter in letters
        if letter.line in bad
    ]
    write_letters(path, left)
    return Replayed(len(letters) - len(left), len(left), [f"{letter.line[:200]}: {letter.reason}" for letter in left])


def _is_safe(store: Store, clock: Clock, within_s: float, wait: Callable[[float], object]) -> bool:
    for _ in _until(lambda: False, clock, within_s):
        if store.durable(clock.now_ns()):
            return True
        wait(_POLL_S)
    return False


def _until(done: Callable[[], bool], clock: Clock, within_s: float) -> Iterator[None]:
    """Go round until it is done, within so many seconds."""
    end_ns = clock.monotonic_ns() + seconds(within_s)
    while not done() and clock.monotonic_ns() < end_ns:
        yield
