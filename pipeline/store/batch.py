"""What a store may offer beyond the Protocol: several messages in one write, and word of what it dropped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import msgspec


@runtime_checkable
class BatchStore(Protocol):
    """A store that takes several messages at the price of one."""

    def write_all(self, messages: Sequence[tuple[str, bytes]]) -> None:
        """Take all of these (message id, lines) or none; raises StoreUnavailable or StoreRefused."""


class Refused(msgspec.Struct, frozen=True):
    """A line that the store took with its message and then dropped."""

    message_id: str
    line: bytes
    reason: str


@runtime_checkable
class CandidStore(Protocol):
    """A store that finds out later which lines were dropped without a word."""

    def refused(self) -> Sequence[Refused]:
        """Return the lines found dropped since the last call, before their messages are durable."""
