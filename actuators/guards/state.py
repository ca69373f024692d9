"""Guard: a guest must be in a state in which the action makes sense."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from virtpilot.actuators.guards.request import GuardRequest

# virDomainState; Xen shows an idle guest as blocked.
_STATES: Final[Mapping[int, str]] = {
    0: "in no state",
    1: "running",
    2: "blocked",
    3: "paused",
    4: "shutting down",
    5: "shut off",
    6: "crashed",
    7: "suspended",
}
_ALIVE: Final = frozenset({1, 2})


def state(request: GuardRequest, _now_ns: int) -> str:
    """Refuse where the guest does not run."""
    if request.state_code in _ALIVE:
        return ""
    return f"the guest is {_STATES.get(request.state_code, f'in state {request.state_code}')}, not running"
