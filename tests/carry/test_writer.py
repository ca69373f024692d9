"""The writer: acknowledges after the store, survives its absence, puts aside what is refused, reports what is safe."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.thoroughness import examples
from virtpilot.clock import VirtualClock
from virtpilot.errors import StoreRefused, StoreUnavailable
from virtpilot.model import Message, Stored
from virtpilot.pipeline.bus.memory import MemoryBroker, MemoryBus
from virtpilot.pipeline.dead_letters import sift
from virtpilot.pipeline.store.batch import Refused
from virtpilot.pipeline.store.file import FileStore
from virtpilot.pipeline.writer import Writer
from virtpilot.topics import BOOT_PROPERTY, SEQUENCE_PROPERTY, Topics

TOPICS = Topics("c")


class MoodyStore:
    """Takes single messages only, refuses lines that hold `poison`, and can be away; durable when told."""

    def __init__(self) -> None:
        self.away = False
        self.lines: list[bytes] = []
        self.ids: list[str] = []
        self.safe: list[str] = []

    def write(self, message_id: str, lines: bytes) -> None:
        if self.away:
            raise StoreUnavailable("away")
        if b"poison" in lines:
            raise StoreRefused("poison")
        self.ids.append(message_id)
        self.lines += lines.splitlines()

    def durable(self, now_ns: int) -> Sequence[str]:
        safe, self.safe = self.safe, []
        return safe

    def close(self) -> None:
        pass


class World:
    def __init__(self, folder: Path) -> None:
        self.clock = VirtualClock()
        self.broker = MemoryBroker(self.clock)
        self.sender = self.broker.connect("agent")
        self.reports = self.broker.connect("reports")
        self.reports.subscribe(TOPICS.stored("+"))
        self.folder = folder
        self.file = FileStore(folder / "store")
        self.moody = MoodyStore()

    def writer(self, store: FileStore | MoodyStore | None = None, name: str = "writer") -> Writer:
        self.bus: MemoryBus = self.broker.connect(name)
        return Writer(self.bus, store or self.file, TOPICS, self.clock, dead_letters=self.folder / "dead")

    def send(self, seq: int | str, lines: bytes, host: str = "h1", boot: str = "b1") -> None:
        properties = {BOOT_PROPERTY: boot, SEQUENCE_PROPERTY: str(seq)}
        self.sender.publish(Message(TOPICS.metrics(host), lines, properties)).result(1)

    def stored(self) -> list[Stored]:
        found = []
        while (delivery := self.reports.receive(0)) is not None:
            found.append(msgspec.json.decode(delivery.message.payload, type=Stored))
            delivery.ack()
        return found

    def dead(self) -> list[dict[str, str]]:
        path = self.folder / "dead" / "dead-letters.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.file.close()


def test_messages_are_stored_reported_in_ranges_and_acknowledged(world: World) -> None:
    writer = world.writer()
    for seq in (1, 2, 3, 7):
        world.send(seq, b"m f=%d %d\n" % (seq, seq))
    world.send(1, b"m f=9 9\n", host="h2", boot="b9")
    assert writer.step(0) == 5
    assert world.stored() == [
        Stored(host="h1", boot="b1", ranges=[(1, 3), (7, 7)]),
        Stored(host="h2", boot="b9", ranges=[(1, 1)]),
    ]
    assert [message_id for message_id, _ in world.file.read()] == [
        "h1/b1/1",
        "h1/b1/2",
        "h1/b1/3",
        "h1/b1/7",
        "h2/b9/1",
    ]
    world.bus.drop()
    assert world.writer().step(0) == 0


def test_nothing_is_acknowledged_before_the_store_has_it(world: World) -> None:
    writer = world.writer(world.moody)
    world.moody.away = True
    world.send(1, b"m f=1 1\n")
    assert writer.step(0) == 0
    world.bus.drop()
    world.moody.away = False
    assert world.writer(world.moody).step(0) == 1
    assert world.moody.lines == [b"m f=1 1"]


def test_an_absent_store_is_tried_again_with_growing_waits(world: World) -> None:
    writer = world.writer(world.moody)
    world.moody.away = True
    world.send(1, b"m f=1 1\n")
    tries = 0
    for _ in range(600):
        world.clock.advance(0.1)
        before = writer.retries
        writer.step(0)
        tries += writer.retries - before
    assert 6 <= tries <= 25
    world.moody.away = False
    world.clock.advance(10)
    assert writer.step(0) == 1
    assert world.moody.ids == ["h1/b1/1"]


def test_what_is_stored_is_reported_only_when_it_is_safe(world: World) -> None:
    writer = world.writer(world.moody)
    world.send(1, b"m f=1 1\n")
    writer.step(0)
    assert world.stored() == []
    world.moody.safe = ["h1/b1/1"]
    writer.step(0)
    assert world.stored() == [Stored(host="h1", boot="b1", ranges=[(1, 1)])]


def test_refused_lines_are_put_aside_and_the_rest_is_stored_whole(world: World) -> None:
    writer = world.writer(world.moody)
    lines = [b"m f=%d %d" % (number, number) for number in range(40)]
    lines[3] = b"poison f=1 1"
    lines[17] = b"no line at all"
    lines[39] = b"m poison=1 1"
    world.send(1, b"\n".join(lines))
    world.send(2, b"m f=99 99\n")
    assert writer.step(0) == 2
    good = {line for line in lines if b"poison" not in line and b"all" not in line}
    assert set(world.moody.lines) == good | {b"m f=99 99"}
    assert world.moody.ids[-2:] == ["h1/b1/1", "h1/b1/2"]
    assert [row["line"] for row in world.dead()] == ["poison f=1 1", "no line at all", "m poison=1 1"]
    assert [row["reason"] for row in world.dead()][::2] == ["poison", "poison"]
    assert writer.dead_lines == 3


def test_a_message_of_refused_lines_alone_is_reported_so_that_it_does_not_come_for_ever(world: World) -> None:
    writer = world.writer(world.moody)
    world.send(5, b"poison f=1 1\n")
    writer.step(0)
    writer.step(0)
    assert world.stored() == [Stored(host="h1", boot="b1", ranges=[(5, 5)])]
    assert world.moody.ids == []


def test_the_store_vanishing_while_lines_are_sifted_puts_nothing_aside_twice(world: World) -> None:
    writer = world.writer(world.moody)
    world.send(1, b"m f=1 1\npoison f=1 1\n")
    real = world.moody.write

    def vanishing(message_id: str, lines: bytes) -> None:
        if message_id == "h1/b1/1" and b"poison" not in lines:
            world.moody.write = real  # type: ignore[method-assign]
            raise StoreUnavailable("gone")
        real(message_id, lines)

    world.moody.write = vanishing  # type: ignore[method-assign]
    assert writer.step(0) == 0
    world.clock.advance(5)
    assert writer.step(0) == 1
    assert [row["line"] for row in world.dead()] == ["poison f=1 1"]


class CandidStore(MoodyStore):
    """Takes everything, and tells later what it has dropped."""

    def write(self, message_id: str, lines: bytes) -> None:
        super().write(message_id, lines.replace(b"poison", b"p"))
        self.safe.append(message_id)

    def refused(self) -> Sequence[Refused]:
        found = [Refused(message_id, b"poison f=1 1", "dropped") for message_id in self.ids if message_id[-1] in "2x"]
        self.ids.clear()
        return found


def test_what_a_store_dropped_without_a_word_is_put_aside_and_its_message_reported(world: World) -> None:
    writer = world.writer(CandidStore())
    for seq in (1, 2):
        world.send(seq, b"m f=1 1\npoison f=1 1\n")
    assert writer.step(0) == 2
    assert world.stored() == [Stored(host="h1", boot="b1", ranges=[(1, 2)])]
    assert [(row["topic"], row["line"], row["reason"]) for row in world.dead()] == [
        (TOPICS.metrics("h1"), "poison f=1 1", "dropped")
    ]
    assert writer.dead_lines == 1


def test_a_wait_that_the_store_asks_for_is_kept_to(world: World) -> None:
    writer = world.writer(world.moody)
    asked = StoreUnavailable("later", retry_after_s=100)

    def write(message_id: str, lines: bytes) -> None:
        raise asked

    world.moody.write = write  # type: ignore[method-assign]
    world.send(1, b"m f=1 1\n")
    for second in range(99):
        if second == 30:
            world.clock.step(3600)
        writer.step(0)
        world.clock.advance(1)
    assert writer.retries == 1
    world.clock.advance(2)
    writer.step(0)
    assert writer.retries == 2


@pytest.mark.parametrize(
    "properties",
    [
        {},
        {BOOT_PROPERTY: "b"},
        {SEQUENCE_PROPERTY: "1"},
        {BOOT_PROPERTY: "b/../x", SEQUENCE_PROPERTY: "1"},
        {BOOT_PROPERTY: "b", SEQUENCE_PROPERTY: "-1"},
        {BOOT_PROPERTY: "b", SEQUENCE_PROPERTY: "9" * 5000},
        {BOOT_PROPERTY: "b", SEQUENCE_PROPERTY: "\u0661"},
        {BOOT_PROPERTY: "", SEQUENCE_PROPERTY: "1"},
    ],
)
def test_publishers_without_numbers_get_plain_quality_of_service_1(world: World, properties: dict[str, str]) -> None:
    writer = world.writer()
    world.sender.publish(Message(TOPICS.metrics("telegraf"), b"m f=1 1\n", properties)).result(1)
    world.sender.publish(Message("virtpilot/c/metrics/odd name!", b"m f=2 2\n", properties)).result(1)
    assert writer.step(0) == 2
    assert world.file.samples == 2
    assert world.stored() == []


def test_many_waiting_messages_go_in_few_writes_and_are_reported_on_the_way(world: World) -> None:
    writer = world.writer()
    for seq in range(1, 501):
        world.send(seq, b"m f=1 %d\n" % seq)
    assert writer.step(0) == 500
    assert writer.batches == 8
    assert len(world.stored()) == 8
    assert world.file.samples == 500


def test_a_store_that_is_too_slow_for_a_large_batch_gets_smaller_ones(world: World) -> None:
    """Asked for the same again, it would never be through."""
    sizes: list[int] = []
    real = world.file.write_all

    def slow(messages: Sequence[tuple[str, bytes]]) -> None:
        sizes.append(len(messages))
        if len(messages) > 10:
            raise StoreUnavailable("timed out")
        real(messages)

    world.file.write_all = slow  # type: ignore[method-assign]
    writer = world.writer()
    for seq in range(1, 65):
        world.send(seq, b"m f=1 %d\n" % seq)
    for _ in range(100):
        writer.step(0)
        world.clock.advance(5)
    assert world.file.samples == 64
    assert sizes[:4] == [64, 32, 16, 8]
    world.file.write_all = real  # type: ignore[method-assign]
    for seq in range(65, 329):
        world.send(seq, b"m f=1 %d\n" % seq)
    before = writer.batches
    for _ in range(3):
        writer.step(0)
    assert world.file.samples == 328
    assert writer.batches - before <= 9, "and large ones again once it takes them"


def test_writers_share_the_load_and_one_takes_over(world: World) -> None:
    first, first_bus = world.writer(name="w1"), world.bus
    second = world.writer(name="w2")
    for seq in range(1, 11):
        world.send(seq, b"m f=1 %d\n" % seq)
    assert (first.step(0), second.step(0)) == (5, 5)
    first_bus.drop()
    for seq in range(11, 21):
        world.send(seq, b"m f=1 %d\n" % seq)
    assert second.step(0) == 10
    assert world.file.samples == 20


def test_run_ends_at_once_when_told_although_the_store_is_away(world: World) -> None:
    writer = world.writer(world.moody)
    world.moody.away = True
    world.send(1, b"m f=1 1\n")
    stop = threading.Event()
    thread = threading.Thread(target=writer.run, args=(stop,))
    thread.start()
    stop.set()
    thread.join(20)
    assert not thread.is_alive()
    assert world.bus.generation == 0


@settings(derandomize=True, deadline=None, max_examples=examples(60))
@given(st.lists(st.sampled_from([b"m f=1 1", b"poison f=1 1", b"broken", b"", b"# comment"]), max_size=30))
def test_sifting_parts_good_from_bad_in_order(lines: list[bytes]) -> None:
    def refusal(part: bytes) -> StoreRefused | None:
        return StoreRefused("poison") if b"poison" in part else None

    sifted = sift(b"\n".join(lines), refusal)
    assert sifted.good.splitlines() == [line for line in lines if line in (b"m f=1 1", b"# comment")]
    assert [line for line, _ in sifted.bad] == [line for line in lines if line in (b"poison f=1 1", b"broken")]


def test_sifting_gives_up_in_the_end() -> None:
    probes = []

    def refusal(part: bytes) -> StoreRefused:
        probes.append(part)
        return StoreRefused("all of it")

    sifted = sift(b"m f=1 1\n" * 5000, refusal)
    assert len(probes) == 256
    assert (sifted.good, len(sifted.bad)) == (b"", 5000)
