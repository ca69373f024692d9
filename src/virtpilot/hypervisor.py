"""One host's hypervisor: the Protocol that libvirt and the simulator offer, and the libvirt side of it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from enum import StrEnum
from typing import Final, Protocol, runtime_checkable

import msgspec

from virtpilot.action import Verb, Way
from virtpilot.events import EventKind


class GuestState(StrEnum):
    """A domain's state, as virDomainState names it."""

    NOSTATE = "nostate"
    RUNNING = "running"
    BLOCKED = "blocked"
    PAUSED = "paused"
    SHUTDOWN = "shutdown"
    SHUTOFF = "shutoff"
    CRASHED = "crashed"
    SUSPENDED = "pmsuspended"


# Xen shows an idle guest as blocked; it runs all the same.
RUNNING: Final = frozenset({GuestState.RUNNING, GuestState.BLOCKED})
OFF: Final = frozenset({GuestState.SHUTOFF, GuestState.CRASHED})
# From which states a guest can be brought into another one, and in which it is afterwards.
FITTING: Final[Mapping[Verb, frozenset[GuestState]]] = {
    Verb.SUSPEND: RUNNING,
    Verb.RESUME: frozenset({GuestState.PAUSED}),
    Verb.START: OFF,
    Verb.SHUTDOWN: RUNNING,
    Verb.REBOOT: RUNNING,
    Verb.DESTROY: frozenset(GuestState) - OFF,
}
GOALS: Final[Mapping[Verb, frozenset[GuestState]]] = {
    Verb.SUSPEND: frozenset({GuestState.PAUSED}),
    Verb.RESUME: RUNNING,
    Verb.START: RUNNING,
    Verb.SHUTDOWN: OFF,
    Verb.REBOOT: RUNNING,
    Verb.DESTROY: OFF,
}


def fitting_codes(verb: Verb) -> frozenset[int]:
    """Return from which states a guest can be brought into another one, as virDomainState numbers them."""
    return frozenset(code for code, state in enumerate(GuestState) if state in FITTING[verb])


Numbers = Mapping[str, int | float]


class GuestDetails(msgspec.Struct, frozen=True):
    """What is configured for a guest or asked for seldom, under the names and in the units of the field table.

    `guest` stands beside the guest's own fields; `disks`, `nics` and `filesystems` by device name or mount point.
    """

    guest: Numbers = {}
    disks: Mapping[str, Numbers] = {}
    nics: Mapping[str, Numbers] = {}
    filesystems: Mapping[str, Numbers] = {}


class GuestStats(msgspec.Struct, frozen=True):
    """One guest as the hypervisor tells it: `stats` under the names of virConnectGetAllDomainStats.

    `run` is another number after each start (libvirt's domain id), -1 while it is off or where nobody tells; `age_s`
    is how long ago what the guest's own process has to answer was last told in whole.
    """

    uuid: str
    name: str
    stats: Mapping[str, int | float | str | bool]
    knobs: Mapping[str, int] = {}
    tags: Mapping[str, str] = {}
    run: int = -1
    age_s: float = 0.0
    details: GuestDetails = GuestDetails()


class HostFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a host is: its CPUs, memory in bytes, driver and versions; which CPUs and NUMA nodes, as sets (knobs.py)."""

    cpus: int
    memory_bytes: int
    driver: str
    versions: dict[str, str] = {}
    cpu_set: int = 0
    node_set: int = 1


class Footprint(msgspec.Struct, frozen=True, kw_only=True):
    """What a running guest takes up just now, as far as its knobs depend on it.

    Of its vCPUs `fixed_vcpus` cannot be unplugged, and none where not `unplugs`. `memory_max_bytes` is what the balloon
    could give it, all of its memory devices with it; 0: nobody tells.
    `usable_bytes` is what it could give back without swapping, as its kernel said `told_s` ago; None: never.
    """

    vcpus: int
    fixed_vcpus: int = 1
    unplugs: bool = True
    iothreads: int = 0
    memory_bytes: int
    memory_max_bytes: int = 0
    usable_bytes: int | None = None
    rss_bytes: int = 0
    told_s: float = math.inf


class JobState(StrEnum):
    """Where a long operation stands."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


