"""The order of operations that must wait for each other: four policies, and what each takes from which host.

| policy                    | goes first                                          | stops what runs          |
|---------------------------|-----------------------------------------------------|--------------------------|
| `shortest-job`            | the least predicted time                            | never                    |
| `shortest-remaining`      | the least time that is left                         | where that pays          |
| `ageing`                  | the highest priority + waited / `ageing_s`          | never                    |
| `deadline`                | the earliest deadline, then those without one       | never                    |

Ties go to the earlier arrival, then to the smaller id. Ageing needs no clock: priority + waited / `ageing_s` orders two
operations as priority · `ageing_s` - arrival does. So one of priority p is never begun after one, wanting the same
places, that came more than (100 - p) · `ageing_s` after it: that is the bound on being overtaken.

Stopping pays where the newcomer's time and the work that is lost by stopping are together less than what the running
operation has left: n + lost < r makes the sum of both completion times smaller (n + (n + r + lost) < r + (r + n)).

An operation takes one of each of its places (out of a host, into one, a guest, the cluster). One that waits holds its
places from the time on at which all of them are foreseen to be free: what comes after it may have them if it is over by
then. So a stream of small operations never starves a large one, and a long wait for one place leaves no other unused.

Sources: Silberschatz, Galvin and Gagne, Operating System Concepts, chapter "CPU Scheduling"; Schrage (1968) for the
optimality of the shortest remaining time; Kleinrock (1964) for ageing; Jackson (1955) for deadlines; Lifka (1995), EASY
backfilling, for what may go before its turn.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Final

import msgspec

DEFAULT_AGEING_S: Final = 30.0
HIGHEST: Final = 100


class SchedulingPolicy(StrEnum):
    """Which waiting operation goes first."""

    SHORTEST_JOB = "shortest-job"
    SHORTEST_REMAINING = "shortest-remaining"
    AGEING = "ageing"
    DEADLINE = "deadline"


class Stopping(StrEnum):
    """What happens to an operation's work when it is stopped for another."""

    NEVER = "never"
    """It cannot be stopped."""
    PAUSE = "pause"
    """It goes on later where it was."""
    RESTART = "restart"
    """It is aborted and begins again: what was done is lost."""


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """Something that takes time and places; times in seconds on one clock, `done_s` of `takes_s` is behind it."""

    id: str
    arrived_s: float
    takes_s: float
    done_s: float = 0.0
    priority: int = 50
    deadline_s: float | None = None
    places: frozenset[str] = frozenset({"cluster"})
    stopping: Stopping = Stopping.NEVER

    @property
    def left_s(self) -> float:
        """The predicted time that is left; one that takes longer than predicted may end at any moment."""
        return max(self.takes_s - self.done_s, 0.0)

    @property
    def lost_s(self) -> float:
        """The work that would have to be done again after a stop."""
        return self.done_s if self.stopping is Stopping.RESTART else 0.0


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """What is to happen now: begin these, in order; stop these for the sake of those that wait for their places."""

    begin: tuple[str, ...] = ()
    stop: Mapping[str, str] = {}
    waiting: Mapping[str, str] = {}
    """Each operation that goes on waiting, in the order of the queue, and the place that it waits for."""


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """How one operation fared: all in seconds on the operations' clock."""

    id: str
    arrived_s: float
    takes_s: float
    begun_s: float
    ended_s: float

    @property
    def turnaround_s(self) -> float:
        """From its arrival to its end."""
        return self.ended_s - self.arrived_s

    @property
    def waited_s(self) -> float:
        """The time in which it did nothing useful."""
        return self.turnaround_s - self.takes_s


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """A policy with what it needs to know: how many places of a kind each has; one, where nothing is said.

    A place's kind is what stands before its first blank: of `out host-1` it is `out`.
    """

    policy: SchedulingPolicy = SchedulingPolicy.AGEING
    ageing_s: float = DEFAULT_AGEING_S
    places: Mapping[str, int] = {}

    def rank(self, operation: Operation) -> tuple[float, float, str]:
        """Return what operations are sorted by: the smallest goes first."""
        return (_FIRST[self.policy](operation, self), operation.arrived_s, operation.id)

    def turn(self, waiting: Iterable[Operation], running: Iterable[Operation]) -> Turn:
        """Return what is to be begun and stopped now."""
        busy = {operation.id: operation for operation in running}
        book = _Book(self.places, busy.values())
        begin: list[str] = []
        stop: dict[str, str] = {}
        behind: dict[str, str] = {}
        for operation in sorted(waiting, key=self.rank):
            lacking = book.lacking(operation)
            if not lacking:
                begin.append(operation.id)
                book.take(operation)
                continue
            behind[operation.id] = lacking[0]
            victims = self._stopped_for(operation, lacking, busy, stop)
            stop |= dict.fromkeys((victim.id for victim in victims), operation.id)
            # What has been told to stop is there until it has really stopped, which is soon.
            book.hold(operation, 0.0 if victims else book.free_in_s(lacking))
        return Turn(begin=tuple(begin), stop=stop, waiting=behind)

    def _stopped_for(
        self, operation: Operation, lacking: Sequence[str], running: Mapping[str, Operation], stopped: Mapping[str, str]
    ) -> Sequence[Operation]:
        """Return what to stop for an operation: enough for all the places that it lacks, and only where it pays."""
        if self.policy is not SchedulingPolicy.SHORTEST_REMAINING:
            return ()
        found: dict[str, Operation] = {}
        for place in lacking:
            if any(place in victim.places for victim in found.values()):
                continue
            able = [
                one
                for one in running.values()
                if place in one.places and one.id not in stopped and one.stopping is not Stopping.NEVER
            ]
            victim = max(able, key=lambda one: (one.left_s - one.lost_s, one.id), default=None)
            if victim is None:
                return ()
            found[victim.id] = victim
        lost_s = math.fsum(victim.lost_s for victim in found.values())
        pays = all(operation.left_s + lost_s < victim.left_s for victim in found.values())
        return list(found.values()) if pays else ()

    def overtaken_within_s(self, operation: Operation) -> float:
        """Return how much later than this operation another may come and still be begun before it (`ageing`)."""
        return max(HIGHEST - operation.priority, 0) * self.ageing_s

    def foresee(self, waiting: Iterable[Operation], running: Iterable[Operation], now_s: float) -> dict[str, Run]:
        """Return how all would fare if nothing else came and each took as long as predicted; by virtual time.

        An operation that waits for the future arrives when its time has come: so a whole day can be played.
        """
        return _Play(self, waiting, running, now_s).to_the_end()


