"""Guard: in a freeze nothing is done."""

from __future__ import annotations

from collections.abc import Iterable

from virtpilot.actuators.guards.request import GuardRequest
from virtpilot.calendar import Calendar


class Freezes:
    """The times, by the config's calendar, in which nothing is done."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._freezes = [Calendar(text) for text in texts]

    def __call__(self, _request: GuardRequest, now_ns: int) -> str:
        """Refuse while a freeze lasts."""
        frozen = next((freeze.text for freeze in self._freezes if freeze.covers(now_ns)), "")
        return f"nothing is done in the freeze {frozen}" if frozen else ""