class JobStatus(msgspec.Struct, frozen=True):
    """A long operation's state; `progress` holds remaining and total bytes and the like where known.

    `there` is what a migration's target says of the guest at the end: NOSTATE where it has no such guest, None where
    it could not be asked.
    """

    state: JobState
    error: str = ""
    progress: Mapping[str, float] = {}
    there: GuestState | None = None


class Job(Protocol):
    """A long operation that goes on by itself."""

    def poll(self) -> JobStatus:
        """Return where it stands, at once."""

    def abort(self) -> None:
        """Ask it to stop; poll tells when it has. Raises HypervisorError where it was not asked, to be tried again."""


class Move(Job, Protocol):
    """A migration under way."""

    def post_copy(self) -> None:
        """Let the guest run on the target now, and fetch the rest of its memory as it needs it; no way back."""


class GuestEvent(msgspec.Struct, frozen=True, kw_only=True):
    """Something that the hypervisor tells by itself; without a `guest` it is about the telling."""

    at_ns: int
    kind: EventKind
    guest: str = ""
    name: str = ""
    detail: str = ""
    numbers: Mapping[str, float] = {}


@runtime_checkable
class EventSource(Protocol):
    """What a hypervisor offers that tells of events as they happen."""

    def drain(self) -> list[GuestEvent]:
        """Return what has happened since the last call, in order, at once; the first call begins to listen."""


@runtime_checkable
class Selective(Protocol):
    """What a hypervisor offers that tells of a few guests without asking all of them."""

    def some(self, wanted: Collection[str]) -> Sequence[GuestStats]:
        """Return those of the wanted guests, by UUID, that are known since `guests` and answer at once."""


@runtime_checkable
class Matchmaker(Protocol):
    """What a hypervisor offers that asks both ends of a migration: before it begins, and where sight of it was lost."""

    def unfit(self, guest: str, uri: str, way: Way = ...) -> str:
        """Return what the host at `uri` does not offer of the guest's needs, "" where nothing is known against it.

        `way` says whether disks are copied; raises HypervisorError where it is not known which.
        """

    def there(self, guest: str, uri: str) -> GuestState | None:
        """Return what the host at `uri` says of a guest: NOSTATE where it has none such, None without an answer."""

    def moving(self, guest: str) -> bool:
        """Return whether a migration of a guest away from here is under way; raises GuestNotFound."""


@runtime_checkable
class NoteKeeper(Protocol):
    """What a hypervisor offers whose running guests carry a note of ours: it goes where they go, and ends with them.

    It raises GuestNotFound, and KnobUnsupported where the driver has no place for it.
    """

    def read_note(self, guest: str) -> str:
        """Return the note of a guest that runs, "" where it has none; anybody may have written it."""

    def write_note(self, guest: str, note: str) -> None:
        """Give a guest that runs another note; "" removes it."""


class Hypervisor(Protocol):
    """One host's hypervisor: collectors read through it, actuators write through it. Raises HypervisorError."""

    def facts(self) -> HostFacts:
        """Return what the host is."""

    def guests(self) -> Sequence[GuestStats]:
        """Return all guests, shut-off ones too; one that vanishes meanwhile is left out."""

    def state(self, guest: str) -> GuestState:
        """Return a guest's state; raises GuestNotFound."""

    def get_knob(self, guest: str, knob: str) -> int:
        """Return the live value of a guest's knob, or of the host's; raises GuestNotFound or KnobUnsupported."""

    def set_knob(self, guest: str, knob: str, value: int) -> None:
        """Set a knob's live value and wait while the guest follows; raises GuestNotFound or KnobUnsupported."""

    def footprint(self, guest: str) -> Footprint:
        """Return what a running guest takes up; raises GuestNotFound."""

    def migrate(self, guest: str, uri: str, way: Way = ...) -> Move:
        """Start a live migration to the libvirt at `uri`; raises GuestNotFound or Unsupported."""

    def abort_job(self, guest: str) -> None:
        """Ask for the end of a guest's migration; raises HypervisorError where none is under way."""

    def power(self, guest: str, verb: Verb) -> Job:
        """Ask for another state of a guest; the job is done once it is seen. Raises GuestNotFound or Unsupported."""

    def close(self) -> None:
        """Let go of the connection."""
