"""Pressure stall information: shares of time from the kernel's own totals (Documentation/accounting/psi.rst)."""

from __future__ import annotations

from typing import Final

from virtpilot.collectors.number import count
from virtpilot.collectors.source import Fields, Found, Look

_KINDS: Final = ("some", "full")
# For a whole machine the kernel writes a `full` of the CPU that means nothing and is 0; irq has no `some`.
_WANTED: Final = {"cpu": ("some",), "memory": ("some", "full"), "io": ("some", "full"), "irq": ("full",)}


def parse(text: str) -> dict[str, int]:
    """Return the stalled microseconds of `some` and `full`."""
    found: dict[str, int] = {}
    for line in text.splitlines():
        kind, _, rest = line.partition(" ")
        total = count(rest.rpartition(" total=")[2])
        if total is not None and kind in _KINDS:
            found[kind] = total
    return found


class Pressure:
    """Collects the shares of time that tasks waited; what the kernel does not have is not looked for again."""

    def __init__(self) -> None:
        self._wanted = dict(_WANTED)

    def __call__(self, look: Look) -> Found:
        """Return the shares since the last reading; absent where the kernel has no PSI, or has it switched off."""
        fields: Fields = {}
        for resource, kinds in list(self._wanted.items()):
            try:
                totals = parse(look.tree.read(f"proc/pressure/{resource}"))
            except FileNotFoundError:
                del self._wanted[resource]
                continue
            except OSError:  # switched off: reading fails then
                continue
            increases, elapsed_s = look.rates.grown(("psi", resource), totals, look.now_ns)
            for kind in kinds:
                if kind in increases:
                    fields[f"psi_{resource}_{kind}_ratio"] = min(increases[kind] / elapsed_s / 1e6, 1.0)
        return Found(fields)
