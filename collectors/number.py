"""Numbers in the kernel's texts: plain decimal digits, none so long that it cannot be a counter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

_MAX_DIGITS: Final = 20


def count(word: str) -> int | None:
    """Return a counter or a size; None for what is not one."""
    return int(word) if word.isascii() and word.isdigit() and len(word) <= _MAX_DIGITS else None


def counts(text: str) -> list[int]:
    """Return the counters in a row; none where one of them is none."""
    words = text.split()
    digits = "".join(words)
    if not (digits.isascii() and digits.isdigit() and len(max(words, key=len)) <= _MAX_DIGITS):
        return []
    return list(map(int, words))


def pairs(text: str) -> Iterator[tuple[str, int]]:
    """Yield (name, number) of lines that say just that, as /proc/vmstat and the control groups' files do."""
    for line in text.splitlines():
        name, _, word = line.partition(" ")
        value = count(word.strip())
        if value is not None:
            yield name, value


def renamed(found: Mapping[str, int], names: Mapping[str, str], factor: int = 1) -> dict[str, int | float]:
    """Return what is there of `names` under our names, in our units."""
    return {ours: found[theirs] * factor for theirs, ours in names.items() if theirs in found}
