"""The agent's events: told by the hypervisor or seen in its knobs, ascribed to whoever made them, and published.

hypervisor.drain → whose doing? → a bounded queue → bus events/<host>
the statistics of jobs → vm_job samples
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Final, Protocol

import msgspec
import structlog

from virtpilot.action import Verb
from virtpilot.actuators.knob import FOREIGN
from virtpilot.clock import seconds
from virtpilot.events import LIFECYCLE, By, Event, EventKind
from virtpilot.fields import FIELDS
from virtpilot.hypervisor import EventSource, GuestEvent
from virtpilot.knobs import NO_LIMIT, find
from virtpilot.libvirt_notes import NOTE_NAMESPACE
from virtpilot.model import Bus, Message, Outcome, Result, Sample, record_id
from virtpilot.topics import Topics

MAX_WAITING: Final = 2_000
_MAX_SENDING: Final = 64
_REFUSED_NS: Final = seconds(5)
# How long after a change of ours its echo may come.
_ECHO_NS: Final = seconds(60)
_BALLOON: Final = "memory_balloon"
# A period is read with its quota only: that it comes and goes with that is nobody's change.
_WITH_QUOTA: Final = "_period"
_JOBS: Final = frozenset({EventKind.JOB_PROGRESS, EventKind.JOB_COMPLETED, EventKind.JOB_ENDED})
_SILENT_NS: Final = seconds(10)
_OF_A_MOVE: Final = LIFECYCLE | _JOBS | {EventKind.MIGRATION_ITERATION}
# What libvirt tells of a guest that comes here; the end of a move in vain is told so as well, where it was.
_ARRIVALS: Final = {EventKind.STARTED: {"migrated"}, EventKind.RESUMED: {"migrated", "postcopy"}}
# The actions that are about a guest as a whole.
_WHOLE: Final = frozenset({"migrate", *(str(verb) for verb in Verb)})
log = structlog.get_logger(__name__)


class Moves(Protocol):
    """Who knows by which commands guests move."""

    def moving(self, guest: str) -> str:
        """Return the command that a guest is under way by, "" by none."""

    def came_by(self, guest: str) -> str:
        """Return the command that brings a guest here, "" where none is known."""


class Own:
    """What virtpilot itself changed on this host lately, so that its echoes are known as such."""

    def __init__(self, commands: Moves) -> None:
        self._commands = commands
        self._knobs: dict[tuple[str, str, float], tuple[str, int]] = {}
        self._moves: dict[str, tuple[str, int]] = {}

    def note(self, outcomes: Iterable[Outcome], now_ns: int) -> None:
        """Take note of what the executor did."""
        for outcome in outcomes:
            if outcome.action in _WHOLE and outcome.result is not Result.REFUSED:
                self._moves[outcome.guest] = (outcome.command, now_ns)
            elif outcome.guard != FOREIGN:  # there it tells what somebody else has set
                for knob, value in outcome.after.items():
                    self._knobs[outcome.guest, knob, value] = (outcome.command, now_ns)
        # A time before that of the last note is no reason to forget it: one step's parts have not all the same.
        self._knobs = {key: one for key, one in self._knobs.items() if abs(now_ns - one[1]) <= _ECHO_NS}
        self._moves = {key: one for key, one in self._moves.items() if abs(now_ns - one[1]) <= _ECHO_NS}

    def command(self, event: GuestEvent) -> str:
        """Return the id of the command that led to an event, empty where none of this host's did."""
        told = [*event.numbers.items(), *((word.removeprefix("no-"), NO_LIMIT) for word in _gone(event))]
        for name, value in told:
            if (command := self._set(event, name, value)) is not None:
                return command
        if event.kind not in _OF_A_MOVE:
            return ""
        arrives = event.detail in _ARRIVALS.get(event.kind, ())
        if arrives and event.kind is EventKind.STARTED:
            self._moves.pop(event.guest, None)  # whatever took it away from here before
        known = self._commands.moving(event.guest) or self._moves.get(event.guest, ("", 0))[0]
        if not known and arrives and (known := self._commands.came_by(event.guest)):
            self._moves[event.guest] = (known, event.at_ns)
        return known

    def _set(self, event: GuestEvent, name: str, value: float) -> str | None:
        found = self._knobs.get((event.guest, name, value))
        if event.kind is EventKind.BALLOON_CHANGED:
            # It moves in steps of its own.
            steps = [one for (guest, knob, _), one in self._knobs.items() if (guest, knob) == (event.guest, _BALLOON)]
            found = steps[-1] if steps else None
        knob = find(name)
        if found is None and knob is not None and knob.is_set:
            # What is pinned to all CPUs was given back to us as no pin.
            found = self._knobs.get((event.guest, name, NO_LIMIT))
        return None if found is None else found[0]


