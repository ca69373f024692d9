"""How often a guest's CPU quota stopped it: the sum over its vCPUs', emulator's and I/O threads' groups.

libvirt sets a quota on those groups, not on the guest's own, and the kernel counts where the quota is. Most guests have
none: then only the first vCPU's group is read each tick, since all vCPUs get one quota, and the rest once it counts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from virtpilot.clock import seconds
from virtpilot.collectors.hierarchy import UNIFIED
from virtpilot.collectors.opened import Opened
from virtpilot.collectors.rates import MAX_ELAPSED_NS, MIN_ELAPSED_NS
from virtpilot.collectors.source import Fields
from virtpilot.collectors.tree import Tree

_PART: Final = re.compile(r"libvirt|emulator|(vcpu|iothread)[0-9]{1,5}")
_FIRST: Final = "/vcpu0"
# A quota on no vCPU, but on helper threads or the whole guest, is found so late.
_IDLE_REFRESH_NS: Final = seconds(300)
_MAX_PARTS: Final = 1024
# v2 tells microseconds, v1 nanoseconds
_COUNT: Final = re.compile(r"^(nr_periods|nr_throttled|throttled_usec|throttled_time) ([0-9]{1,20})$", re.MULTILINE)

Counts = tuple[int, int, float]


def parse(text: str) -> Counts | None:
    """Return (periods, throttled periods, throttled seconds) of a cpu.stat; None where it tells of no quota."""
    found = {name: int(number) for name, number in _COUNT.findall(text)}
    if not {"nr_periods", "nr_throttled"} <= found.keys():
        return None
    time_s = found.get("throttled_usec", 0) * 1e-6 + found.get("throttled_time", 0) * 1e-9
    return found["nr_periods"], found["nr_throttled"], time_s


class Throttle:
    """Reads the quotas' counters of one guest."""

    def __init__(self, tree: Tree, paths: Mapping[str, str]) -> None:
        self._tree = tree
        # where both hierarchies are mounted the CPU controller is in one of them: v1 says so by being there
        self._top = paths.get("cpu", paths.get(UNIFIED))
        self._counting: dict[str, Opened[Counts | None]] = {}
        self._known, self._idle = False, True
        self._looked_ns = 0
        self._before = (0, 0, 0)

    def refresh(self, now_ns: int) -> None:
        """Look at all parts anew if it is time to: quotas come, vCPUs come and go."""
        wait_ns = _IDLE_REFRESH_NS if self._idle and self._known else 0
        if abs(now_ns - self._looked_ns) >= wait_ns:
            self._look(now_ns)

    def _look(self, now_ns: int) -> None:
        self._looked_ns = now_ns
        self._known, self._idle = False, True
        self.close()
        for path in self._parts():
            try:
                counts = parse(self._tree.read(f"{path}/cpu.stat"))
                if counts is not None and (counts[0] or path.endswith(_FIRST)):
                    self._counting[path] = Opened(self._tree.keep(f"{path}/cpu.stat"), parse)
            except OSError:
                continue
            self._known |= counts is not None
            self._idle &= counts is None or not counts[0]

    def collect(self, now_ns: int) -> Fields:
        """Return the sums, and the share of periods since the last reading that ended in being stopped."""
        if not self._known:
            return {}
        periods, stopped, time_s = self._sums()
        if periods and self._idle:  # a quota is new: the other parts have it too
            self._look(now_ns)
            periods, stopped, time_s = self._sums()
        fields: Fields = {
            "cpu_periods_total": periods,
            "cpu_throttled_periods_total": stopped,
            "cpu_throttled_seconds_total": time_s,
        }
        (former_periods, former_stopped, former_ns), self._before = self._before, (periods, stopped, now_ns)
        whole, part = periods - former_periods, stopped - former_stopped
        if MIN_ELAPSED_NS <= now_ns - former_ns <= MAX_ELAPSED_NS and whole >= 0 and part >= 0:
            fields["cpu_throttled_ratio"] = min(part / whole, 1.0) if whole else 0.0
        return fields

    def _sums(self) -> Counts:
        periods, stopped, time_s = 0, 0, 0.0
        lost = []
        for path, opened in self._counting.items():
            try:
                counts = opened.read()
            except OSError:  # a vCPU was unplugged
                lost.append(path)
                continue
            if counts is not None:
                periods, stopped, time_s = periods + counts[0], stopped + counts[1], time_s + counts[2]
        for path in lost:
            self._counting.pop(path).close()
        return periods, stopped, time_s

    def close(self) -> None:
        """Let go of the files."""
        for opened in self._counting.values():
            opened.close()
        self._counting.clear()

    def _parts(self) -> list[str]:
        if self._top is None:
            return []
        found = [self._top]
        for folder in (self._top, f"{self._top}/libvirt"):
            try:
                names = self._tree.names(folder)
            except OSError:
                continue
            found += [f"{folder}/{name}" for name in sorted(names) if _PART.fullmatch(name)]
        return found[:_MAX_PARTS]
