"""What is checked before a knob is set, one module a family: the host's caps, then what the guest itself can bear."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from virtpilot.actuators.caps import Caps
from virtpilot.actuators.knobs import memory, pinning, schedule, vcpus
from virtpilot.actuators.knobs.change import Change
from virtpilot.errors import CommandRefused
from virtpilot.hypervisor import Hypervisor
from virtpilot.knobs import NO_LIMIT, Family, Knob

_CHECKS: Final[Mapping[Family, Callable[[Change], None]]] = {
    Family.SCHEDULE: schedule.check,
    Family.VCPUS: vcpus.check,
    Family.PINNING: pinning.check,
    Family.BALLOON: memory.check_balloon,
    Family.MEMORY_LIMIT: memory.check_limit,
}


def check_value(hypervisor: Hypervisor, guest: str, knob: Knob, live: int, value: int, caps: Caps) -> None:
    """Refuse a value that this host or this guest must not have; raises CommandRefused and HypervisorError."""
    _check_caps(knob, value, caps)
    check = _CHECKS.get(knob.family)
    if check is not None:
        check(Change(hypervisor, guest, knob, live, value, caps))


def _check_caps(knob: Knob, value: int, caps: Caps) -> None:
    cap = caps.of(knob)
    if not cap.allowed:
        raise CommandRefused("caps", f"this host does not let {knob.name} be set")
    low = knob.low if cap.min is None else max(cap.min, knob.low)
    high = knob.high if cap.max is None else min(cap.max, knob.high)
    lifted = knob.limit and value == NO_LIMIT
    if lifted and cap.max is not None:
        raise CommandRefused("caps", f"{knob.name} is limited to {high} on this host: the limit is not lifted")
    if not lifted and not low <= value <= high:
        raise CommandRefused("caps", f"{knob.name} {value} is outside this host's {low} to {high}")
    if not knob.allows(value):
        raise CommandRefused("value", f"{knob.name} {value} is no multiple of {knob.step}")
