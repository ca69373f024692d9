"""The register of a host's sources, in the order in which they are read: what can wait comes last."""

from __future__ import annotations

from typing import Final

from virtpilot.collectors import cpu, disk, hugepages, ksm, load, memory, nic, numa, paging, pressure
from virtpilot.collectors.source import Source

_SELDOM_S: Final = 30.0

SOURCES: Final[dict[str, Source]] = {
    "cpu": Source(lambda: cpu.collect),
    "memory": Source(lambda: memory.collect),
    "paging": Source(lambda: paging.collect),
    "load": Source(lambda: load.collect),
    "pressure": Source(pressure.Pressure),
    "disk": Source(disk.Disks),
    "nic": Source(nic.Nics),
    "numa": Source(lambda: numa.collect, every_s=_SELDOM_S),
    "hugepages": Source(lambda: hugepages.collect, every_s=_SELDOM_S),
    "ksm": Source(lambda: ksm.collect, every_s=_SELDOM_S),
}
