"""The options of the second stage."""

from __future__ import annotations

from typing import Annotated

import msgspec

from virtpilot.action import Action, Migrate, Power, Run
from virtpilot.clock import seconds


class DecisionOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long the second stage waits and remembers."""

    set_grace_s: Annotated[
        float, msgspec.Meta(description="Wait for a knob's outcome after its command's end.", ge=0, le=3600)
    ] = 15.0
    migrate_grace_s: Annotated[
        float, msgspec.Meta(description="Wait for a migration's outcome after its command's end.", ge=0, le=86_400)
    ] = 1800.0
    run_grace_s: Annotated[
        float, msgspec.Meta(description="Wait for a hook's outcome after its command's end.", ge=0, le=3600)
    ] = 300.0
    release_grace_s: Annotated[
        float, msgspec.Meta(description="Wait for a knob to be given back before the next remedy.", ge=0, le=3600)
    ] = 10.0
    forget_after_s: Annotated[
        float, msgspec.Meta(description="Forget a rule's state on a subject that is quiet or has gone.", ge=60)
    ] = 3600.0

    def grace_ns(self, action: Action) -> int:
        """Return how long an action's outcome may take to come after its command's end."""
        match action:
            case Migrate():
                return seconds(self.migrate_grace_s)
            case Power(within_s=within_s):
                return seconds(self.set_grace_s + within_s)
            case Run():
                return seconds(self.run_grace_s)
            case _:
                return seconds(self.set_grace_s)
