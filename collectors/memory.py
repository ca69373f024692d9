"""Host memory from /proc/meminfo (proc(5))."""

from __future__ import annotations

from virtpilot.collectors.source import Fields, Found, Look


def parse(text: str) -> dict[str, int]:
    """Return what meminfo tells in kB, as bytes by name."""
    found = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        number, _, unit = rest.strip().partition(" ")
        if number.isdigit() and unit == "kB":
            found[name] = int(number) * 1024
    return found


def collect(look: Look) -> Found:
    """Return the memory's fields; what the kernel does not tell is absent."""
    given = parse(look.tree.read("proc/meminfo"))
    fields: Fields = {}
    total, available = given.get("MemTotal"), given.get("MemAvailable")
    if total:
        fields["memory_total_bytes"] = total
    if available is not None:
        fields["memory_available_bytes"] = available
    if total and available is not None:
        fields["memory_used_ratio"] = min(max(1 - available / total, 0.0), 1.0)
    if {"SwapTotal", "SwapFree"} <= given.keys():
        fields["swap_used_bytes"] = max(given["SwapTotal"] - given["SwapFree"], 0)
    return Found(fields)
