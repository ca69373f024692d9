"""An hour's backlog of several hosts drained over a real broker, a writer and a store, while they go on measuring."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from bench.material import messages
from virtpilot.clock import SECOND, SystemClock, seconds
from virtpilot.lineprotocol import encode_lines
from virtpilot.model import Stored
from virtpilot.pipeline.bus.mqtt import MqttBus, MqttOptions
from virtpilot.pipeline.spool import Spool, SpoolOptions
from virtpilot.pipeline.uplink import Uplink
from virtpilot.topics import Topics

TICK_S = 10
CLUSTER = "bench"


class Drained(msgspec.Struct, frozen=True):
    """How long the backlog took, also against real time; what was measured meanwhile, how long it waited."""

    took_s: float
    times_real_time: float
    backlog_messages: int
    live_messages: int
    live_before_the_backlog: int
    live_late_s: float


class _Host:
    """An agent's uplink whose spool holds the ticks of an outage, and that goes on."""

    def __init__(self, name: str, folder: Path, port: int, ticks: int, guests: int, live_s: float) -> None:
        self.name = name
        self.live: dict[tuple[str, int], int] = {}
        self.late_ns: list[int] = []
        self.overtaking = 0
        self._clock = SystemClock()
        self._spool = Spool(folder / name, "outage", SpoolOptions(fsync=False))
        now_ns = self._clock.now_ns()
        self._lines = [sample for samples in messages(1, guests=guests) for sample in samples]
        for tick in range(ticks):
            self._spool.append(self._measured(now_ns - (ticks - tick) * seconds(TICK_S)), now_ns)
        self.backlog = {entry.key for entry in self._spool.pending()}
        topics = Topics(CLUSTER)
        self._bus = MqttBus(MqttOptions(port=port), f"virtpilot-{CLUSTER}-agent-{name}")
        self._bus.subscribe(topics.stored(name))
        self._uplink = Uplink(self._bus, self._spool, topics, name, self._clock)
        self._every_ns = seconds(live_s)
        self._next_ns = self._clock.monotonic_ns()

    def _measured(self, at_ns: int) -> bytes:
        return encode_lines(
            msgspec.structs.replace(sample, tags={**sample.tags, "host": self.name}, time_ns=at_ns)
            for sample in self._lines
        )

    def step(self, measure: bool = True) -> bool:
        """Do what is due; return whether the backlog is still on its way."""
        now_ns = self._clock.monotonic_ns()
        if measure and self._bus.generation and now_ns >= self._next_ns:
            self._next_ns = now_ns + self._every_ns
            self._uplink.send(self._measured(self._clock.now_ns()), self._clock.now_ns())
            self.live["outage", len(self.backlog) + len(self.live) + len(self.late_ns) + 1] = now_ns
        self._uplink.tick()
        delivery = self._bus.receive(0.01)
        while delivery is not None:
            self._uplink.on_stored(msgspec.json.decode(delivery.message.payload, type=Stored))
            delivery.ack()
            delivery = self._bus.receive(0)
        left = sum(key in self._spool for key in self.backlog)
        for key in [key for key in self.live if key not in self._spool]:
            self.late_ns.append(self._clock.monotonic_ns() - self.live.pop(key))
            self.overtaking += left > 0
        return left > 0

    def close(self) -> None:
        self._bus.close()
        self._uplink.close()


def drained(
    port: int, folder: Path, *, hosts: int = 3, guests: int = 50, ticks: int = 360, live_s: float = 1.0
) -> Drained:
    """Return how a backlog of `ticks` ticks a host went through a broker and the writers that are there already.

    Raises TimeoutError where it is not through within ten minutes.
    """
    clock = SystemClock()
    made = [_Host(f"node-{number}", folder, port, ticks, guests, live_s) for number in range(hosts)]
    begun_ns = clock.monotonic_ns()
    for _ in _going(made):
        if clock.monotonic_ns() - begun_ns > seconds(600):
            raise TimeoutError("the backlog is not through within ten minutes")
    took_s = (clock.monotonic_ns() - begun_ns) / SECOND
    for host in made:
        while host.live:
            host.step(measure=False)
        host.close()
    late_ns = [late for host in made for late in host.late_ns]
    return Drained(
        took_s=took_s,
        times_real_time=ticks * TICK_S / took_s,
        backlog_messages=hosts * ticks,
        live_messages=len(late_ns),
        live_before_the_backlog=sum(host.overtaking for host in made),
        live_late_s=max(late_ns) / SECOND,
    )


def _going(hosts: list[_Host]) -> Iterator[None]:
    """Go round all of them until no backlog is left."""
    left = True
    while left:
        left = sum(host.step() for host in hosts) > 0
        yield
