"""What a simulated host's libvirt tells by itself, as events come from a real one."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Final

from virtpilot.events import EventKind
from virtpilot.hypervisor import GuestEvent

_KEPT: Final = 10_000


class Chronicle:
    """The newest events of the whole fleet, numbered; each connection reads on from its own place."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.length = 0
        self._entries: deque[tuple[int, int, GuestEvent]] = deque(maxlen=_KEPT)

    def tell(
        self,
        host: int,
        kind: EventKind,
        guest: tuple[str, str],
        detail: str = "",
        numbers: Mapping[str, float] | None = None,
    ) -> None:
        """Note what happened on a host just now to a guest, given as its UUID and name."""
        uuid, name = guest
        event = GuestEvent(
            at_ns=self.now_ns, kind=kind, guest=uuid, name=name, detail=detail, numbers=dict(numbers or {})
        )
        self.length += 1
        self._entries.append((self.length, host, event))

    def since(self, place: int, host: int) -> list[GuestEvent]:
        """Return the events of a host after a place, which was `length` at some time."""
        return [event for number, on, event in self._entries if number > place and on == host]
