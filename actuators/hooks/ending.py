"""How a hook ended."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec


class Ending(msgspec.Struct, frozen=True):
    """Whether it worked, what there is to say of it, and what it said itself."""

    worked: bool
    told: str
    output: bytes = b""
    numbers: Mapping[str, float] = {}

    @property
    def reason(self) -> str:
        """All of it in one line that can do no harm to whoever looks at it."""
        text = self.output.decode(errors="replace")
        words = " ".join("".join(char if char.isprintable() else " " for char in text).split())
        return f"{self.told}: {words[:400]}" if words else self.told
