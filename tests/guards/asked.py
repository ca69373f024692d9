"""What the tests of single guards ask about: one guest that could be helped."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec.structs import replace

from virtpilot.actuators.guards.chain import Guards
from virtpilot.actuators.guards.options import GuardOptions
from virtpilot.actuators.guards.request import GuardRequest, Refusal, Target
from virtpilot.clock import SECOND, seconds
from virtpilot.model import Mode, Result

START: Final = 1_700_000_000 * SECOND
ROOMY: Final = Target(online=True, time_ns=START, cpus=8, memory_free_bytes=2**30, memory_spare_bytes=2**29, vcpus=2)
FREE: Final = GuardOptions(guest_cooldown_s=0, guest_cooldown_down_s=0, max_sample_age_s=86_400, warm_up_s=0)
WANTED: Final = GuardRequest(
    mode=Mode.ACT,
    rule="starved",
    cooldown_ns=0,
    guest="g1",
    host="host-1",
    sample_ns=START,
    first_seen_ns=START - seconds(3600),
    state_code=1,
)


def at(time_s: float) -> int:
    """Return a time in seconds from the beginning."""
    return START + seconds(time_s)


class Story:
    """Guards that are asked, told and started again, by seconds from the beginning."""

    def __init__(self, options: GuardOptions = FREE) -> None:
        self.options = options
        self.guards = Guards(options)
        self._number = 0

    def ask(self, second: float, **changes: Any) -> Refusal | None:
        """Return the refusal of an action."""
        return self.guards.check(wanted(**changes), at(second))

    def start(self, second: float, **changes: Any) -> str:
        """Let an action begin, whatever the guards say, and return its command."""
        self._number += 1
        command = f"cm-{self._number}"
        self.guards.started(wanted(**changes), command, at(second))
        return command

    def do(self, second: float, result: Result = Result.DONE, **changes: Any) -> None:
        """Let an action begin and end at once."""
        self.guards.finished(self.start(second, **changes), at(second), result)

    def restart(self) -> None:
        """Go on with what is on disk."""
        saved = msgspec.json.encode(self.guards.saved())
        self.guards = Guards(self.options)
        self.guards.restore(msgspec.json.decode(saved))


def wanted(**changes: Any) -> GuardRequest:
    """Return a request; a host that it goes to is fit, where nothing else is said."""
    request = replace(WANTED, **changes)
    return replace(request, target_view=ROOMY) if request.target and "target_view" not in changes else request
