"""What is measured: guests of 40 fields as an agent tells of them, half counters, half ratios and seconds."""

from __future__ import annotations

import random
from typing import Final

from virtpilot.model import Sample

FIELDS: Final = [
    f"{what}_{kind}_{unit}"
    for what in ("cpu", "memory", "disk", "net", "swap")
    for kind in ("read", "write", "usage", "time")
    for unit in ("bytes_total", "ratio")
]
# Six of the forty, spread over the line.
WANTED: Final = {"vm": frozenset(FIELDS[index] for index in (0, 7, 15, 22, 31, 39))}
GUESTS_PER_MESSAGE: Final = 50
FIRST_NS: Final = 1_790_000_000_000_000_000


def messages(count: int, first_ns: int = FIRST_NS, guests: int = GUESTS_PER_MESSAGE) -> list[list[Sample]]:
    """Return messages' samples, the same on each call but for the time: one host a message, a second apart."""
    numbers = random.Random(1)  # noqa: S311 - material, no secret
    return [
        [_guest(number, guest, numbers, first_ns + number * 10**9) for guest in range(guests)]
        for number in range(count)
    ]


def _guest(host: int, guest: int, numbers: random.Random, now_ns: int) -> Sample:
    tags = {
        "cluster": "bench",
        "host": f"node-{host}",
        "vm": f"3f0d4a1e-0000-4000-8000-{host:06d}{guest:06d}",
        "name": f"guest-{guest}",
        "tier": "batch",
    }
    return Sample("vm", tags, {name: _number(name, numbers) for name in FIELDS}, now_ns)


def _number(name: str, numbers: random.Random) -> int | float:
    return numbers.random() if name.endswith("ratio") else numbers.randrange(10 ** numbers.randrange(1, 13))
