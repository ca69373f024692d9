"""Histories for the tests of replay: the demo's, recorded once, and small ones made here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from virtpilot.clock import SECOND
from virtpilot.lineprotocol import encode_lines
from virtpilot.model import Sample, Signal
from virtpilot.pipeline.demo import Demo
from virtpilot.pipeline.replay import Replayed

START_NS = 1_767_225_600 * SECOND
GIB = 2**30


def play_demo(folder: Path, seconds: int) -> list[Signal]:
    """Run the demo into a folder and return its signals."""
    demo = Demo(folder)
    for _ in range(seconds):
        demo.step()
    demo.close()
    return [entry.record for entry in demo.controller.entries() if isinstance(entry.record, Signal)]


def host(name: str, at_s: float, usage: float, cluster: str = "c") -> Sample:
    fields: dict[str, int | float] = {
        "cpu_usage_ratio": usage,
        "cpus_count": 4,
        "memory_total_bytes": 64 * GIB,
        "memory_available_bytes": 32 * GIB,
    }
    return Sample("host", {"cluster": cluster, "host": name}, fields, START_NS + round(at_s * SECOND))


def guest(name: str, on: str, at_s: float, usage: float, steal: float, cluster: str = "c") -> Sample:
    fields: dict[str, int | float] = {
        "state_code": 1,
        "cpu_usage_ratio": usage,
        "cpu_steal_ratio": steal,
        "vcpus_count": 2,
        "memory_balloon_bytes": 4 * GIB,
    }
    tags = {"cluster": cluster, "host": on, "vm": f"id-{name}", "name": name}
    return Sample("vm", tags, fields, START_NS + round(at_s * SECOND))


def knob(name: str, on: str, at_s: float, value: int, which: str = "cpu_shares") -> Sample:
    tags = {"cluster": "c", "host": on, "vm": f"id-{name}", "name": name, "knob": which}
    return Sample("knob", tags, {"value_count": value}, START_NS + round(at_s * SECOND))


def starved(seconds: int, every_s: int = 10) -> list[Sample]:
    """Two guests that each want two cores of a host of four that itself uses one; another host is idle."""
    found = []
    for at_s in range(0, seconds, every_s):
        found += [host("h1", at_s, 1.0), host("h2", at_s, 0.05)]
        found += [guest(name, "h1", at_s, 0.75, 0.25) for name in ("a", "b")]
        found += [knob(name, "h1", at_s, 1024) for name in ("a", "b")]
    return found


def written(path: Path, samples: Sequence[Sample]) -> Path:
    path.write_bytes(encode_lines(samples))
    return path


def told(played: Replayed) -> list[tuple[str, str, str, int]]:
    """A rule set's signals in short."""
    signals = [one for one in played.records if isinstance(one, Signal)]
    return [(one.rule, one.subject.name, one.state, one.at_ns) for one in signals]
