"""The host's pools of huge pages, by page size, from /sys/kernel/mm/hugepages (hugetlbpage.rst)."""

from __future__ import annotations

import re
from typing import Final

from virtpilot.collectors.number import count
from virtpilot.collectors.source import Device, Fields, Found, Look

_ROOT: Final = "sys/kernel/mm/hugepages"
_POOL: Final = re.compile(r"hugepages-([0-9]{1,12})kB")
_FILES: Final = {
    "nr_hugepages": "pages_count",
    "free_hugepages": "free_pages_count",
    "resv_hugepages": "reserved_pages_count",
    "surplus_hugepages": "surplus_pages_count",
}
_SUMS: Final = {
    "pages_count": "hugepages_total_bytes",
    "free_pages_count": "hugepages_free_bytes",
    "reserved_pages_count": "hugepages_reserved_bytes",
}


def collect(look: Look) -> Found:
    """Return each pool, and of the host what its pools have together; nothing where the kernel has none."""
    fields: Fields = {}
    pools = []
    for name in sorted(names(look)):
        match = _POOL.fullmatch(name)
        if match is None:
            continue
        size = int(match[1]) * 1024
        pool: Fields = {"page_size_bytes": size}
        for file, ours in _FILES.items():
            value = count(look.tree.read(f"{_ROOT}/{name}/{file}").strip())
            if value is not None:
                pool[ours] = value
        pools.append(Device("host_hugepages", "size", f"{match[1]}kB", pool))
        for ours, total in _SUMS.items():
            if ours in pool:
                fields[total] = fields.get(total, 0) + pool[ours] * size
    return Found(fields, pools)


def names(look: Look) -> list[str]:
    """Return the pools' folders."""
    try:
        return look.tree.names(_ROOT)
    except FileNotFoundError:
        return []
