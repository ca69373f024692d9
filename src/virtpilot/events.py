"""Events: their record and the table of all kinds, each declared once; the docs page is made from it."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec


class By(StrEnum):
    """Who made something happen: a command of ours, or anybody else (a person, the guest, the hardware)."""

    VIRTPILOT = "virtpilot"
    OTHER = "other"


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened on a host, mostly to a guest; MEANINGS lists the kinds and what their numbers are.

    `kind` is a plain text: an agent may know kinds that its readers do not. Where a command of ours led to it, `cause`
    is that command's id, else it is empty.
    """

    id: str
    cause: str
    host: str
    guest: str
    name: str
    at_ns: int
    kind: str
    detail: str = ""
    by: By = By.OTHER
    numbers: dict[str, float] = {}


class EventKind(StrEnum):
    """What happened; MEANINGS says what each one is."""

    DEFINED = "defined"
    UNDEFINED = "undefined"
    STARTED = "started"
    SUSPENDED = "suspended"
    RESUMED = "resumed"
    STOPPED = "stopped"
    SHUTDOWN = "shutdown"
    PMSUSPENDED = "pmsuspended"
    CRASHED = "crashed"
    REBOOTED = "rebooted"
    MIGRATION_ITERATION = "migration_iteration"
    JOB_PROGRESS = "job_progress"
    JOB_COMPLETED = "job_completed"
    JOB_ENDED = "job_ended"
    KNOB_CHANGED = "knob_changed"
    BALLOON_CHANGED = "balloon_changed"
    BLOCK_THRESHOLD = "block_threshold"
    GUEST_AGENT = "guest_agent"
    DEVICE_ADDED = "device_added"
    DEVICE_REMOVED = "device_removed"
    DEVICE_REMOVAL_FAILED = "device_removal_failed"
    IO_ERROR = "io_error"
    WATCHDOG = "watchdog"
    CONTROL_ERROR = "control_error"
    MEMORY_FAILURE = "memory_failure"
    METADATA_CHANGED = "metadata_changed"
    LEASE_TAKEN = "lease_taken"
    LEASE_LEFT = "lease_left"
    EVENTS_LOST = "events_lost"


# Kind → (what happened, what `detail` and `numbers` hold, where it comes from).
MEANINGS: Final[dict[EventKind, tuple[str, str, str]]] = {
    EventKind.DEFINED: ("defined, or its definition changed", "added, updated, renamed …", "LIFECYCLE"),
    EventKind.UNDEFINED: ("its definition was removed", "removed, renamed", "LIFECYCLE"),
    EventKind.STARTED: ("started", "booted, migrated, restored …", "LIFECYCLE"),
    EventKind.SUSPENDED: ("paused", "paused, migrated, ioerror, watchdog …", "LIFECYCLE"),
    EventKind.RESUMED: ("goes on", "unpaused, migrated, postcopy …", "LIFECYCLE"),
    EventKind.STOPPED: ("stopped", "shutdown, destroyed, crashed, migrated …", "LIFECYCLE"),
    EventKind.SHUTDOWN: ("the guest has shut down", "finished, guest, host", "LIFECYCLE"),
    EventKind.PMSUSPENDED: ("the guest sleeps by itself", "memory, disk", "LIFECYCLE"),
    EventKind.CRASHED: ("the guest panicked", "panicked, crashloaded", "LIFECYCLE"),
    EventKind.REBOOTED: ("the guest rebooted", "", "REBOOT"),
    EventKind.MIGRATION_ITERATION: (
        "a migration goes over its memory again",
        "iterations_count",
        "MIGRATION_ITERATION",
    ),
    EventKind.JOB_PROGRESS: (
        "once a second while a job runs, whoever started it",
        "the operation; the fields of `vm_job`",
        "virDomainGetJobStats",
    ),
    EventKind.JOB_COMPLETED: ("a job was completed", "the operation; the fields of `vm_job`", "JOB_COMPLETED"),
    EventKind.JOB_ENDED: (
        "a job is there no more and was not said to be completed: aborted or failed",
        "the operation; the last known fields of `vm_job`",
        "virDomainGetJobStats",
    ),
    EventKind.KNOB_CHANGED: (
        "somebody set a knob or a limit; `by` tells whether it was virtpilot",
        "the knobs' group, or `seen` (with `no-` before a limit that is gone); their new values by name",
        "TUNABLE, else what is read every half minute",
    ),
    EventKind.BALLOON_CHANGED: ("the balloon has another size", "memory_balloon_bytes", "BALLOON_CHANGE"),
    EventKind.BLOCK_THRESHOLD: (
        "a disk was written beyond the offset that somebody had set",
        "the disk; threshold_bytes, excess_bytes",
        "BLOCK_THRESHOLD",
    ),
    EventKind.GUEST_AGENT: ("the guest agent came or went", "connected, disconnected", "AGENT_LIFECYCLE"),
    EventKind.DEVICE_ADDED: ("a device was plugged in", "its alias", "DEVICE_ADDED"),
    EventKind.DEVICE_REMOVED: ("a device was unplugged", "its alias", "DEVICE_REMOVED"),
    EventKind.DEVICE_REMOVAL_FAILED: ("the guest kept a device", "its alias", "DEVICE_REMOVAL_FAILED"),
    EventKind.IO_ERROR: ("a disk failed a request", "device, reason, what the guest does now", "IO_ERROR_REASON"),
    EventKind.WATCHDOG: ("the guest's watchdog ran out", "what was done about it", "WATCHDOG"),
    EventKind.CONTROL_ERROR: ("libvirt lost its line to the guest's process", "", "CONTROL_ERROR"),
    EventKind.MEMORY_FAILURE: ("the memory is faulty", "whose, what was done", "MEMORY_FAILURE"),
    EventKind.METADATA_CHANGED: ("its title, description or metadata was changed", "which", "METADATA_CHANGE"),
    EventKind.LEASE_TAKEN: (
        "a lease came with its guest, and this host's agent holds it now; `cause` is the command that set it",
        "the knob; its value",
        "agent",
    ),
    EventKind.LEASE_LEFT: (
        "a lease has gone with its guest, and this host's agent has let go of it; `cause` is the command that set it",
        "the knob; its value",
        "agent",
    ),
    EventKind.EVENTS_LOST: (
        "events before this one may be missing",
        "why; seconds without a connection, or how many (events_count)",
        "agent",
    ),
}

LIFECYCLE: Final = frozenset(
    {
        EventKind.DEFINED,
        EventKind.UNDEFINED,
        EventKind.STARTED,
        EventKind.SUSPENDED,
        EventKind.RESUMED,
        EventKind.STOPPED,
        EventKind.SHUTDOWN,
        EventKind.PMSUSPENDED,
        EventKind.CRASHED,
        EventKind.REBOOTED,
    }
)
