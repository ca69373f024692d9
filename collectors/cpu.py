"""Host CPU by mode from /proc/stat, for the CPUs that this host may use (proc(5))."""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from operator import add
from typing import Final

from virtpilot.collectors.source import Fields, Found, Look

_UNSTEADY: Final = frozenset({"iowait", "user", "nice"})
_MODES: Final = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal", "guest", "guest_nice")
# The line of the interrupts is longer than all the rest: these are looked for, not all of it read. Kernels before
# 2.6.33 know nothing of guests.
_CPU: Final = re.compile(r"\ncpu([0-9]{1,6})((?: [0-9]{1,20}){8,})")
_STATE: Final = re.compile(r"\nprocs_(running|blocked) ([0-9]{1,20})$", re.MULTILINE)


def parse(text: str, cpus: frozenset[int]) -> dict[str, int]:
    """Return the jiffies of each mode summed over `cpus`, guests' time apart; empty where none of them is there."""
    total: list[int] = []
    for number, words in _CPU.findall(f"\n{text}"):
        if int(number) in cpus:
            values = list(map(int, words.split()))
            total = list(map(add, total, values)) if total else values
    return _apart(dict(zip(_MODES, total, strict=False)))


def _apart(modes: dict[str, int]) -> dict[str, int]:
    """Take the guests' time out of user and nice, of which the kernel counts it a part."""
    if "guest_nice" in modes:
        nice = modes.pop("guest_nice")
        modes["user"] = max(modes["user"] - modes["guest"], 0)
        modes["nice"] = max(modes["nice"] - nice, 0)
        modes["guest"] += nice
    else:
        modes.pop("guest", None)
    return modes


def states(text: str) -> Fields:
    """Return how many processes run and wait for I/O."""
    return {f"processes_{state}_count": int(number) for state, number in _STATE.findall(f"\n{text}")}


def collect(look: Look) -> Found:
    """Return the CPU's fields; ratios from the second reading on."""
    text = look.tree.read("proc/stat")
    modes = parse(text, look.cpus)
    increases, _elapsed_s = look.rates.grown(("cpu",), modes, look.now_ns)
    return Found({"cpus_count": len(look.cpus)} | states(text) | _ratios(modes.keys(), increases))


def _ratios(modes: Set[str], increases: Mapping[str, float]) -> Fields:
    # iowait may go backwards by the kernel's own word, user without its guests by rounding: they then count as nothing.
    known = {mode: increases.get(mode, 0.0) for mode in modes}
    whole = sum(known.values())
    if not modes - increases.keys() <= _UNSTEADY or whole <= 0:
        return {}
    fields: Fields = {f"cpu_{mode}_ratio": increase / whole for mode, increase in known.items()}
    fields["cpu_usage_ratio"] = 1 - (known["idle"] + known["iowait"]) / whole
    return fields
