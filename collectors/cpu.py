"""Host CPU from /proc/stat, for the CPUs that this host may use (proc(5))."""

from __future__ import annotations

from typing import Final

from virtpilot.collectors.source import Fields, Found, Look

# user nice system idle iowait irq softirq steal; guest times are part of user and nice already.
_USED: Final = 8
_IDLE, _IOWAIT, _STEAL = 3, 4, 7


def parse(text: str, cpus: frozenset[int]) -> list[int]:
    """Return the jiffies of each mode summed over `cpus`; empty where none of them is there."""
    total = [0] * _USED
    seen = False
    for line in text.splitlines():
        name, *numbers = line.split() or [""]
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in cpus and len(numbers) >= _USED:
            try:
                values = [int(number) for number in numbers[:_USED]]
            except ValueError:
                continue
            total = [a + b for a, b in zip(total, values, strict=True)]
            seen = True
    return total if seen else []


def collect(look: Look) -> Found:
    """Return the CPU's fields; ratios from the second reading on."""
    fields: Fields = {"cpus_count": len(look.cpus)}
    modes = parse(look.tree.read("proc/stat"), look.cpus)
    deltas = [look.rates.delta(("cpu", str(mode)), value, look.now_ns) for mode, value in enumerate(modes)]
    # iowait may go backwards by the kernel's own word: it then counts as nothing.
    increases = [0.0 if delta is None else delta[0] for delta in deltas]
    whole = sum(increases)
    known = [delta for mode, delta in enumerate(deltas) if mode != _IOWAIT]
    if not known or None in known or whole <= 0:
        return Found(fields)
    fields["cpu_usage_ratio"] = 1 - (increases[_IDLE] + increases[_IOWAIT]) / whole
    fields["cpu_steal_ratio"] = increases[_STEAL] / whole
    fields["cpu_iowait_ratio"] = increases[_IOWAIT] / whole
    return Found(fields)
