"""What the kernel tells of a guest's control group: pressure, throttling, I/O and memory (cgroup v1 and v2).

Its CPU time is not asked for here: libvirt tells it, from the same group. A file or controller that is not there is an
absent field. Sources: Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from virtpilot.clock import SECOND, seconds
from virtpilot.collectors.hierarchy import UNIFIED
from virtpilot.collectors.number import count
from virtpilot.collectors.opened import Opened
from virtpilot.collectors.rates import MAX_ELAPSED_NS, MIN_ELAPSED_NS
from virtpilot.collectors.source import Fields
from virtpilot.collectors.throttle import Throttle
from virtpilot.collectors.tree import Tree

Parse = Callable[[str], Fields]

REFRESH_NS: Final = seconds(60)
_UNLIMITED: Final = 2**60  # v1 writes a number about that size where there is no limit, v2 a word
_IO: Final = {
    "rbytes": "cgroup_io_read_bytes_total",
    "wbytes": "cgroup_io_write_bytes_total",
    "rios": "cgroup_io_read_requests_total",
    "wios": "cgroup_io_write_requests_total",
}
_IO_V2: Final = re.compile(r" (rbytes|wbytes|rios|wios)=([0-9]{1,20})")
_IO_V1: Final = re.compile(r"^[0-9]+:[0-9]+ (Read|Write) ([0-9]{1,20})$", re.MULTILINE)
_EVENTS: Final = {
    "low": "cgroup_memory_low_total",
    "high": "cgroup_memory_high_total",
    "max": "cgroup_memory_max_total",
    "oom": "cgroup_memory_oom_total",
    "oom_kill": "cgroup_oom_kills_total",
}
_MEMORY_V2: Final = {"anon": "cgroup_memory_anon_bytes", "file": "cgroup_memory_file_bytes"}
_MEMORY_V1: Final = {
    "total_rss": "cgroup_memory_anon_bytes",
    "total_cache": "cgroup_memory_file_bytes",
    "total_swap": "cgroup_memory_swap_bytes",
}
_STALL: Final = re.compile(r"^(some|full) [^\n]*\btotal=([0-9]{1,20})$", re.MULTILINE)
# What is told of a counter's growth: the field, what turns its growth in a second into the field's unit, and the most
# that can be true.
_GROWTH: Final = {
    f"stalled_{resource}_{kind}": (f"psi_{resource}_{kind}_ratio", 1e-6, 1.0)
    for resource in ("cpu", "memory", "io")
    for kind in ("some", "full")
} | {f"cgroup_io_{way}_bytes_total": (f"cgroup_io_{way}_bytes_per_second", 1.0, math.inf) for way in ("read", "write")}
_STALLED: Final = frozenset(name for name in _GROWTH if name.startswith("stalled_"))


def parse_stalls(resource: str) -> Parse:
    """Return a parser of a pressure file; the microseconds that it tells are no field, their growth is."""
    names = {kind: f"stalled_{resource}_{kind}" for kind in ("some", "full")}
    return lambda text: {names[kind]: int(total) for kind, total in _STALL.findall(text)}


def parse_one(name: str) -> Parse:
    """Return a parser of a file that says one size; no limit is no field."""

    def parse(text: str) -> Fields:
        value = count(text.strip())
        return {} if value is None or value >= _UNLIMITED else {name: value}

    return parse


def parse_pairs(names: Mapping[str, str]) -> Parse:
    """Return a parser of a file with a name and a number in each line; the wanted lines are looked for."""
    line = re.compile(rf"\n({'|'.join(names)}) ([0-9]{{1,20}})$", re.MULTILINE)
    return lambda text: {names[name]: int(number) for name, number in line.findall(f"\n{text}")}


def parse_io_v2(text: str) -> Fields:
    """Return the sums over all devices of an io.stat; zeros where the group has not touched one yet."""
    found: Fields = dict.fromkeys(_IO.values(), 0)
    for name, number in _IO_V2.findall(text):
        found[_IO[name]] += int(number)
    return found


def parse_io_v1(kind: str) -> Parse:
    """Return a parser of a blkio.throttle file, which adds up `kind`: bytes or requests."""

    def parse(text: str) -> Fields:
        found: Fields = {f"cgroup_io_{way}_{kind}_total": 0 for way in ("read", "write")}
        for way, number in _IO_V1.findall(text):
            found[f"cgroup_io_{way.lower()}_{kind}_total"] += int(number)
        return found

    return parse


class File(NamedTuple):
    """One file of a group: the hierarchy it is in, its name and what it says; `seldom` ones cost much or say little."""

    hierarchy: str
    name: str
    parse: Parse
    seldom: bool = False


FILES: Final = (
    File(UNIFIED, "cpu.pressure", parse_stalls("cpu")),
    File(UNIFIED, "memory.pressure", parse_stalls("memory")),
    File(UNIFIED, "io.pressure", parse_stalls("io")),
    File(UNIFIED, "io.stat", parse_io_v2),
    File(UNIFIED, "memory.current", parse_one("cgroup_memory_bytes")),
    File(UNIFIED, "memory.events", parse_pairs(_EVENTS)),
    File(UNIFIED, "memory.stat", parse_pairs(_MEMORY_V2), seldom=True),
    File(UNIFIED, "memory.peak", parse_one("cgroup_memory_peak_bytes"), seldom=True),
    File(UNIFIED, "memory.swap.current", parse_one("cgroup_memory_swap_bytes"), seldom=True),
    File(UNIFIED, "memory.max", parse_one("cgroup_memory_limit_bytes"), seldom=True),
    File("memory", "memory.usage_in_bytes", parse_one("cgroup_memory_bytes")),
    File("memory", "memory.oom_control", parse_pairs({"oom_kill": "cgroup_oom_kills_total"})),
    File("memory", "memory.failcnt", parse_one("cgroup_memory_max_total"), seldom=True),
    File("memory", "memory.stat", parse_pairs(_MEMORY_V1), seldom=True),
    File("memory", "memory.max_usage_in_bytes", parse_one("cgroup_memory_peak_bytes"), seldom=True),
    File("memory", "memory.limit_in_bytes", parse_one("cgroup_memory_limit_bytes"), seldom=True),
    File("blkio", "blkio.throttle.io_service_bytes_recursive", parse_io_v1("bytes")),
    File("blkio", "blkio.throttle.io_serviced_recursive", parse_io_v1("requests")),
)


class Group:
    """The control group of one guest that runs; what is read each tick stays open.

    `stagger_ns` brings the first refresh forward, so that not all guests have theirs in one tick.
    """

    def __init__(self, tree: Tree, paths: Mapping[str, str], stagger_ns: int = 0) -> None:
        self._tree = tree
        self._paths = paths
        self._open: dict[File, Opened[Fields]] = {}
        self._seldom: Fields = {}
        self._throttle = Throttle(tree, paths)
        self._stagger_ns = stagger_ns
        self._refreshed_ns: int | None = None
        self._before: Fields = {}
        self._before_ns = 0

    def collect(self, now_ns: int) -> Fields | None:
        """Return what the group tells now; None once it is gone."""
        if self._refreshed_ns is None or abs(now_ns - self._refreshed_ns) >= REFRESH_NS:
            self._refreshed_ns = now_ns - (self._stagger_ns if self._refreshed_ns is None else 0)
            self._refresh(now_ns)
        found = self._read()
        if not self._open:
            return None
        self._add_growth(found, now_ns)
        found.update(self._seldom)
        found.update(self._throttle.collect(now_ns))
        return found

    def _read(self) -> Fields:
        found: Fields = {}
        lost = []
        for file, opened in self._open.items():
            try:
                found.update(opened.read())
            except OSError:  # the group goes, or its controller was taken away
                lost.append(file)
        for file in lost:
            self._open.pop(file).close()
        return found

    def close(self) -> None:
        """Let go of its files."""
        for opened in self._open.values():
            opened.close()
        self._open.clear()
        self._throttle.close()

    def _refresh(self, now_ns: int) -> None:
        """Read what is read seldom, and look for files that were not there before: controllers come late."""
        self._seldom = {}
        for file in FILES:
            if file in self._open or file.hierarchy not in self._paths:
                continue
            path = f"{self._paths[file.hierarchy]}/{file.name}"
            try:
                if file.seldom:
                    self._seldom |= file.parse(self._tree.read(path))
                else:
                    self._open[file] = Opened(self._tree.keep(path), file.parse)
            except OSError:
                continue
        self._throttle.refresh(now_ns)

    def _add_growth(self, found: Fields, now_ns: int) -> None:
        """Add the fields that tell how counters have grown since the last tick; take away those that only do that."""
        before, elapsed_ns = self._before, now_ns - self._before_ns
        comparable = MIN_ELAPSED_NS <= elapsed_ns <= MAX_ELAPSED_NS
        counters = {name: found[name] for name in _GROWTH if name in found}
        self._before, self._before_ns = counters, now_ns
        for name, value in counters.items():
            if name in _STALLED:
                del found[name]
            if comparable and value >= before.get(name, math.inf):
                field, factor, most = _GROWTH[name]
                found[field] = min((value - before[name]) * factor * SECOND / elapsed_ns, most)
