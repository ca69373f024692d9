"""The names by which a refusal tells who refused: a guard of the controller, or what an agent looks at itself."""

from __future__ import annotations

from typing import Final

BY_CONTROLLER: Final = (
    "stopped", "mode", "calendar", "opt-out", "own-machine", "freshness", "warm-up", "state", "bounds", "cooldown",
    "budget", "breaker", "foreign-change", "oscillation", "target", "concurrency", "approval",
    "arbiter", "convergence", "exhausted", "limits", "placement", "queue",
)  # fmt: skip
"""The chain in its order, then what the controller refuses while it plans: the guards of decisions."""
BY_AGENT: Final = (
    "action", "busy", "caps", "driver", "envelope", "epoch", "expired", "floor", "foreign-change", "future", "guest",
    "hook", "host", "journal", "key", "knob", "malformed", "signature", "size", "stale", "state", "step", "stopped",
    "target", "value", "wildcard-host", "working-set",
)  # fmt: skip
"""What an agent refuses a command for: the guards of outcomes."""