def _gone(event: GuestEvent) -> list[str]:
    """Return the limits that an event tells to be gone, as `no-<knob>`."""
    words = event.detail.split() if event.kind is EventKind.KNOB_CHANGED else []
    return [word for word in words if word.startswith("no-")]


class KnobWatch:
    """Knobs and limits as they are read now and then: a change that no event told of is found here."""

    def __init__(self) -> None:
        self._read: dict[str, dict[str, float]] = {}
        self._told: dict[tuple[str, str], float] = {}
        self._ballooned_ns: dict[str, int] = {}

    def told(self, event: GuestEvent) -> None:
        """Take note of what the hypervisor told by itself."""
        if event.kind is EventKind.KNOB_CHANGED:
            self._told |= {(event.guest, knob): value for knob, value in event.numbers.items()}
        elif event.kind is EventKind.BALLOON_CHANGED:
            self._ballooned_ns[event.guest] = event.at_ns
        elif event.kind in {EventKind.STARTED, EventKind.STOPPED, EventKind.UNDEFINED}:
            # A guest that starts has its own values again: nobody changed them.
            self._read.pop(event.guest, None)
            self._ballooned_ns.pop(event.guest, None)
            self._told = {key: value for key, value in self._told.items() if key[0] != event.guest}

    def see(self, samples: Iterable[Sample]) -> list[GuestEvent]:
        """Return the changes that these samples show and nobody has told of."""
        guests: dict[str, tuple[Sample, dict[str, float]]] = {}
        for sample in samples:
            if sample.measurement == "knob" and "value_count" in sample.fields:
                _first, knobs = guests.setdefault(sample.tags["vm"], (sample, {}))
                knobs[sample.tags["knob"]] = float(sample.fields["value_count"])
        found = [self._compare(sample, knobs) for sample, knobs in guests.values()]
        return [event for event in found if event is not None]

    def _compare(self, sample: Sample, knobs: dict[str, float]) -> GuestEvent | None:
        guest = sample.tags["vm"]
        if 0 <= sample.time_ns - self._ballooned_ns.get(guest, -_ECHO_NS) < _ECHO_NS:
            # It moves in steps, of which an event tells each.
            knobs.pop(_BALLOON, None)
        former = self._read.get(guest)
        self._read[guest] = knobs
        if former is None:
            return None
        changed = {
            name: value
            for name, value in knobs.items()
            if former.get(name) != value != self._told.get((guest, name)) and (name in former or _may_come(name))
        }
        missing = sorted(name for name in former.keys() - knobs.keys() if _may_come(name))
        gone = [name for name in missing if self._is_news(guest, name, former)]
        if not changed and not gone:
            return None
        self._told |= {(guest, name): value for name, value in changed.items()}
        return GuestEvent(
            at_ns=sample.time_ns,
            kind=EventKind.KNOB_CHANGED,
            guest=guest,
            name=sample.tags.get("name", ""),
            detail=" ".join(["seen", *(f"no-{name}" for name in gone)]),
            numbers=changed,
        )

    def _is_news(self, guest: str, name: str, former: dict[str, float]) -> bool:
        """Tell whether nobody has said that a limit is gone: libvirt tells of 0 or -1 then."""
        return self._told.get((guest, name), former[name]) == former[name]


def _may_come(knob: str) -> bool:
    """Tell whether somebody must have set a knob that is read for the first time, or not any more."""
    return knob != _BALLOON and not knob.endswith(_WITH_QUOTA)


