"""The table of knobs: what can be set on a running guest or its host, in which unit, between which bounds.

A value is a whole number in the knob's own unit, the one that libvirt uses where it counts in base units. Of a limit 0
means that there is none. A set of CPUs or NUMA nodes is a number too: bit n stands for CPU n. Names are those of
libvirt's tunable event where it tells of the knob; a device's knob has the device before a point, `vda.total_iops_sec`.
"""

from __future__ import annotations

import math
import re
from enum import StrEnum
from functools import lru_cache, partial
from typing import Final

import msgspec
from msgspec.structs import replace

from virtpilot.field import Unit

NO_LIMIT: Final = 0
# A set must pass through a float, as all measurements do.
MAX_NUMBER_IN_SET: Final = 51
_KIB: Final = 1024
_KILO: Final = 1000
_PAGE: Final = 4096
_MEMORY_MAX: Final = 2**50
_RATE_MAX: Final = 10**15
_LIST: Final = re.compile(r"[0-9]{1,4}(?:-[0-9]{1,4})?(?:,[0-9]{1,4}(?:-[0-9]{1,4})?)*")


class Family(StrEnum):
    """Knobs that are read, set and guarded alike."""

    SCHEDULE = "schedule"
    VCPUS = "vcpus"
    PINNING = "pinning"
    BALLOON = "balloon"
    MEMORY_DEVICE = "memory_device"
    MEMORY_LIMIT = "memory_limit"
    BLOCK_WEIGHT = "block_weight"
    DISK = "disk"
    NIC = "nic"
    KSM = "ksm"


