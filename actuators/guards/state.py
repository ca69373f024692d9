"""Guard: a guest must be in a state in which the action makes sense."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from virtpilot.actuators.guards.request import ALIVE, GuardRequest

# virDomainState.
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


def state(request: GuardRequest, _now_ns: int) -> str:
    """Refuse where the guest is not as the action needs it: running, for most."""
    if request.state_code in request.fitting:
        return ""
    needed = "running" if request.fitting == ALIVE else " or ".join(_STATES[code] for code in sorted(request.fitting))
    return f"the guest is {_STATES.get(request.state_code, f'in state {request.state_code}')}, not {needed}"