_FIRST: Final[Mapping[SchedulingPolicy, Callable[[Operation, Schedule], float]]] = {
    SchedulingPolicy.SHORTEST_JOB: lambda operation, _schedule: operation.takes_s,
    SchedulingPolicy.SHORTEST_REMAINING: lambda operation, _schedule: operation.left_s,
    SchedulingPolicy.AGEING: lambda operation, by: operation.arrived_s - operation.priority * by.ageing_s,
    SchedulingPolicy.DEADLINE: lambda operation, _schedule: (
        math.inf if operation.deadline_s is None else operation.deadline_s
    ),
}


class _Hold(msgspec.Struct, frozen=True):
    """Places that a waiting operation is to have, in so many seconds."""

    operation: Operation
    in_s: float


class _Book:
    """Who has which places, and who is to have them next."""

    def __init__(self, limits: Mapping[str, int], running: Iterable[Operation]) -> None:
        self._limits = limits
        self._taken: defaultdict[str, list[float]] = defaultdict(list)
        self._holds: defaultdict[str, list[_Hold]] = defaultdict(list)
        for operation in running:
            self.take(operation)

    def _limit(self, place: str) -> int:
        return self._limits.get(place.partition(" ")[0], 1)

    def take(self, operation: Operation) -> None:
        """Let an operation have its places until its end."""
        for place in operation.places:
            self._taken[place].append(operation.left_s)

    def hold(self, operation: Operation, in_s: float) -> None:
        """Let an operation have its places in so many seconds."""
        for place in operation.places:
            self._holds[place].append(_Hold(operation, in_s))

    def lacking(self, operation: Operation) -> list[str]:
        """Return the places that an operation cannot have now, or would still have when others are to have them."""
        return [place for place in sorted(operation.places) if not self._has_room(place, operation.left_s)]

    def _has_room(self, place: str, for_s: float) -> bool:
        held = sum(hold.in_s < for_s for hold in self._holds[place])
        return len(self._taken[place]) + held < self._limit(place)

    def free_in_s(self, places: Iterable[str]) -> float:
        """Return in how many seconds all of these places are foreseen to be free; infinite where one never is."""
        return max(map(self._one_free_in_s, places))

    def _one_free_in_s(self, place: str) -> float:
        limit = self._limit(place)
        if limit <= 0:
            return math.inf
        held = [hold.in_s + hold.operation.left_s for hold in self._holds[place]]
        ends = sorted([*self._taken[place], *held])
        return ends[len(ends) - limit] if len(ends) >= limit else 0.0


