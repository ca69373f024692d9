"""The host's own caps: what no command gets past, whatever it says."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from virtpilot.knobs import Knob, find

Shares = Annotated[int, Meta(ge=2, le=262144)]
Bytes = Annotated[int, Meta(ge=0, le=2**50)]


class KnobCap(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of one knob on this host; of a device's knob the name after the point stands for every device."""

    allowed: Annotated[bool, Meta(description="Whether it is ever set here.")] = True
    min: Annotated[int | None, Meta(description="It is not set lower, in the knob's own unit.")] = None
    max: Annotated[
        int | None, Meta(description="It is not set higher; where this is given, a limit is not lifted either.")
    ] = None

    def __post_init__(self) -> None:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError("min is above max")


class Caps(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What this host never lets happen, whatever a command says."""

    cpu_shares_min: Annotated[Shares, Meta(description="No guest is set to fewer CPU shares.")] = 2
    cpu_shares_max: Annotated[Shares, Meta(description="No guest is set to more CPU shares.")] = 262144
    cpu_headroom_ratio: Annotated[
        float,
        Meta(description="CPUs that a quota leaves to QEMU's own threads, and to each I/O thread.", ge=0.01, le=16),
    ] = 0.2
    balloon_floor_bytes: Annotated[
        Bytes, Meta(description="The balloon leaves a guest its working set and this much beyond it.")
    ] = 256 * 2**20
    balloon_step_ratio: Annotated[
        float, Meta(description="Of the memory that a guest has, the balloon takes this much at a time.", gt=0, le=1)
    ] = 0.25
    balloon_told_s: Annotated[
        float, Meta(description="What a guest's kernel says of its memory counts for this long.", ge=1, le=3600)
    ] = 60.0
    memory_limit_headroom_bytes: Annotated[
        Bytes, Meta(description="A hard limit leaves a guest's processes what they use and this much beyond it.")
    ] = 256 * 2**20
    lease_max_s: Annotated[
        float, Meta(description="No knob stays changed for longer than this without a new command.", gt=0, le=604800)
    ] = 86400.0
    controller_grace_s: Annotated[
        float,
        Meta(
            description="With no controller heard of for so long all leases end; 0: each at its own end only.",
            ge=0,
            le=86400,
        ),
    ] = 300.0
    migrations_out_max: Annotated[
        int,
        Meta(description="At most so many guests leave this host at the same time; 0: none ever does.", ge=0, le=100),
    ] = 2
    migration_timeout_s: Annotated[
        float, Meta(description="A migration that takes longer is aborted; the guest stays.", gt=0, le=86400)
    ] = 900.0
    destroy_guests: Annotated[
        bool,
        Meta(
            description="Guests may be destroyed by command: like pulling the plug, what they have not written is lost."
        ),
    ] = False
    knobs: dict[str, KnobCap] = {}

    def __post_init__(self) -> None:
        if self.cpu_shares_min > self.cpu_shares_max:
            raise ValueError("cpu_shares_min is above cpu_shares_max")
        unknown = [name for name in self.knobs if find(name) is None and find(_somewhere(name)) is None]
        if unknown:
            raise ValueError(f"no knob {unknown[0][:80]!r}")

    def of(self, knob: Knob) -> KnobCap:
        """Return the bounds of a knob: those of its whole name, or else those of its kind on every device."""
        if knob.name == "cpu_shares" and knob.name not in self.knobs:
            return KnobCap(min=self.cpu_shares_min, max=self.cpu_shares_max)
        return self.knobs.get(knob.name) or self.knobs.get(knob.name.rpartition(".")[2]) or _FREE


_FREE = KnobCap()


def _somewhere(name: str) -> str:
    """Return a device's knob for a name that says only what stands after the point."""
    return next((f"{device}.{name}" for device in ("vda", "nic0", "virtiomem0") if find(f"{device}.{name}")), "")
