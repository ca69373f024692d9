"""The register of a host's sources, in the order in which they are read: what matters most comes first."""

from __future__ import annotations

from typing import Final

from virtpilot.collectors import cpu, load, memory, pressure
from virtpilot.collectors.source import Source

SOURCES: Final[dict[str, Source]] = {
    "cpu": Source(lambda: cpu.collect),
    "memory": Source(lambda: memory.collect),
    "load": Source(lambda: load.collect),
    "pressure": Source(lambda: pressure.collect),
}
