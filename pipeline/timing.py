"""When the controller does what is not done at once."""

from __future__ import annotations

from typing import Annotated

import msgspec


class ControllerTiming(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How often the controller looks at what waits, and saves."""

    tick_s: Annotated[float, msgspec.Meta(description="Seconds between looks at what waits.", gt=0, le=60)] = 1.0
    save_s: Annotated[
        float,
        msgspec.Meta(description="Seconds between saves of the signals' state (decisions are saved at once).", gt=0),
    ] = 10.0
    gather_s: Annotated[
        float,
        msgspec.Meta(
            description="Seconds that measurements with which no signal can begin to fire may wait for other hosts', "
            "to be evaluated together; 0: none waits.",
            ge=0,
            le=1,
        ),
    ] = 0.5
