"""CPU time: a quota leaves QEMU's own threads and each I/O thread their headroom, or the guest's disks starve with it.

A vCPU's quota holds the vCPU threads alone and leaves the others untouched. The whole guest's quota holds all of them
together: it must leave each vCPU its least and the others their headroom.
"""

from __future__ import annotations

from typing import Final

from virtpilot.actuators.knobs.change import Change
from virtpilot.errors import CommandRefused
from virtpilot.knobs import NO_LIMIT

_LEAST_PER_VCPU: Final = 0.05


def check(change: Change) -> None:
    """Refuse a quota or period that leaves too little; raises CommandRefused and HypervisorError."""
    part, _, what = change.knob.name.partition("_")
    if what not in {"quota", "period"}:
        return
    other = "period" if what == "quota" else "quota"
    read = change.hypervisor.get_knob(change.guest, f"{part}_{other}")
    quota, period = (change.value, read) if what == "quota" else (read, change.value)
    if quota == NO_LIMIT:
        return
    needed = _needed(change, part)
    if quota < needed * period:
        raise CommandRefused(
            "floor",
            f"{part}_quota {quota} of {part}_period {period} is {quota / period:.2f} CPUs, "
            f"{needed:.2f} are the least here",
        )


def _needed(change: Change, part: str) -> float:
    """Return the CPUs that a part of the guest must be left."""
    headroom = change.caps.cpu_headroom_ratio
    if part == "vcpu":
        return _LEAST_PER_VCPU
    if part != "global":
        return headroom
    footprint = change.hypervisor.footprint(change.guest)
    return footprint.vcpus * _LEAST_PER_VCPU + (1 + footprint.iothreads) * headroom
