"""Guard: a guest that somebody else is working on is left alone for a while."""

from __future__ import annotations

from typing import Final

from virtpilot.actuators.guards.memory import Foreign, Memory
from virtpilot.actuators.guards.request import GuardRequest, span
from virtpilot.events import By, Event, EventKind

# libvirt's word for what a guest left by.
_MIGRATED: Final = "migrated"


class ForeignChanges:
    """What others did to guests, and until when these are left alone."""

    def __init__(self, memory: Memory, backoff_ns: int) -> None:
        self._seen = memory.foreign
        self._backoff_ns = backoff_ns

    def __call__(self, request: GuardRequest, now_ns: int) -> str:
        """Refuse while somebody else's change is young."""
        seen = self._seen.get(request.guest)
        if seen is None or not 0 < seen.until_ns - now_ns <= self._backoff_ns:
            return ""
        return f"somebody else {seen.what}: the guest is left alone for another {span(seen.until_ns - now_ns)}"

    def __len__(self) -> int:
        return len(self._seen)

    def heard(self, event: Event, now_ns: int) -> None:
        """Take note where somebody else moved a guest or set a knob; its source's agent knows whose move it was."""
        if event.by is not By.OTHER or not event.guest:
            return
        if event.kind == EventKind.KNOB_CHANGED:
            knobs = ", ".join(sorted(event.numbers)) or event.detail
            self.noticed(event.guest, f"set {knobs} of it", event.at_ns, now_ns)
        elif event.kind == EventKind.STOPPED and event.detail == _MIGRATED:
            self.noticed(event.guest, f"moved it away from {event.host}", event.at_ns, now_ns)

    def noticed(self, guest: str, what: str, at_ns: int, now_ns: int) -> None:
        """Take note of what somebody else did; of a host whose clock goes ahead as of now."""
        until_ns = min(at_ns, now_ns) + self._backoff_ns
        known = self._seen.get(guest)
        if until_ns > max(now_ns, known.until_ns if known is not None else 0):
            self._seen[guest] = Foreign(what, until_ns)

    def forget(self, now_ns: int) -> None:
        """Drop what is over."""
        for guest, seen in list(self._seen.items()):
            if not 0 < seen.until_ns - now_ns <= self._backoff_ns:
                del self._seen[guest]
