"""A disk that is full: the oldest messages go, counted and told once, what is measured still goes out, and it ends."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.services import lack, needs
from virtpilot.clock import VirtualClock
from virtpilot.model import Stored
from virtpilot.pipeline.bus.memory import MemoryBroker
from virtpilot.pipeline.spool import Spool, SpoolOptions
from virtpilot.pipeline.uplink import Uplink
from virtpilot.topics import BOOT_PROPERTY, SEQUENCE_PROPERTY, Topics

DISK_BYTES = 1 << 20
LINES = b"m f=1 1\n" * 2500
TOPICS = Topics("c")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    if os.geteuid():
        lack("only root can mount a small disk")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        [needs("mount"), "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)],
        capture_output=True, check=False, timeout=20,
    )  # fmt: skip
    if mounted.returncode:
        lack(f"no disk can be mounted here: {mounted.stderr.decode()}")
    yield folder
    subprocess.run([needs("umount"), "--lazy", str(folder)], check=True, timeout=20)


class World:
    def __init__(self, folder: Path) -> None:
        self.clock = VirtualClock()
        broker = MemoryBroker(self.clock)
        self.reader = broker.connect("reader")
        self.reader.subscribe(TOPICS.metrics("+"))
        self.spool = Spool(folder, "b1", SpoolOptions())
        self.uplink = Uplink(broker.connect("agent"), self.spool, TOPICS, "h", self.clock)

    def send(self, count: int) -> None:
        for _ in range(count):
            self.uplink.send(LINES, self.clock.now_ns())
            self.uplink.tick()

    def keeps_all(self) -> bool:
        return self.uplink.keeps_all

    def received(self) -> list[int]:
        """The numbers of what has come; 0 for a message without one."""
        found = []
        while (delivery := self.reader.receive(0)) is not None:
            delivery.ack()
            properties = delivery.message.properties
            assert properties.get(BOOT_PROPERTY, "b1") == "b1"
            assert delivery.message.payload == LINES
            found.append(int(properties.get(SEQUENCE_PROPERTY, 0)))
        return found


@contextmanager
def errors() -> Iterator[list[Any]]:
    """What was logged as an error meanwhile."""
    found: list[Any] = []
    with capture_logs() as told:
        yield found
    found += [line for line in told if line["log_level"] == "error"]


def test_a_disk_smaller_than_max_bytes_loses_the_oldest_first_and_says_so_once(disk: Path) -> None:
    world = World(disk)
    with errors() as told:
        world.send(200)
    assert world.received() == list(range(1, 201)), "everything measured goes out, whatever is spooled"
    kept = [entry.seq for entry in world.spool.pending()]
    assert kept == list(range(kept[0], 201)), "the newest are kept, without a gap"
    assert world.uplink.dropped == kept[0] - 1 > 100
    assert world.uplink.unspooled == 0
    assert len(kept) * len(LINES) > DISK_BYTES // 2, "no more goes than has to"
    assert [line["event"] for line in told] == ["spool is full: the oldest messages go"]
    assert not world.keeps_all()
    assert world.uplink.fields()["spool_dropped_total"] == kept[0] - 1

    world.uplink.on_stored(Stored(host="h", boot="b1", ranges=[(1, 195)]))
    assert world.keeps_all()
    with errors() as told:
        world.send(200)
    assert len(told) == 1, "another episode is told again"
    assert all(world.spool.payload(entry) == LINES for entry in world.spool.pending())


def test_a_disk_that_others_have_filled_lets_measurements_through_and_is_used_again(disk: Path) -> None:
    world = World(disk / "spool")
    ballast = disk / "ballast"
    _fill(ballast)
    with errors() as told:
        world.send(20)
    assert world.received() == [0] * 20
    assert (world.uplink.unspooled, world.uplink.pending, world.uplink.dropped) == (20, 0, 0)
    assert [line["event"] for line in told] == ["measurements are published without a spool"]
    assert not world.keeps_all()

    ballast.unlink()
    world.send(10)
    assert world.received() == list(range(1, 11))
    assert world.keeps_all()
    _fill(ballast)
    with errors() as told:
        world.send(10)
    assert world.received() == list(range(11, 21)), "its own oldest ones make room"
    assert 5 <= world.uplink.pending <= 10
    assert [line["event"] for line in told] == ["spool is full: the oldest messages go"]
    world.uplink.on_stored(Stored(host="h", boot="b1", ranges=[(1, 1000)]))
    assert world.keeps_all()
    world.uplink.close()
    assert len(Spool(disk / "spool", "b2")) == 0


def _fill(path: Path) -> None:
    """Take all the room there is."""
    with path.open("ab", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass
    assert os.statvfs(path).f_bavail == 0


def test_a_spool_survives_a_restart_on_a_full_disk(disk: Path) -> None:
    world = World(disk / "spool")
    world.send(3)
    world.uplink.close()
    _fill(disk / "ballast")
    again = Spool(disk / "spool", "b2")
    assert [entry.key for entry in again.pending()] == [("b1", 1), ("b1", 2), ("b1", 3)]
    assert again.append(LINES).seq == 1
    assert again.dropped == 3, "they were in one segment"
