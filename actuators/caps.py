"""The host's own caps: what no command gets past, whatever it says."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from virtpilot.knobs import Knob, find

_SHARES: Final = "cpu_shares"
Shares = Annotated[int, Meta(ge=2, le=262144)]
Bytes = Annotated[int, Meta(ge=0, le=2**50)]


class KnobCap(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of one knob on this host."""

    knob: Annotated[
        str,
        Meta(
            description="Its name; of a device's knob what stands after the point is meant for every device.",
            examples=["total_iops_sec"],
        ),
    ]
    allowed: Annotated[bool, Meta(description="Whether it is ever set here.")] = True
    min: Annotated[int | None, Meta(description="It is not set lower, in the knob's own unit.")] = None
    max: Annotated[
        int | None, Meta(description="It is not set higher; where this is given, a limit is not lifted either.")
    ] = None

    def __post_init__(self) -> None:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError("min is above max")
        if find(self.knob) is None and not _on_some_device(self.knob):
            raise ValueError(f"no knob {self.knob[:80]!r}")


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
    migration_bandwidth_max: Annotated[
        int, Meta(description="A migration sends at most so many bytes per second; 0: any number.", ge=0)
    ] = 0
    post_copy: Annotated[
        bool,
        Meta(description="A migration may be switched to post-copy; a link that breaks then costs the guest."),
    ] = True
    destroy_guests: Annotated[
        bool,
        Meta(
            description="Guests may be destroyed by command: like pulling the plug, what they have not written is lost."
        ),
    ] = False
    knobs: Annotated[list[KnobCap], Meta(description="Bounds of single knobs on this host.")] = []

    def __post_init__(self) -> None:
        if self.cpu_shares_min > self.cpu_shares_max:
            raise ValueError("cpu_shares_min is above cpu_shares_max")
        names = [cap.knob for cap in self.knobs]
        if len(set(names)) < len(names):
            raise ValueError("a knob has bounds twice")
        low, high = self._shares(next((cap for cap in self.knobs if cap.knob == _SHARES), KnobCap(_SHARES)))
        if low > high:
            raise ValueError(f"no cpu_shares are left between {low} and {high}")

    def of(self, knob: Knob) -> KnobCap:
        """Return the bounds of a knob: those of its whole name, or else those of its kind on every device.

        For CPU shares the narrower of both that there are.
        """
        own = {cap.knob: cap for cap in self.knobs}
        found = own.get(knob.name) or own.get(knob.name.rpartition(".")[2]) or KnobCap(knob.name)
        if knob.name != _SHARES:
            return found
        low, high = self._shares(found)
        return msgspec.structs.replace(found, min=low, max=high)

    def _shares(self, cap: KnobCap) -> tuple[int, int]:
        low = self.cpu_shares_min if cap.min is None else max(cap.min, self.cpu_shares_min)
        high = self.cpu_shares_max if cap.max is None else min(cap.max, self.cpu_shares_max)
        return low, high


def _on_some_device(name: str) -> bool:
    return any(find(f"{device}.{name}") is not None for device in ("vda", "nic0", "virtiomem0"))
