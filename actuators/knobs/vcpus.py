"""vCPUs: only what can be plugged in and out again is changed, for every change is given back."""

from __future__ import annotations

from virtpilot.actuators.knobs.change import Change
from virtpilot.errors import CommandRefused


def check(change: Change) -> None:
    """Refuse a count of vCPUs that cannot be reached, or not be given back; raises CommandRefused."""
    footprint, value = change.hypervisor.footprint(change.guest), change.value
    if change.knob.name == "guest_vcpus":
        if value > footprint.vcpus:
            raise CommandRefused("value", f"guest_vcpus {value}: {footprint.vcpus} vCPUs are plugged in")
        return
    if not footprint.unplugs:
        raise CommandRefused("knob", "this guest is emulated, its vCPUs cannot be unplugged safely; guest_vcpus can")
    if min(value, change.live) < footprint.fixed_vcpus:
        raise CommandRefused(
            "value", f"vcpus {value}: {footprint.fixed_vcpus} are there from the start; guest_vcpus can take them away"
        )
