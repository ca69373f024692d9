"""What a wanted action is in the queue: the time that it will take, and its places."""

from __future__ import annotations

from typing import Final

from virtpilot.action import Action, Migrate, SetKnob
from virtpilot.clock import SECOND
from virtpilot.planner.scheduling import Operation, Stopping
from virtpilot.rules.decisions.want import PLACEMENT, Want
from virtpilot.rules.signals.table import Row

# A gigabit link for a move of which nothing is predicted, and how fast a balloon moves.
_LINK_BYTES_S: Final = 117 * 1024 * 1024
_BALLOON_BYTES_S: Final = 256 * 1024 * 1024
_OVERHEAD_S: Final = 1.0


def waits_in_line(want: Want) -> bool:
    """Tell whether a want takes so long that others wait for it: a migration, a change of memory."""
    return want.knob == PLACEMENT or want.knob.startswith("memory")


def id_of(want: Want) -> str:
    """Return the id of a want that waits."""
    return f"want {want.rule} {want.subject.id}"


def operation_of(want: Want, row: Row, action: Action) -> Operation:
    """Return a planned action as the schedule sees it."""
    guest, host = row.subject.id, row.subject.host
    if isinstance(action, Migrate):
        takes_s = action.way.predicted_s or row.values.get("memory_balloon_bytes", 0.0) / _LINK_BYTES_S
        places = {f"out {host}", f"in {action.target}", "cluster", f"guest {guest}"}
    else:
        change = abs(action.value - action.expected) if isinstance(action, SetKnob) else 0
        takes_s = change / _BALLOON_BYTES_S
        places = {f"memory {host}", f"guest {guest}"}
    return Operation(
        id=id_of(want),
        arrived_s=want.since_ns / SECOND,
        takes_s=takes_s + _OVERHEAD_S,
        priority=want.priority,
        places=frozenset(places),
        # A migration that is aborted begins again with nothing.
        stopping=Stopping.RESTART if isinstance(action, Migrate) else Stopping.NEVER,
    )
