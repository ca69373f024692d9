"""Host CPU by mode from /proc/stat, for the CPUs that this host may use (proc(5))."""

from __future__ import annotations

import re
from typing import Final

from virtpilot.collectors.number import count
from virtpilot.collectors.source import Fields, Found, Look

_MODES: Final = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal", "guest", "guest_nice")
_LEAST: Final = 8  # kernels before 2.6.33 know nothing of guests
# The line of the interrupts is longer than all the rest: these are looked for, not all of it read.
_STATE: Final = re.compile(r"\nprocs_(running|blocked) ([0-9]{1,20})$", re.MULTILINE)


def parse(text: str, cpus: frozenset[int]) -> dict[str, int]:
    """Return the jiffies of each mode summed over `cpus`, guests' time apart; empty where none of them is there."""
    total: list[int] = []
    for line in text.splitlines():
        if not line.startswith("cpu"):
            if total:
                break  # they are in one row
            continue
        name, *words = line.split()[: len(_MODES) + 1]
        values = [value for word in words if (value := count(word)) is not None]
        if count(name[3:]) in cpus and len(values) == len(words) >= _LEAST:
            total = [a + b for a, b in zip(total, values, strict=False)] if total else values
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
    deltas = {mode: look.rates.delta(("cpu", mode), value, look.now_ns) for mode, value in modes.items()}
    return Found({"cpus_count": len(look.cpus)} | states(text) | _ratios(deltas))


def _ratios(deltas: dict[str, tuple[float, float] | None]) -> Fields:
    # iowait may go backwards by the kernel's own word, user without its guests by rounding: they then count as nothing.
    known = [delta for mode, delta in deltas.items() if mode not in {"iowait", "user", "nice"}]
    increases = {mode: 0.0 if delta is None else delta[0] for mode, delta in deltas.items()}
    whole = sum(increases.values())
    if not known or None in known or whole <= 0:
        return {}
    fields: Fields = {f"cpu_{mode}_ratio": increase / whole for mode, increase in increases.items()}
    return fields | {"cpu_usage_ratio": 1 - (increases["idle"] + increases["iowait"]) / whole}