class Knob(msgspec.Struct, frozen=True, kw_only=True):
    """One knob: `per_unit` of the knob's own units make one of `unit`, and a value is a multiple of `step`.

    `limit`: 0 is let through and means no limit, of a set all of the host's. `device`: what stands before the point.
    `field`: the measured field that tells where the knob stands, for those that are not told with the others; `usual`:
    where it stands while nobody tells it, for libvirt tells little of what nobody has set.
    """

    name: str
    family: Family
    low: int
    high: int
    about: str
    source: str
    unit: Unit = Unit.COUNT
    per_unit: int = 1
    step: int = 1
    limit: bool = False
    device: str = ""
    field: str = ""
    usual: int | None = None

    @property
    def untold(self) -> int | None:
        """Where the knob stands while nobody tells it, None where that is not known."""
        return NO_LIMIT if self.limit else self.usual

    @property
    def is_set(self) -> bool:
        """Whether a value is a set of CPUs or nodes."""
        return self.family is Family.PINNING

    @property
    def of_host(self) -> bool:
        """Whether the host has it, not a guest."""
        return self.family is Family.KSM

    @property
    def own_unit(self) -> Unit:
        """What `current` counts in a rule: plain numbers where the knob's own unit is not a base unit."""
        return self.unit if self.per_unit == 1 else Unit.COUNT

    def allows(self, value: int) -> bool:
        """Tell whether a value can be one of this knob."""
        return (self.limit and value == NO_LIMIT) or (self.low <= value <= self.high and value % self.step == 0)

    def fit(self, value: float) -> int:
        """Return the nearest value between the knob's bounds; never 0 for no limit."""
        steps = round(min(max(value, self.low), self.high) / self.step)
        return min(max(steps, -(-self.low // self.step)), self.high // self.step) * self.step

    def height(self, value: float) -> float:
        """Return a value for comparisons: no limit is higher than any."""
        return math.inf if self.limit and value == NO_LIMIT else value


def _table(*knobs: Knob) -> dict[str, Knob]:
    return {knob.name: knob for knob in knobs}


def _schedule() -> list[Knob]:
    """Quota and period in microseconds, as libvirt has them."""
    made = partial(Knob, family=Family.SCHEDULE, source="virDomainSetSchedulerParametersFlags")
    timed = partial(made, unit=Unit.SECONDS, per_unit=1_000_000, low=1_000)
    found = [made(name="cpu_shares", low=2, high=262_144, about="weight against other guests when CPUs are short")]
    for part, who in (
        ("vcpu", "each vCPU"),
        ("global", "the whole guest, QEMU's own threads too"),
        ("emulator", "QEMU's own threads together"),
        ("iothread", "each I/O thread"),
    ):
        quota = f"CPU time in a period for {who}, µs"
        found += [
            timed(name=f"{part}_quota", high=17_592_186_044_415, limit=True, about=quota),
            timed(name=f"{part}_period", high=1_000_000, usual=100_000, about=f"length of that period for {who}, µs"),
        ]
    return found


def _disk() -> list[Knob]:
    made = partial(Knob, family=Family.DISK, low=1, limit=True, device="disk", source="virDomainSetBlockIoTune")
    found = []
    for way, verb in (("read", "read"), ("write", "written"), ("total", "either way")):
        for what, unit in (("bytes", Unit.BYTES_PER_SECOND), ("iops", Unit.PER_SECOND)):
            name, told = f"{way}_{what}_sec", f"{'requests' if what == 'iops' else what} {verb}"
            found += [
                made(name=name, unit=unit, high=_RATE_MAX, about=f"limit of {told}"),
                made(name=f"{name}_max", unit=unit, high=_RATE_MAX, about=f"limit of {told} in a burst"),
                made(
                    name=f"{name}_max_length",
                    unit=Unit.SECONDS,
                    high=86_400,
                    about=f"how long that burst of {told} may be",
                ),
            ]
    return found


def _nic() -> list[Knob]:
    made = partial(Knob, family=Family.NIC, limit=True, device="nic", source="virDomainSetInterfaceParameters")
    found = []
    for way, verb in (("inbound", "receives"), ("outbound", "sends")):
        for part, unit, step, about in (
            ("average", Unit.BYTES_PER_SECOND, _KILO, f"bandwidth that the guest {verb} with"),
            ("peak", Unit.BYTES_PER_SECOND, _KILO, f"bandwidth that the guest {verb} with in a burst"),
            ("burst", Unit.BYTES, _KIB, f"how much the guest {verb} at the peak"),
        ):
            high = 2**31 * step
            found.append(made(name=f"{way}_{part}", low=step, high=high, step=step, unit=unit, about=about))
    return found


def _memory() -> list[Knob]:
    size = partial(Knob, unit=Unit.BYTES, high=_MEMORY_MAX, low=2**20, step=_PAGE)
    limit = partial(size, family=Family.MEMORY_LIMIT, limit=True, source="virDomainSetMemoryParameters")
    left = "memory that the balloon leaves to the guest"
    return [
        size(
            name="memory_balloon",
            family=Family.BALLOON,
            source="virDomainSetMemoryFlags",
            about=left,
            field="memory_balloon_bytes",
        ),
        limit(name="memory_hard_limit", about="host memory that the guest's processes may use"),
        limit(name="memory_soft_limit", about="the same when host memory is short"),
        limit(name="memory_swap_hard_limit", about="host memory and swap together"),
    ]


def _vcpus() -> list[Knob]:
    made = partial(Knob, family=Family.VCPUS, low=1, high=4_096, field="vcpus_count")
    return [
        made(name="vcpus", source="virDomainSetVcpusFlags", about="vCPUs that are plugged in"),
        made(
            name="guest_vcpus",
            source="virDomainSetVcpusFlags through the guest agent",
            about="vCPUs that the guest's kernel uses",
        ),
    ]


def _sets() -> list[Knob]:
    made = partial(Knob, family=Family.PINNING, low=1, high=2 ** (MAX_NUMBER_IN_SET + 1) - 1, limit=True)
    nodes = "host NUMA nodes that the guest's memory comes from"
    return [
        made(name="vcpupin", source="virDomainPinVcpuFlags", about="host CPUs that every vCPU may run on"),
        made(name="emulatorpin", source="virDomainPinEmulator", about="host CPUs for QEMU's own threads"),
        made(name="numa_nodeset", source="virDomainSetNumaParameters", about=nodes),
    ]


def _weight() -> Knob:
    about = "weight against other guests when a disk is busy"
    source = "virDomainSetBlkioParameters"
    return Knob(
        name="blkio_weight", family=Family.BLOCK_WEIGHT, low=100, high=1_000, usual=100, source=source, about=about
    )


def _ksm() -> list[Knob]:
    run = "1: equal pages of guests are merged, 0: no further ones, 2: none, and what was merged is undone"
    made = partial(Knob, family=Family.KSM)
    node = partial(made, source="virNodeSetMemoryParameters")
    rest = partial(node, unit=Unit.SECONDS, per_unit=1_000)
    return [
        made(name="ksm_run", low=0, high=2, field="ksm_run_code", source="/sys/kernel/mm/ksm/run", about=run),
        node(name="ksm_pages_to_scan", low=1, high=10**9, about="pages that are looked at in one go"),
        rest(name="ksm_sleep_millisecs", low=0, high=86_400_000, about="rest between two goes, ms"),
    ]


def _plugged() -> Knob:
    source, about = "virDomainUpdateDeviceFlags", "memory that is plugged in through the device"
    made = partial(Knob, family=Family.MEMORY_DEVICE, unit=Unit.BYTES, device="memory", source=source)
    return made(name="plugged", low=0, high=_MEMORY_MAX, step=2**20, about=about)


KNOBS: Final = _table(*_schedule(), *_vcpus(), *_sets(), *_memory(), _weight(), *_ksm())
"""Every knob of a guest or host as a whole, by name."""
DEVICE_KNOBS: Final = _table(*_disk(), *_nic(), _plugged())
"""Every knob of a device, by what stands after the point."""
DEVICES: Final = {
    "disk": re.compile(r"(?!nic[0-9])(?!virtiomem)[a-z]{2,8}[0-9]{0,3}"),
    "nic": re.compile(r"nic[0-9]{1,2}"),
    "memory": re.compile(r"virtiomem[0-9]{1,2}"),
}
"""How a device is written: a disk by its target, NICs by their order in the definition, a virtio-mem by its alias."""


@lru_cache(maxsize=1_024)
def find(name: str) -> Knob | None:
    """Return the knob of a name, None where there is none such."""
    device, point, rest = name.partition(".")
    if not point:
        return KNOBS.get(name)
    knob = DEVICE_KNOBS.get(rest)
    if knob is None or not DEVICES[knob.device].fullmatch(device):
        return None
    return replace(knob, name=name)


def names() -> str:
    """Return all names in one line, a device's with what it begins with."""
    shown = {"disk": "<disk>", "nic": "nic<N>", "memory": "virtiomem<N>"}
    return ", ".join([*KNOBS, *(f"{shown[knob.device]}.{name}" for name, knob in DEVICE_KNOBS.items())])


def shown(name: str, value: int) -> str:
    """Return a knob's value for a person: a set as a list, 0 of a limit in words."""
    knob = find(name)
    if knob is None or not knob.limit:
        return str(value)
    if value == NO_LIMIT:
        return "all" if knob.is_set else "no limit"
    return list_of(value) if knob.is_set else str(value)


def numbers_in(text: str) -> int:
    """Return the set that a list such as `0-3,6` names; raises ValueError."""
    if not _LIST.fullmatch(text):
        raise ValueError(f"{text[:40]!r} is no list such as 0-3,6")
    found = 0
    for part in text.split(","):
        first, _, last = part.partition("-")
        low, high = int(first), int(last or first)
        if low > high or high > MAX_NUMBER_IN_SET:
            raise ValueError(f"{part!r}: numbers rise and are {MAX_NUMBER_IN_SET} at most")
        found |= (1 << (high + 1)) - (1 << low)
    return found


def list_of(numbers: int) -> str:
    """Return a set as a list such as `0-3,6`."""
    bits = [bit for bit in range(numbers.bit_length()) if numbers >> bit & 1]
    runs: list[list[int]] = []
    for bit in bits:
        if runs and runs[-1][-1] == bit - 1:
            runs[-1][-1] = bit
        else:
            runs.append([bit, bit])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)
