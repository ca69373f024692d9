"""Pressure stall information: shares of time from the kernel's own totals (Documentation/accounting/psi.rst)."""

from __future__ import annotations

import re
from typing import Final

from virtpilot.collectors.rates import Rates
from virtpilot.collectors.source import Fields, Found, Look

_LINE: Final = re.compile(r"^(some|full) .*\btotal=([0-9]{1,20})$", re.MULTILINE)
# For a whole machine the kernel writes a `full` of the CPU that means nothing and is 0; irq has no `some`.
_WANTED: Final = {"cpu": ("some",), "memory": ("some", "full"), "io": ("some", "full"), "irq": ("full",)}


def parse(text: str) -> dict[str, int]:
    """Return the stalled microseconds of `some` and `full`."""
    return {kind: int(total) for kind, total in _LINE.findall(text)}


def ratio(rates: Rates, key: tuple[str, ...], stalled_us: int, now_ns: int) -> float | None:
    """Return the share of time stalled since the last reading."""
    rate = rates.rate(key, stalled_us, now_ns)
    return None if rate is None else min(rate / 1e6, 1.0)


def collect(look: Look) -> Found:
    """Return the share of time that tasks waited since the last reading; absent where the kernel has no PSI."""
    fields: Fields = {}
    for resource, kinds in _WANTED.items():
        try:
            totals = parse(look.tree.read(f"proc/pressure/{resource}"))
        except OSError:
            continue  # no PSI in this kernel, or switched off (reading then fails): the field is absent
        for kind in kinds:
            if kind in totals:
                share = ratio(look.rates, ("psi", resource, kind), totals[kind], look.now_ns)
                if share is not None:
                    fields[f"psi_{resource}_{kind}_ratio"] = share
    return Found(fields)
