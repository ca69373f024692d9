"""What a store may offer beyond the Protocol: several messages in one write."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable


@runtime_checkable
class BatchStore(Protocol):
    """A store that takes several messages at the price of one."""

    def write_all(self, messages: Sequence[tuple[str, bytes]]) -> None:
        """Take all of these (message id, lines) or none; raises StoreUnavailable or StoreRefused."""
