"""What a family's check is told of: a knob's change that is about to be made."""

from __future__ import annotations

from typing import NamedTuple

from virtpilot.actuators.caps import Caps
from virtpilot.hypervisor import Hypervisor
from virtpilot.knobs import Knob


class Change(NamedTuple):
    """A knob of a guest, its live value and the one that it shall have, under the host's caps."""

    hypervisor: Hypervisor
    guest: str
    knob: Knob
    live: int
    value: int
    caps: Caps
