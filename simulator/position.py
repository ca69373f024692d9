"""Where in a TOML text a key stands: tomllib gives values without positions."""

from __future__ import annotations

import re
from typing import Final

_HEADER: Final = re.compile(r"^\s*(\[\[?)\s*([A-Za-z0-9_.-]+)\s*\]\]?\s*(#.*)?$")
_KEY: Final = re.compile(r"^(\s*)([A-Za-z0-9_-]+)\s*=")
_PART: Final = re.compile(r"([A-Za-z0-9_-]+)(?:\[(\d+)\])?")


class Positions:
    """Line and column of tables and of the keys that start a line in them; inline tables count as their line."""

    def __init__(self, text: str) -> None:
        self._places: dict[str, tuple[int, int]] = {}
        counts: dict[str, int] = {}
        table = ""
        for number, line in enumerate(text.splitlines(), start=1):
            if header := _HEADER.match(line):
                table = header[2]
                if header[1] == "[[":
                    count = counts.get(table, 0)
                    counts[table] = count + 1
                    table = f"{table}[{count}]"
                self._places.setdefault(table, (number, line.index("[") + 1))
            elif key := _KEY.match(line):
                path = f"{table}.{key[2]}" if table else key[2]
                self._places.setdefault(path, (number, len(key[1]) + 1))

    def find(self, path: str) -> tuple[int, int]:
        """Return (line, column) of `guests[3].vcpus`, else of the nearest table around it, else (0, 0)."""
        parts = _PART.findall(path)
        for length in range(len(parts), 0, -1):
            for place in _spellings(parts[:length]):
                if place in self._places:
                    return self._places[place]
        return (0, 0)


def _spellings(parts: list[tuple[str, str]]) -> list[str]:
    """Return the path with the last part's index and without it (an array that is written in one line)."""
    names = [f"{name}[{index}]" if index else name for name, index in parts]
    return [".".join(names), ".".join([*names[:-1], parts[-1][0]])]
