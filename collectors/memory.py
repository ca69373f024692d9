"""Host memory and swap from /proc/meminfo (proc(5))."""

from __future__ import annotations

import re
from typing import Final

from virtpilot.collectors.number import renamed
from virtpilot.collectors.source import Fields, Found, Look

_FIELDS: Final = {
    "MemTotal": "memory_total_bytes",
    "MemAvailable": "memory_available_bytes",
    "MemFree": "memory_free_bytes",
    "Buffers": "memory_buffers_bytes",
    "Cached": "memory_cached_bytes",
    "Dirty": "memory_dirty_bytes",
    "Writeback": "memory_writeback_bytes",
    "AnonPages": "memory_anon_bytes",
    "AnonHugePages": "memory_anon_huge_bytes",
    "Shmem": "memory_shmem_bytes",
    "Slab": "memory_slab_bytes",
    "SReclaimable": "memory_slab_reclaimable_bytes",
    "PageTables": "memory_page_tables_bytes",
    "Unevictable": "memory_unevictable_bytes",
    "Committed_AS": "memory_committed_bytes",
    "SwapTotal": "swap_total_bytes",
}
# What a node tells in place of what the host does, and what is told of in sums.
_OTHERS: Final = ("SwapFree", "MemUsed", "FilePages")
# The wanted lines alone, from a line feed on: faster than reading all 50.
_LINE: Final = re.compile(rf"\n({'|'.join([*_FIELDS, *_OTHERS])}):[ \t]*([0-9]{{1,17}}) kB$", re.MULTILINE)


def parse(text: str) -> dict[str, int]:
    """Return what meminfo tells in kB, as bytes by name."""
    return {name: int(number) * 1024 for name, number in _LINE.findall(f"\n{text}")}


def collect(look: Look) -> Found:
    """Return the memory's fields; what the kernel does not tell is absent."""
    given = parse(look.tree.read("proc/meminfo"))
    fields: Fields = renamed(given, _FIELDS)
    total, available = given.get("MemTotal"), given.get("MemAvailable")
    if total and available is not None:
        fields["memory_used_ratio"] = min(max(1 - available / total, 0.0), 1.0)
    if {"SwapTotal", "SwapFree"} <= given.keys():
        used = max(given["SwapTotal"] - given["SwapFree"], 0)
        fields["swap_used_bytes"] = used
        if given["SwapTotal"]:
            fields["swap_used_ratio"] = used / given["SwapTotal"]
    return Found(fields)
