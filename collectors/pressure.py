"""Pressure stall information: shares of time from the kernel's own totals (Documentation/accounting/psi.rst)."""

from __future__ import annotations

import re
from typing import Final

from virtpilot.collectors.source import Fields, Found, Look

_LINE: Final = re.compile(r"^(some|full) .*\btotal=(\d+)", re.MULTILINE)
_WANTED: Final = {"cpu": ("some",), "memory": ("some", "full"), "io": ("some", "full")}


def parse(text: str) -> dict[str, int]:
    """Return the stalled microseconds of `some` and `full`."""
    return {kind: int(total) for kind, total in _LINE.findall(text)}


def collect(look: Look) -> Found:
    """Return the share of time that tasks waited since the last reading; absent where the kernel has no PSI."""
    fields: Fields = {}
    for resource, kinds in _WANTED.items():
        try:
            totals = parse(look.tree.read(f"proc/pressure/{resource}"))
        except OSError:
            continue  # no PSI in this kernel, or switched off (reading then fails): the field is absent
        for kind in kinds:
            rate = look.rates.rate(("psi", resource, kind), totals[kind], look.now_ns) if kind in totals else None
            if rate is not None:
                fields[f"psi_{resource}_{kind}_ratio"] = min(rate / 1e6, 1.0)
    return Found(fields)
