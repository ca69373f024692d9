"""What libvirt's event callbacks say, in our words: pure functions of their arguments (libvirt-domain.h).

What a newer libvirt says beyond these is told by its number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from virtpilot.events import EventKind
from virtpilot.knobs import NO_LIMIT, find, numbers_in

_MAX_TEXT: Final = 256


class Told(NamedTuple):
    """One event of a guest."""

    kind: EventKind
    detail: str = ""
    numbers: dict[str, float] = {}  # noqa: RUF012 - never changed


# virDomainEventType, in its order, each with its details in their order.
_LIFECYCLE: Final = (
    (EventKind.DEFINED, ("added", "updated", "renamed", "from_snapshot")),
    (EventKind.UNDEFINED, ("removed", "renamed")),
    (EventKind.STARTED, ("booted", "migrated", "restored", "from_snapshot", "wakeup", "recovered")),
    (
        EventKind.SUSPENDED,
        ("paused", "migrated", "ioerror", "watchdog", "restored", "from_snapshot", "api_error", "postcopy",
         "postcopy_failed"),
    ),
    (EventKind.RESUMED, ("unpaused", "migrated", "from_snapshot", "postcopy", "postcopy_failed")),
    (
        EventKind.STOPPED,
        ("shutdown", "destroyed", "crashed", "migrated", "saved", "failed", "from_snapshot", "recovered"),
    ),
    (EventKind.SHUTDOWN, ("finished", "guest", "host")),
    (EventKind.PMSUSPENDED, ("memory", "disk")),
    (EventKind.CRASHED, ("panicked", "crashloaded")),
)  # fmt: skip
_WATCHDOG: Final = ("none", "pause", "reset", "poweroff", "shutdown", "debug", "inject_nmi")
_IO_ERROR: Final = ("none", "pause", "report")
_AGENT: Final = ("unknown", "connected", "disconnected")
_METADATA: Final = ("description", "title", "element")
_RECIPIENT: Final = ("hypervisor", "guest")
_MEMORY: Final = ("ignore", "inject", "fatal", "reset")


def _word(words: tuple[str, ...], number: object) -> str:
    return words[number] if type(number) is int and 0 <= number < len(words) else text(number)


def text(value: object) -> str:
    """Return what libvirt or a guest said as one printable line of bounded length."""
    return "".join(letter for letter in str(value)[:_MAX_TEXT] if letter.isprintable())


def number(value: object) -> float | None:
    """Return a number that can be one of libvirt's; anything else is absent."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -(2**63) <= value < 2**64:
        return None
    return value


def lifecycle(event: int, detail: int) -> Told | None:
    """Return a guest's start, stop and what lies between."""
    if type(event) is not int or not 0 <= event < len(_LIFECYCLE):
        return None
    kind, details = _LIFECYCLE[event]
    return Told(kind, _word(details, detail))


def tunable(parameters: Mapping[str, Any]) -> Told | None:
    """Return the knobs that somebody set, named as they are when they are read: `cpu_shares`, `vda.total_iops_sec`."""
    disk = parameters.get("blkdeviotune.disk")
    groups, numbers = set(), {}
    for name, value in parameters.items():
        group, _, knob = str(name).rpartition(".")
        groups.add(group)
        if (told := _setting(knob, value)) is not None:
            knob = "vcpupin" if knob.startswith("vcpupin") else knob
            numbers[text(f"{disk}.{knob}" if group == "blkdeviotune" and isinstance(disk, str) else knob)] = told
    detail = " ".join([*sorted(filter(None, groups)), *([disk] if isinstance(disk, str) else [])])
    return Told(EventKind.KNOB_CHANGED, text(detail), numbers)


def _setting(knob: str, value: object) -> float | None:
    """Return what a knob was set to: a set of CPUs as a number, no quota as 0."""
    if isinstance(value, str) and "pin" in knob:
        try:
            return numbers_in(value)
        except ValueError:
            return None
    told = number(value)
    known = find(knob) if told is not None else None
    if told is None or known is None or not known.limit or known.low <= told <= known.high:
        return told
    return NO_LIMIT


def balloon(kib: int) -> Told | None:
    """Return the balloon's new size."""
    size = number(kib)
    return None if size is None else Told(EventKind.BALLOON_CHANGED, "", {"memory_balloon_bytes": size * 1024})


def threshold(device: str, path: str | None, limit: int, excess: int) -> Told:
    """Return the disk that was written beyond its threshold."""
    numbers = {"threshold_bytes": number(limit), "excess_bytes": number(excess)}
    found = {name: value for name, value in numbers.items() if value is not None}
    return Told(EventKind.BLOCK_THRESHOLD, text(f"{device} {path or ''}".strip()), found)


def iteration(count: int) -> Told:
    """Return the round that a migration begins."""
    told = number(count)
    return Told(EventKind.MIGRATION_ITERATION, "", {} if told is None else {"iterations_count": told})


def guest_agent(state: int, reason: int) -> Told:
    """Return whether the guest agent has come or gone; the reason (virConnectDomainEventAgentLifecycleReason)."""
    why = _word(("unknown", "domain started", "channel event"), reason)
    return Told(EventKind.GUEST_AGENT, f"{_word(_AGENT, state)}: {why}")


def io_error(path: str | None, alias: str | None, action: int, reason: str | None) -> Told:
    """Return a disk's failed request."""
    words = (alias or "", path or "", reason or "", _word(_IO_ERROR, action))
    return Told(EventKind.IO_ERROR, text(" ".join(str(word) for word in words if word)))


def memory_failure(recipient: int, action: int, _flags: int) -> Told:
    """Return whose memory is faulty and what was done."""
    return Told(EventKind.MEMORY_FAILURE, f"{_word(_RECIPIENT, recipient)} {_word(_MEMORY, action)}")


def metadata(kind: int, uri: str | None) -> Told:
    """Return which part of the metadata was changed."""
    return Told(EventKind.METADATA_CHANGED, text(f"{_word(_METADATA, kind)} {uri or ''}".strip()))


# libvirt's name after VIR_DOMAIN_EVENT_ID_ → what its callback's arguments (without connection, domain, opaque) say.
TELLINGS: Final[dict[str, Callable[..., Told | None]]] = {
    "LIFECYCLE": lifecycle,
    "REBOOT": lambda: Told(EventKind.REBOOTED),
    "WATCHDOG": lambda action: Told(EventKind.WATCHDOG, _word(_WATCHDOG, action)),
    "IO_ERROR_REASON": io_error,
    "CONTROL_ERROR": lambda: Told(EventKind.CONTROL_ERROR),
    "BALLOON_CHANGE": balloon,
    "DEVICE_ADDED": lambda alias: Told(EventKind.DEVICE_ADDED, text(alias)),
    "DEVICE_REMOVED": lambda alias: Told(EventKind.DEVICE_REMOVED, text(alias)),
    "DEVICE_REMOVAL_FAILED": lambda alias: Told(EventKind.DEVICE_REMOVAL_FAILED, text(alias)),
    "TUNABLE": tunable,
    "AGENT_LIFECYCLE": guest_agent,
    "MIGRATION_ITERATION": iteration,
    "JOB_COMPLETED": lambda _statistics: Told(EventKind.JOB_COMPLETED),
    "METADATA_CHANGE": metadata,
    "BLOCK_THRESHOLD": threshold,
    "MEMORY_FAILURE": memory_failure,
}
