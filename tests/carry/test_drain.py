"""An hour without a broker, drained: far faster than real time, and what is measured meanwhile does not wait for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from virtpilot.clock import SECOND, VirtualClock, seconds
from virtpilot.model import Stored
from virtpilot.pipeline.bus.memory import MemoryBroker, MemoryBus
from virtpilot.pipeline.pace import Pace
from virtpilot.pipeline.spool import Spool, SpoolOptions
from virtpilot.pipeline.uplink import Uplink
from virtpilot.pipeline.writer import Writer
from virtpilot.topics import Topics

TOPICS = Topics("c")
TICK_S = 10
HOSTS = ("h1", "h2", "h3")
STEP_S = 0.5


class SlowStore:
    """Takes messages one by one while there is room, and has them safe after the hold."""

    def __init__(self, clock: VirtualClock, hold_s: float) -> None:
        self.taken_ns: dict[str, list[int]] = {}
        self.room = 0.0
        self._clock = clock
        self._hold_ns = seconds(hold_s)
        self._held: deque[tuple[int, str]] = deque()

    def write(self, message_id: str, lines: bytes) -> None:
        self.taken_ns.setdefault(message_id, []).append(self._clock.monotonic_ns())
        self._held.append((self._clock.monotonic_ns(), message_id))

    def durable(self, now_ns: int) -> Sequence[str]:
        found = []
        while self._held and self._clock.monotonic_ns() - self._held[0][0] >= self._hold_ns:
            found.append(self._held.popleft()[1])
        return found

    def close(self) -> None:
        pass


class Throttled(MemoryBus):
    """A writer's bus that gives no more than its store has room for."""

    store: SlowStore

    def receive(self, timeout_s: float):  # type: ignore[no-untyped-def]
        delivery = super().receive(0) if self.store.room >= 1 else None
        self.store.room -= delivery is not None
        return delivery


class World:
    def __init__(self, folder: Path, per_s: float) -> None:
        self.clock = VirtualClock()
        self.broker = MemoryBroker(self.clock)
        self.store = SlowStore(self.clock, hold_s=12)
        self.per_step = per_s * STEP_S
        bus = self.broker.connect("writer")
        bus.__class__ = Throttled
        bus.store = self.store  # type: ignore[attr-defined]
        self.writer = Writer(bus, self.store, TOPICS, self.clock, dead_letters=folder / "dead")
        self.uplinks: dict[str, tuple[Uplink, MemoryBus]] = {}
        self.sent_ns: dict[str, int] = {}
        for host in HOSTS:
            bus = self.broker.connect(host)
            bus.subscribe(TOPICS.stored(host))
            spool = Spool(folder / host, "b", SpoolOptions(fsync=False))
            self.uplinks[host] = (Uplink(bus, spool, TOPICS, host, self.clock), bus)

    def measure(self) -> None:
        for host, (uplink, _) in self.uplinks.items():
            uplink.send(b"m f=1 1\n", self.clock.now_ns())
            self.sent_ns[f"{host}/b/{uplink.spooled}"] = self.clock.monotonic_ns()

    def step(self) -> None:
        self.clock.advance(STEP_S)
        self.store.room = self.store.room % 1 + self.per_step
        for uplink, bus in self.uplinks.values():
            while (delivery := bus.receive(0)) is not None:
                uplink.on_stored(msgspec.json.decode(delivery.message.payload, type=Stored))
                delivery.ack()
            uplink.tick()
        self.writer.step(0)

    def tick(self) -> None:
        self.measure()
        for _ in range(int(TICK_S / STEP_S)):
            self.step()

    @property
    def pending(self) -> int:
        return max(uplink.pending for uplink, _ in self.uplinks.values())


@pytest.mark.parametrize("per_s", [500.0, 20.0, 8.0])
def test_an_hour_is_drained_while_live_messages_go_ahead(tmp_path: Path, per_s: float) -> None:
    """With a store that is fast, and with ones that the backlog alone would keep busy for minutes."""
    world = World(tmp_path, per_s)
    for _ in range(20):
        world.tick()
    world.broker.down(forget=True)
    outage_s = 3600
    for _ in range(outage_s // TICK_S):
        world.clock.advance(TICK_S)
        world.measure()
    assert world.pending >= outage_s // TICK_S
    world.broker.up()
    up_ns, live = world.clock.monotonic_ns(), set()
    # Once nothing is left but what the hold keeps back all the time, the outage is over.
    while world.pending > 3:
        before = set(world.sent_ns)
        world.tick()
        live |= set(world.sent_ns) - before
        assert world.clock.monotonic_ns() - up_ns < seconds(3600), "it never ends"
    took_s = (world.clock.monotonic_ns() - up_ns) / SECOND
    assert outage_s / took_s > 10
    for _ in range(4):
        world.tick()
    assert set(world.store.taken_ns) == set(world.sent_ns), "none is missing"
    late = {key: (world.store.taken_ns[key][0] - world.sent_ns[key]) / SECOND for key in live}
    assert max(late.values()) <= 2 * TICK_S, late
    copies = sum(len(times) - 1 for times in world.store.taken_ns.values())
    assert copies <= len(world.sent_ns) // 4, "sent again only for want of a report"


def test_the_pace_grows_with_reports_and_yields_to_live_messages() -> None:
    pace, now_ns = Pace(256), seconds(1000)
    assert pace.window == 16
    for _ in range(400):
        pace.resent_reported()
    assert pace.window == 256
    pace.live_reported(seconds(13), now_ns)
    assert pace.window == 256
    pace.live_reported(seconds(30), now_ns)
    assert pace.window == 128
    pace.live_reported(seconds(31), now_ns + seconds(1))
    assert pace.window == 128, "it was sent before the halving"
    for later in range(1, 9):
        pace.live_reported(seconds(20), now_ns + seconds(100 * later))
    assert pace.window == 4
    assert Pace(3).window == 3
    for _ in range(8):
        pace.resent_reported()
    assert 9 <= pace.window <= 10, "after a halving it grows slowly"
