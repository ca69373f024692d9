"""The host's memory by NUMA node, from /sys/devices/system/node (Documentation/admin-guide/numastat.rst)."""

from __future__ import annotations

import re
from typing import Final

from virtpilot.collectors import memory
from virtpilot.collectors.number import pairs, renamed
from virtpilot.collectors.source import Device, Fields, Found, Look

_ROOT: Final = "sys/devices/system/node"
_NODE: Final = re.compile(r"node([0-9]{1,5})")
_LINE: Final = re.compile(r"^Node [0-9]+ ", re.MULTILINE)
_MEMORY: Final = {
    "MemTotal": "memory_total_bytes",
    "MemFree": "memory_free_bytes",
    "MemUsed": "memory_used_bytes",
    "AnonPages": "memory_anon_bytes",
    "FilePages": "memory_file_bytes",
}
_ALLOCATIONS: Final = {
    "numa_hit": "hits_total",
    "numa_miss": "misses_total",
    "numa_foreign": "foreign_total",
    "other_node": "other_node_total",
}

_PLACED: Final = ("hits_total", "misses_total")


def parse_memory(text: str) -> Fields:
    """Return a node's meminfo, in bytes."""
    return renamed(memory.parse(_LINE.sub("", text)), _MEMORY)


def collect(look: Look) -> Found:
    """Return each node with memory, and of the host how unevenly they are used and how much went to the wrong one."""
    try:
        names = look.tree.names(_ROOT)
    except FileNotFoundError:  # a kernel without NUMA
        return Found({})
    nodes = {}
    for name in names:
        if match := _NODE.fullmatch(name):
            node = parse_memory(look.tree.read(f"{_ROOT}/{name}/meminfo"))
            if node.get("memory_total_bytes"):
                nodes[match[1]] = node | renamed(dict(pairs(look.tree.read(f"{_ROOT}/{name}/numastat"))), _ALLOCATIONS)
    fields: Fields = {"numa_nodes_count": len(nodes)} | _imbalance(list(nodes.values())) | _misses(nodes, look)
    return Found(fields, [Device("host_numa", "node", number, nodes[number]) for number in sorted(nodes, key=int)])


def _imbalance(nodes: list[Fields]) -> Fields:
    used = [
        min(node["memory_used_bytes"] / node["memory_total_bytes"], 1.0)
        for node in nodes
        if "memory_used_bytes" in node
    ]
    return {"numa_imbalance_ratio": max(used) - min(used)} if used else {}


def _misses(nodes: dict[str, Fields], look: Look) -> Fields:
    """Return the share of pages since the last reading that came from another node than was wished."""
    hits = misses = 0.0
    comparable = True
    for number, node in nodes.items():
        counters = {name: value for name, value in node.items() if name in _PLACED}
        increases, _elapsed_s = look.rates.grown(("numa", number), counters, look.now_ns)
        comparable &= len(increases) == len(counters)
        hits += increases.get("hits_total", 0.0)
        misses += increases.get("misses_total", 0.0)
    return {"numa_miss_ratio": misses / (hits + misses)} if comparable and hits + misses > 0 else {}
