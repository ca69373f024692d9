"""A tick of the collector with 1,000 guests, from the bulk call to the samples."""

from __future__ import annotations

import os
from pathlib import Path
from statistics import median
from time import process_time
from typing import Final

import structlog

from bench.measure import Figure, figure, interleaved
from bench.stand_in import libvirt as binding
from virtpilot.clock import SystemClock
from virtpilot.collectors.collector import HostCollector
from virtpilot.collectors.tree import FileTree
from virtpilot.libvirt_host import LibvirtHypervisor
from virtpilot.lineprotocol import encode_lines
from virtpilot.model import Sample

_GUESTS: Final = 1000
_TICK_NS: Final = 10 * 10**9


class _Host:
    """A host of the stand-in's guests, and the CPU time a guest that each part of its measurement takes."""

    def __init__(self) -> None:
        os.environ["STAND_IN_GUESTS"] = str(_GUESTS)
        clock = SystemClock()
        self.hypervisor = LibvirtHypervisor("test:///default", clock=clock, deadline_s=60.0, binding=binding)
        tags, cpus = {"cluster": "bench", "host": "node-1"}, frozenset(os.sched_getaffinity(0))
        tree = FileTree(Path("/"))
        self._collector = HostCollector(self.hypervisor, tree, tags, cpus, monotonic_ns=clock.monotonic_ns)
        self._connection = binding.open()
        self._now_ns = clock.now_ns()
        self._samples: list[Sample] = []

    def tick(self) -> float:
        """Measure once."""
        self._now_ns += _TICK_NS
        began = process_time()
        self._samples = self._collector.collect(self._now_ns)
        return (process_time() - began) / _GUESTS

    def encode(self) -> float:
        """Write what was measured."""
        began = process_time()
        encode_lines(self._samples)
        return (process_time() - began) / _GUESTS

    def bare(self) -> float:
        """Ask the stand-in alone."""
        began = process_time()
        self._connection.getAllDomainStats()
        return (process_time() - began) / _GUESTS


def measure(runs: int) -> dict[str, Figure]:
    """Measure CPU time a guest, of all threads; the stand-in's part is measured in turn and taken off."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    host = _Host()
    for _ in range(4):
        host.tick()  # what is asked for once in a while only is known then
    took = interleaved(runs, tick=host.tick, encode=host.encode, bare=host.bare)
    host.hypervisor.close()
    return {
        "collect_us_per_guest": figure(
            [(whole - stand_in) * 1e6 for whole, stand_in in zip(took["tick"], took["bare"], strict=True)],
            "us",
            f"100 us of CPU time a guest for a tick with {_GUESTS:,} guests, the stand-in's own work taken off",
            at_most=100,
            measured={
                "whole_tick_us_per_guest": median(took["tick"]) * 1e6,
                "encode_us_per_guest": median(took["encode"]) * 1e6,
                "bulk_call_us_per_guest": median(took["bare"]) * 1e6,
            },
        )
    }
