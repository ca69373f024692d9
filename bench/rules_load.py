"""A fleet's lines as its agents send them: made once by the collectors' own code, sent again and again with new times.

Each host has a calm face in two variants and a hot one, in which some of its guests lack a CPU.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgspec

from virtpilot.collectors import domain
from virtpilot.hypervisor import GuestStats
from virtpilot.lineprotocol import encode_lines
from virtpilot.model import Sample
from virtpilot.topics import MAX_METRICS_BYTES

CLUSTER: Final = "bench"
STAND_IN_NS: Final = 1_111_111_111_111_111_111
_MARK: Final = str(STAND_IN_NS).encode()
_TICK_NS: Final = 10_000_000_000
_VCPUS: Final = 2
_MADE: Final = 10
_KIB_8G: Final = 8 * 1024 * 1024


class Face(msgspec.Struct, frozen=True):
    """One tick of one host: payloads that lack nothing but the time."""

    parts: tuple[bytes, ...]

    def at(self, time_ns: int) -> list[bytes]:
        """Return the payloads of a moment."""
        stamp = str(time_ns).encode()
        return [part.replace(_MARK, stamp) for part in self.parts]


class LoadedHost(msgspec.Struct, frozen=True):
    """A host and what it may say."""

    name: str
    calm: tuple[Face, Face]
    hot: Face
    guests: int

    def face(self, tick: int, *, hot: bool) -> Face:
        """Return what it says at a tick."""
        return self.hot if hot else self.calm[tick % 2]


def fleet(hosts: int, guests: int, *, hot_guests: int = 2, seed: int = 1) -> list[LoadedHost]:
    """Return hosts with so many guests each; `hot_guests` of them starve when a host is hot.

    A few hosts are made and the others are these under other names, so that a large fleet is there soon.
    """
    rng = random.Random(seed)  # noqa: S311 - load, not secrets
    made = [_host(f"h{number:03}", number, guests, hot_guests, rng) for number in range(min(hosts, _MADE))]
    return [_renamed(made[number % _MADE], number % _MADE, number) for number in range(hosts)]


def _host(name: str, number: int, guests: int, hot_guests: int, rng: random.Random) -> LoadedHost:
    named = [
        _Named(f"{number:08x}-{uuid.UUID(int=rng.getrandbits(128))!s:.27}", f"{name}-web-{n:02}", _counted(rng))
        for n in range(guests)
    ]
    calm = (_face(name, named, 0, rng), _face(name, named, 0, rng))
    return LoadedHost(name, calm, _face(name, named, hot_guests, rng), guests)


class _Named(NamedTuple):
    """A guest and where its counters stand, in all faces alike: nothing runs backwards."""

    id: str
    name: str
    counters: dict[str, int]


def _counted(rng: random.Random) -> dict[str, int]:
    return {key: rng.randrange(10**12, 10**13) for key in _COUNTERS}


def _renamed(host: LoadedHost, old: int, new: int) -> LoadedHost:
    """Return a host under another name, with guests of its own."""

    def other(face: Face) -> Face:
        names = ((f"h{old:03}", f"h{new:03}"), (f"={old:08x}-", f"={new:08x}-"))
        parts = list(face.parts)
        for before, after in names:
            parts = [part.replace(before.encode(), after.encode()) for part in parts]
        return Face(tuple(parts))

    return LoadedHost(f"h{new:03}", (other(host.calm[0]), other(host.calm[1])), other(host.hot), host.guests)


def _face(name: str, named: list[_Named], hot_guests: int, rng: random.Random) -> Face:
    tags = {"cluster": CLUSTER, "host": name}
    samples = [Sample("host", tags, _host_fields(hot_guests > 0, rng), STAND_IN_NS)]
    for number, guest in enumerate(named):
        samples += _guest(guest, tags, starved=number < hot_guests, rng=rng)
    return Face(_split(samples))


def _split(samples: list[Sample]) -> tuple[bytes, ...]:
    parts, lines = [], b""
    for sample in samples:
        line = encode_lines([sample])
        if len(lines) + len(line) > MAX_METRICS_BYTES:
            parts.append(lines)
            lines = b""
        lines += line
    return (*parts, lines)


def _host_fields(hot: bool, rng: random.Random) -> dict[str, int | float]:
    total = 256 * 1024**3
    return {
        "cpu_usage_ratio": 0.9 if hot else rng.uniform(0.2, 0.6), "cpu_steal_ratio": 0.0,
        "cpu_iowait_ratio": rng.uniform(0, 0.02), "cpus_count": 64, "load1_count": rng.uniform(5, 50),
        "load5_count": rng.uniform(5, 50), "load15_count": rng.uniform(5, 50), "memory_total_bytes": total,
        "memory_available_bytes": int(total * rng.uniform(0.3, 0.5)), "memory_used_ratio": rng.uniform(0.5, 0.7),
        "swap_used_bytes": 0, "psi_cpu_some_ratio": rng.uniform(0, 0.2), "psi_memory_some_ratio": 0.0,
        "psi_memory_full_ratio": 0.0, "psi_io_some_ratio": rng.uniform(0, 0.05), "psi_io_full_ratio": 0.0,
        "guests_running_count": 50, "guests_defined_count": 50, "guests_skipped_total": 0,
        "vcpus_allocated_count": 100, "memory_allocated_bytes": total // 2, "tick_duration_seconds": rng.uniform(0, 1),
    }  # fmt: skip


def _guest(guest: _Named, tags: Mapping[str, str], *, starved: bool, rng: random.Random) -> list[Sample]:
    """Return a running guest's samples at the second of two moments, so that its rates are known."""
    meter, after = domain.Meter(tags, lambda guest, knob: False), guest.counters  # noqa: ARG005 - the Protocol's names
    samples: list[Sample] = []
    before = {key: value - rng.randrange(_MOST_GROWN[key.rpartition(".")[2]]) for key, value in after.items()}
    if starved:
        before |= {key: value - int(0.3 * _TICK_NS) for key, value in after.items() if key.endswith(".delay")}
    for counters, time_ns in ((before, STAND_IN_NS - _TICK_NS), (after, STAND_IN_NS)):
        stats = GuestStats(guest.id, guest.name, _stats(counters, rng), {"cpu_shares": 1024}, {"tier": "web"}, run=1)
        samples = meter.samples(stats, time_ns)
    return samples


