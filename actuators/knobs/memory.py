"""Memory: the balloon and the limits know what the guest needs, by its own kernel's word."""

from __future__ import annotations

from virtpilot.actuators.caps import Caps
from virtpilot.actuators.knobs.change import Change
from virtpilot.errors import CommandRefused
from virtpilot.hypervisor import Footprint
from virtpilot.knobs import NO_LIMIT, Family, Knob

_MIB = 2**20


def check_balloon(change: Change) -> None:
    """Refuse to take what the guest works with, too much at once, or anything by an old word of its kernel.

    The working set is what the guest has less what it could give back without swapping. Giving back is always right.
    """
    if change.value >= change.live:
        return
    footprint, caps = change.hypervisor.footprint(change.guest), change.caps
    if footprint.usable_bytes is None or footprint.told_s > caps.balloon_told_s:
        raise CommandRefused("working-set", "the guest's kernel has not told lately what it could give back")
    least = footprint.memory_bytes - footprint.usable_bytes + caps.balloon_floor_bytes
    if change.value < least:
        raise CommandRefused(
            "working-set",
            f"memory_balloon {_mib(change.value)} is below the working set and its floor, {_mib(least)}",
        )
    step = int(change.live * caps.balloon_step_ratio)
    if change.live - change.value > step:
        raise CommandRefused(
            "step", f"the balloon takes {_mib(step)} at a time here, not {_mib(change.live - change.value)}"
        )


def check_limit(change: Change) -> None:
    """Refuse a limit that the kernel could hold up only by ending or swapping the guest; raises CommandRefused."""
    if change.value == NO_LIMIT or change.knob.name == "memory_soft_limit":
        return
    footprint = change.hypervisor.footprint(change.guest)
    # A guest may touch all that it has at any time, and has all again when its balloon is given back.
    most = max(footprint.memory_max_bytes, footprint.memory_bytes, footprint.rss_bytes)
    least = most + change.caps.memory_limit_headroom_bytes
    if change.value < least:
        raise CommandRefused(
            "floor", f"{change.knob.name} {_mib(change.value)} is below what the guest needs, {_mib(least)}"
        )


def may_strain(knob: Knob, before: int, value: int) -> bool:
    """Tell whether a change can leave a guest short of memory later on."""
    return knob.family is Family.BALLOON and value < before


def shortage(footprint: Footprint, caps: Caps) -> str:
    """Return that a guest whose balloon was blown up is short of memory now, "" where it is not."""
    usable = footprint.usable_bytes
    if usable is None or footprint.told_s > caps.balloon_told_s or usable >= caps.balloon_floor_bytes / 2:
        return ""
    return f"the guest is short of memory: it could give back {_mib(usable)}"


def _mib(size: int) -> str:
    return f"{size / _MIB:.0f} MiB"
