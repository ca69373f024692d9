"""A host in memory that does exactly what a test tells it to, and makers of commands for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from virtpilot.action import Abort, Action, Migrate, Power, ReleaseKnob, SetKnob, Verb, Way
from virtpilot.actuators.caps import Caps
from virtpilot.actuators.executor import Executor
from virtpilot.actuators.hooks.hook import Hook, HookOptions
from virtpilot.actuators.journal import Journal
from virtpilot.actuators.lifecycle import Point, nowhere
from virtpilot.clock import SECOND
from virtpilot.errors import GuestNotFound, HypervisorError, KnobUnsupported
from virtpilot.hypervisor import (
    GOALS,
    OFF,
    Footprint,
    GuestState,
    GuestStats,
    HostFacts,
    Job,
    JobState,
    JobStatus,
    Move,
)
from virtpilot.model import Command

HOST = "host-1"
GUEST = "5f0a1b5e-0000-4000-8000-000000000001"
OTHER = "5f0a1b5e-0000-4000-8000-000000000002"
SHARES = "cpu_shares"
START = 1_700_000_000 * SECOND
# A hook that nobody answers.
NOTHING = HookOptions(allowed=[Hook(name="nothing", url="http://127.0.0.1:9/")])
URI = "qemu+tcp://host-2/system"


class OneJob:
    """A migration that ends when the test says so."""

    def __init__(self, host: OneHost, guest: str) -> None:
        self._host, self._guest = host, guest
        self.status = JobStatus(JobState.RUNNING)
        self.aborts = 0
        self.switches = 0

    def poll(self) -> JobStatus:
        self._host.answer("poll")
        return self.status

    def abort(self) -> None:
        self._host.abort_job(self._guest)
        self.aborts += 1

    def post_copy(self) -> None:
        self._host.answer("post_copy")
        self.switches += 1

    def finish(self, *, leave: bool = True, there: GuestState | None = GuestState.RUNNING) -> None:
        self.status = JobStatus(JobState.DONE, progress={"downtime_seconds": 0.1}, there=there)
        if leave:
            self._host.remove(self._guest)

    def fail(self, error: str) -> None:
        self.status = JobStatus(JobState.FAILED, error)


class SwitchJob:
    """A change of state, over when the guest is in it; a reboot when the test says so."""

    def __init__(self, host: OneHost, guest: str, verb: Verb) -> None:
        self._host, self._guest, self._verb = host, guest, verb
        if host.obeys:
            host.states[guest] = min(GOALS[verb])
            if host.states[guest] in OFF:
                host.knobs[guest, SHARES] = 1024  # what it starts with again

    def poll(self) -> JobStatus:
        self._host.answer("poll")
        there = self._host.states.get(self._guest) in GOALS[self._verb] and (
            self._verb is not Verb.REBOOT or self._host.obeys
        )
        return JobStatus(JobState.DONE if there else JobState.RUNNING)

    def abort(self) -> None:
        self._host.given_up.append(self._guest)


class OneHost:
    """The Hypervisor Protocol over two dicts; `errors`: what a call of that name raises, `rounds` alters a value."""

    def __init__(self) -> None:
        self.states = {GUEST: GuestState.RUNNING, OTHER: GuestState.RUNNING}
        self.knobs = {(GUEST, SHARES): 1024, (OTHER, SHARES): 1024}
        self.errors: dict[str, HypervisorError] = {}
        self.rounds: Callable[[int], int] = lambda value: value
        self.footprints: dict[str, Footprint] = {}
        self.sets: list[tuple[str, int]] = []
        self.notes: dict[str, str] = {}
        self.jobs: list[OneJob] = []
        self.obeys = True
        self.asked: list[tuple[str, Verb]] = []
        self.given_up: list[str] = []
        self.ways: list[Way] = []
        self.aborted: list[str] = []

    def answer(self, call: str) -> None:
        if call in self.errors:
            raise self.errors[call]

    def remove(self, guest: str) -> None:
        self.states.pop(guest)
        self.knobs = {key: value for key, value in self.knobs.items() if key[0] != guest}
        self.notes.pop(guest, None)

    @property
    def shares(self) -> int:
        return self.knobs[GUEST, SHARES]

    @shares.setter
    def shares(self, value: int) -> None:
        self.knobs[GUEST, SHARES] = value

    def facts(self) -> HostFacts:
        return HostFacts(cpus=4, memory_bytes=2**32, driver="QEMU", cpu_set=0b1111)

    def guests(self) -> Sequence[GuestStats]:
        return [GuestStats(guest, guest[-1], {}) for guest in self.states]

    def state(self, guest: str) -> GuestState:
        self.answer("state")
        if guest not in self.states:
            raise GuestNotFound(f"no domain with matching uuid '{guest}'")
        return self.states[guest]

    def get_knob(self, guest: str, knob: str) -> int:
        self.answer("get_knob")
        if guest != HOST:
            self.state(guest)
        if (guest, knob) not in self.knobs:
            raise KnobUnsupported(f"{guest} has no knob {knob}")
        return self.knobs[guest, knob]

    def set_knob(self, guest: str, knob: str, value: int) -> None:
        self.answer("set_knob")
        self.get_knob(guest, knob)
        self.sets.append((guest, value))
        self.knobs[guest, knob] = self.rounds(value)

    def read_note(self, guest: str) -> str:
        self.answer("read_note")
        self.state(guest)
        return self.notes.get(guest, "")

    def write_note(self, guest: str, note: str) -> None:
        self.answer("write_note")
        if self.state(guest) is GuestState.SHUTOFF:
            raise HypervisorError(f"domain {guest} is not running")
        self.notes[guest] = note

    def footprint(self, guest: str) -> Footprint:
        self.answer("footprint")
        return self.footprints[guest]

    def abort_job(self, guest: str) -> None:
        self.answer("abort_job")
        self.aborted.append(guest)

    def migrate(self, guest: str, uri: str, way: Way = Way()) -> Move:  # noqa: B008 - frozen
        self.answer("migrate")
        self.state(guest)
        self.ways.append(way)
        self.jobs.append(OneJob(self, guest))
        return self.jobs[-1]

    def power(self, guest: str, verb: Verb) -> Job:
        self.answer("power")
        self.state(guest)
        self.asked.append((guest, verb))
        return SwitchJob(self, guest, verb)

    def close(self) -> None:
        return


def command(action: Action, name: str = "cm-1", *, at_ns: int = START, epoch: int = 1, host: str = HOST) -> Command:
    """Return a command of the rule `starved` that is valid for 30 s."""
    return Command(
        id=name,
        cause="dc-1",
        host=host,
        action=action,
        rule="starved",
        issued_ns=at_ns,
        not_after_ns=at_ns + 30 * SECOND,
        epoch=epoch,
    )


def set_to(value: int, expected: int = 1024, *, guest: str = GUEST, knob: str = SHARES, lease_s: float = 60) -> SetKnob:
    return SetKnob(guest=guest, knob=knob, value=value, expected=expected, lease_s=lease_s)


def release(guest: str = GUEST) -> ReleaseKnob:
    return ReleaseKnob(guest=guest, knob=SHARES)


def move(guest: str = GUEST, target: str = "host-2", way: Way = Way()) -> Migrate:  # noqa: B008 - frozen
    return Migrate(guest=guest, target=target, uri=URI, way=way)


def abort(guest: str = GUEST) -> Abort:
    return Abort(guest=guest)


def power(verb: Verb, guest: str = GUEST, *, within_s: float = 60) -> Power:
    return Power(guest=guest, verb=verb, within_s=within_s)


def executor(
    hypervisor: OneHost,
    folder: Path,
    *,
    caps: Caps | None = None,
    reached: Callable[[Point], None] = nowhere,
) -> Executor:
    return Executor(hypervisor, Journal(folder / "journal.jsonl"), host=HOST, caps=caps, hooks=NOTHING, reached=reached)


def at(seconds: float) -> int:
    """Return the time so many seconds after the start."""
    return START + round(seconds * SECOND)


def changed(values: Mapping[str, float]) -> float:
    return values[SHARES]
