"""What runs on a host of the lab: the bare bulk call and the collector's whole tick in turn, as one JSON document.

`python -m bench.steady_tick PID ROUNDS`: PID is the host's libvirtd, whose CPU time counts as well, for the call's
work is done there. Between two ticks ten seconds pass for the collector, so that what is asked for once in a while
only (knobs, limits, NUMA, links) has its part as in an agent; but dirty rates are off, whose calculation takes a second
of the machine's own time. What the QEMU processes do to answer is the same for both and not counted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from statistics import fmean
from time import clock_gettime, process_time
from typing import Any, Final

import libvirt
import msgspec
import structlog

from virtpilot.clock import SystemClock, seconds
from virtpilot.collectors.collector import HostCollector
from virtpilot.collectors.tree import FileTree
from virtpilot.libvirt_host import LibvirtHypervisor

_URI: Final = "qemu:///system"
_TICK_S: Final = 10.0
_CALLS: Final = 60  # ten minutes: each round has as many of what is asked for seldom
_SETTLING_TICKS: Final = 60


class Spent(msgspec.Struct, frozen=True):
    """CPU seconds of one round, a call: this process with all its threads, and libvirtd."""

    own_s: float
    daemon_s: float


class Round(msgspec.Struct, frozen=True):
    """Both in one round, the guests that both told of, and the samples of the last tick."""

    bare: Spent
    tick: Spent
    guests: int
    samples: int


class _Passing(SystemClock):
    """The machine's clock, set forward between ticks."""

    passed_ns = 0

    def monotonic_ns(self) -> int:
        """Return the machine's time and what has passed beyond it."""
        return super().monotonic_ns() + self.passed_ns


class _Host:
    """One host: its collector as an agent has it, and a connection beside it."""

    def __init__(self, daemon: int) -> None:
        self._daemon_clock = (~daemon << 3) | 2  # clock_getcpuclockid(3): all threads, to the nanosecond
        self._clock = _Passing()
        self._began_ns = self._clock.now_ns()
        names = frozenset({"tier", "role", "team"})
        hypervisor = LibvirtHypervisor(_URI, clock=self._clock, tag_names=names, guest_agent_every_s=60.0)
        tags, cpus = {"cluster": "bench", "host": "host-1"}, frozenset(os.sched_getaffinity(0))
        now = self._clock.monotonic_ns
        self._collector = HostCollector(hypervisor, FileTree(), tags, cpus, monotonic_ns=now)
        self._connection = libvirt.open(_URI)
        self._asked: tuple[Any, ...] = ()
        self.samples = self.guests = 0

    def settle(self) -> None:
        """Tick until it is known what this libvirt has, and note how the collector asks for it then."""
        ask = libvirt.virConnect.getAllDomainStats
        asked: list[tuple[Any, ...]] = []

        def noting(connection: Any, *how: Any) -> Any:
            asked.append(how)
            return ask(connection, *how)

        libvirt.virConnect.getAllDomainStats = noting
        try:
            for _ in range(_SETTLING_TICKS):
                self.tick()
        finally:
            libvirt.virConnect.getAllDomainStats = ask
        self._asked = min(asked)  # without what is tried once a minute and not there

    def tick(self) -> None:
        """Measure the host and all its guests."""
        self._clock.passed_ns += seconds(_TICK_S)
        samples = self._collector.collect(self._began_ns + self._clock.passed_ns)
        self.samples = len(samples)
        if self._collector.failures:
            raise SystemExit("the collector failed")

    def bare(self) -> None:
        """Make the same bulk call and do nothing with the answer."""
        self.guests = len(self._connection.getAllDomainStats(*self._asked))

    def round(self) -> Round:
        """Return what both take, call by call in turn: the machine's other work comes and goes within seconds."""
        spent = [self._spent(call) for _ in range(_CALLS) for call in (self.bare, self.tick)]
        return Round(_mean(spent[::2]), _mean(spent[1::2]), self.guests, self.samples)

    def _spent(self, call: Callable[[], None]) -> Spent:
        own, daemon = process_time(), clock_gettime(self._daemon_clock)
        call()
        return Spent(process_time() - own, clock_gettime(self._daemon_clock) - daemon)


def _mean(spent: list[Spent]) -> Spent:
    return Spent(fmean(one.own_s for one in spent), fmean(one.daemon_s for one in spent))


def main() -> None:
    """Print the rounds; the first one does not count and is left out."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    daemon, rounds = map(int, sys.argv[1:])
    host = _Host(daemon)
    host.settle()
    told = [host.round() for _ in range(rounds + 1)]
    print(msgspec.json.encode(told[1:]).decode())


if __name__ == "__main__":
    main()