# What a calm guest's counters grow by in a tick, at most.
_MOST_GROWN: Final = {
    **dict.fromkeys(("time", "user", "system"), 8 * 10**9), **dict.fromkeys(("wait", "delay"), 10**8),
    **dict.fromkeys(("swap_in", "swap_out", "errs", "drop", "major_fault"), 1),
    **dict.fromkeys(("reqs", "pkts"), 1000), "bytes": 10**8, "times": 10**9,
}  # fmt: skip
_COUNTERS: Final = (
    "cpu.time", "cpu.user", "cpu.system", "balloon.swap_in", "balloon.swap_out", "balloon.major_fault",
    *(f"vcpu.{index}.{name}" for index in range(_VCPUS) for name in ("time", "wait", "delay")),
    *(f"block.0.{name}" for name in ("rd.reqs", "rd.bytes", "rd.times", "wr.reqs", "wr.bytes", "wr.times",
                                     "fl.reqs", "fl.times")),
    *(f"net.0.{way}.{name}" for way in ("rx", "tx") for name in ("bytes", "pkts", "errs", "drop")),
)  # fmt: skip


def _stats(counters: Mapping[str, int], rng: random.Random) -> dict[str, Any]:
    usable = rng.randrange(_KIB_8G // 4, _KIB_8G // 2)
    gauges = {
        "state.state": 1, "state.reason": 1, "vcpu.current": _VCPUS, "vcpu.maximum": _VCPUS,
        "balloon.current": _KIB_8G, "balloon.maximum": _KIB_8G, "balloon.available": _KIB_8G - 65_536,
        "balloon.usable": usable, "balloon.unused": usable // 2, "balloon.rss": _KIB_8G - usable,
        "block.count": 1, "block.0.name": "vda", "block.0.allocation": 10 * 2**30, "block.0.capacity": 20 * 2**30,
        "block.0.physical": 10 * 2**30, "net.count": 1, "net.0.name": "vnet0",
        **{f"vcpu.{index}.state": 1 for index in range(_VCPUS)},
    }  # fmt: skip
    return {**gauges, **counters}