class _Play:
    """Virtual time, from one arrival or end to the next."""

    def __init__(
        self, schedule: Schedule, waiting: Iterable[Operation], running: Iterable[Operation], now_s: float
    ) -> None:
        self._schedule = schedule
        self._now_s = now_s
        self._running = {operation.id: operation for operation in running}
        self._begun = dict.fromkeys(self._running, now_s)
        self._full = {operation.id: operation.takes_s for operation in self._running.values()}
        self._waiting: dict[str, Operation] = {}
        self._coming = [(operation.arrived_s, operation.id, operation) for operation in waiting]
        heapq.heapify(self._coming)
        self._runs: dict[str, Run] = {}

    def to_the_end(self) -> dict[str, Run]:
        while self._coming or self._waiting or self._running:
            self._arrive()
            self._begin()
            if not self._running and not self._coming:
                break  # what is left waits for a place of which there is none
            self._pass()
        return self._runs

    def _arrive(self) -> None:
        while self._coming and self._coming[0][0] <= self._now_s:
            operation = heapq.heappop(self._coming)[2]
            self._waiting[operation.id] = operation
            self._full[operation.id] = operation.takes_s

    def _begin(self) -> None:
        turn = self._schedule.turn(self._waiting.values(), self._running.values())
        for victim in turn.stop:
            stopped = self._running.pop(victim)
            done_s = stopped.done_s if stopped.stopping is Stopping.PAUSE else 0.0
            self._waiting[victim] = msgspec.structs.replace(stopped, done_s=done_s)
        if turn.stop:
            turn = self._schedule.turn(self._waiting.values(), self._running.values())
        for begun in turn.begin:
            self._running[begun] = self._waiting.pop(begun)
            self._begun.setdefault(begun, self._now_s)

    def _pass(self) -> None:
        """Go on to the next end or arrival."""
        ends = [self._now_s + operation.left_s for operation in self._running.values()]
        until_s = min([*ends, *(arrival for arrival, _id, _operation in self._coming[:1])])
        span_s = max(until_s - self._now_s, 0.0)
        for operation in list(self._running.values()):
            if self._now_s + operation.left_s <= until_s:
                self._end(operation, until_s)
            else:
                self._running[operation.id] = msgspec.structs.replace(operation, done_s=operation.done_s + span_s)
        self._now_s = until_s

    def _end(self, operation: Operation, now_s: float) -> None:
        del self._running[operation.id]
        self._runs[operation.id] = Run(
            id=operation.id,
            arrived_s=operation.arrived_s,
            takes_s=self._full[operation.id],
            begun_s=self._begun[operation.id],
            ended_s=now_s,
        )
