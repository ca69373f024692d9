"""What leaves as line protocol: in which order, and cut into parts without reading it."""

from __future__ import annotations

from collections.abc import Iterator

from virtpilot.model import Sample


def is_subject(sample: Sample) -> bool:
    """Tell whether a sample is a host's or guest's own: those go last, rules look at devices with their owner's."""
    return sample.measurement in {"host", "vm"}


def split(lines: bytes, max_bytes: int) -> Iterator[bytes]:
    """Yield `lines` in parts of `max_bytes` at most, cut at line ends; a longer line is a part of its own."""
    at = 0
    while at < len(lines):
        end = at + max_bytes
        if end < len(lines):
            cut = lines.rfind(b"\n", at, end)
            cut = cut if cut >= 0 else lines.find(b"\n", end)
            end = cut + 1 if cut >= 0 else len(lines)
        if part := lines[at:end].strip(b"\n"):
            yield part + b"\n"
        at = end