class EventDesk:
    """Publishes the events of one host; a broker that is away is waited for, within bounds."""

    def __init__(
        self,
        *,
        bus: Bus,
        topics: Topics,
        host: str,
        source: EventSource | None,
        moves: Moves,
        told: Callable[[GuestEvent], None] = lambda _event: None,
    ) -> None:
        self.published = 0
        self.dropped = 0
        self.by_kind: Counter[str] = Counter()
        self._bus = bus
        self._topic = topics.events(host)
        self._tags = {"cluster": topics.cluster, "host": host}
        self._host = host
        self._source = source
        self._own = Own(moves)
        self._told = told
        self._knobs = KnobWatch()
        self._waiting: deque[Event] = deque()
        self._sending: dict[str, tuple[Event, Future[None]]] = {}
        self._lost = 0
        self._running: dict[str, int] = {}
        self._not_before_ns = 0

    def own(self, outcomes: Iterable[Outcome], now_ns: int) -> None:
        """Take note of what was done by command: its echo is no foreign change."""
        self._own.note(outcomes, now_ns)

    def see(self, samples: Iterable[Sample]) -> None:
        """Look through a tick's samples for knobs that somebody has changed."""
        for event in self._knobs.see(samples):
            self._told(event)
            self._take(event)

    def collect(self) -> list[Sample]:
        """Take what has happened since the last call; return the jobs' statistics as samples."""
        samples = []
        for event in self._source.drain() if self._source is not None else ():
            if event.kind is EventKind.METADATA_CHANGED and NOTE_NAMESPACE in event.detail:
                continue  # the echo of a note of ours: what it is about is told by other events and outcomes
            self._knobs.told(event)
            self._told(event)
            self._take(event)
            if event.kind in _JOBS and (sample := self._job(event)) is not None:
                samples.append(sample)
        return samples

    def tell(self, told: GuestEvent, command: str) -> None:
        """Publish what virtpilot itself has to tell, with the command that led to it."""
        self._take(told, command)

    def fields(self, now_ns: int) -> dict[str, int]:
        """Return how many guests have a job running, where anybody tells of jobs; one that fell silent is over."""
        if self._source is None:
            return {}
        self._running = {guest: at_ns for guest, at_ns in self._running.items() if now_ns - at_ns < _SILENT_NS}
        return {"jobs_running_count": len(self._running)}

    def _job(self, event: GuestEvent) -> Sample | None:
        if event.kind is EventKind.JOB_PROGRESS:
            self._running[event.guest] = event.at_ns
        else:
            self._running.pop(event.guest, None)
        fields = {name: value for name, value in event.numbers.items() if ("vm_job", name) in FIELDS}
        fields["running_count"] = int(event.kind is EventKind.JOB_PROGRESS)
        fields["failed_count"] = int(event.kind is EventKind.JOB_ENDED)
        tags = {**self._tags, "vm": event.guest, "name": event.name}
        return Sample("vm_job", tags | ({"operation": event.detail} if event.detail else {}), fields, event.at_ns)

    def _take(self, told: GuestEvent, command: str = "") -> None:
        command = command or self._own.command(told)
        event = Event(
            id=record_id(
                "ev", self._host, told.guest, told.kind, told.detail, told.at_ns, sorted(told.numbers.items())
            ),
            cause=command,
            host=self._host,
            guest=told.guest,
            name=told.name,
            at_ns=told.at_ns,
            kind=told.kind,
            detail=told.detail,
            by=By.VIRTPILOT if command else By.OTHER,
            numbers=dict(told.numbers),
        )
        self.by_kind[event.kind] += 1
        if event.kind != EventKind.JOB_PROGRESS:
            log.info("event", kind=event.kind, guest=event.name, detail=event.detail, by=event.by, **event.numbers)
        self._waiting.append(event)
        if len(self._waiting) > MAX_WAITING:
            self._waiting.popleft()
            self.dropped += 1
            self._lost += 1

    def flush(self, now_ns: int) -> None:
        """Send what waits, in order; what the broker did not take is sent again."""
        again = []
        for event_id, (event, future) in list(self._sending.items()):
            if future.done():
                del self._sending[event_id]
                if future.exception() is None:
                    self.published += 1
                else:
                    again.append(event)
        if again:
            self._waiting.extendleft(reversed(again))
            self._not_before_ns = now_ns + _REFUSED_NS
        if not self._bus.generation or 0 < self._not_before_ns - now_ns <= _REFUSED_NS:
            return
        if self._lost:
            lost, self._lost = self._lost, 0
            numbers = {"events_count": float(lost)}
            why = "the broker was away for too long"
            self._take(GuestEvent(at_ns=now_ns, kind=EventKind.EVENTS_LOST, detail=why, numbers=numbers))
        while self._waiting and len(self._sending) < _MAX_SENDING:
            event = self._waiting.popleft()
            message = Message(self._topic, msgspec.json.encode(event))
            self._sending[event.id] = (event, self._bus.publish(message))
