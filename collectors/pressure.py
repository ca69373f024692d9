"""Pressure stall information: shares of time from the kernel's own totals (Documentation/accounting/psi.rst)."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from virtpilot.collectors.rates import Rates

_LINE: Final = re.compile(r"^(some|full) .*\btotal=(\d+)", re.MULTILINE)
_WANTED: Final = {"cpu": ("some",), "memory": ("some", "full"), "io": ("some", "full")}


def parse(text: str) -> dict[str, int]:
    """Return the stalled microseconds of `some` and `full`."""
    return {kind: int(total) for kind, total in _LINE.findall(text)}


def collect(read: Callable[[str], str], rates: Rates, now_ns: int) -> dict[str, int | float]:
    """Return the share of time that tasks waited since the last reading; absent where the kernel has no PSI."""
    fields: dict[str, int | float] = {}
    for resource, kinds in _WANTED.items():
        try:
            totals = parse(read(f"pressure/{resource}"))
        except OSError:
            continue  # no PSI in this kernel, or switched off (reading then fails): the field is absent
        for kind in kinds:
            rate = rates.rate(("psi", resource, kind), totals[kind], now_ns) if kind in totals else None
            if rate is not None:
                fields[f"psi_{resource}_{kind}_ratio"] = min(rate / 1e6, 1.0)
    return fields
