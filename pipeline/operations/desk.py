"""The desk: who waits for whom, by a policy that can be changed while it runs.

announcements ─┐                      ┌─ begin: a want becomes a command, announced work may run
moves wanted  ─┴─▶ planner schedule ──┼─ stop: announced work is paused, a migration is aborted and wanted again
moves under way ─▶                    └─ waiting: for which place, and when its turn is foreseen
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Annotated, Any, Final

import msgspec
import structlog
from msgspec import Meta

from virtpilot.clock import SECOND, seconds
from virtpilot.errors import StateError
from virtpilot.pipeline.operations.announced import Announced, Announcement, Standing
from virtpilot.planner.scheduling import DEFAULT_AGEING_S, Operation, Run, Schedule, SchedulingPolicy, Turn
from virtpilot.tracked import Tracked

log = structlog.get_logger(__name__)

MAX_ANNOUNCED: Final = 1_000
FORESEEN: Final = 100
WORK: Final = "work "
_WORDS: Final = {
    "out": "as many as may are leaving {}",
    "in": "as many as may are coming to {}",
    "cluster": "as many as may are on their way in the cluster",
    "guest": "something else is being done with this guest",
    "memory": "as many changes of memory as may be are under way on {}",
    "work": "announced work is being done on {}",
}


class SchedulingOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """In which order migrations, memory changes and announced work are done where not all can be done at once."""

    policy: Annotated[
        SchedulingPolicy,
        Meta(
            description="Who goes first: `ageing` (priority, which grows with waiting), `shortest-job`,"
            " `shortest-remaining` (stops what takes longer where that pays) or `deadline`."
        ),
    ] = SchedulingPolicy.AGEING
    ageing_s: Annotated[
        float, Meta(description="Seconds of waiting that are worth one point of priority (`ageing`).", ge=0.1, le=3600)
    ] = DEFAULT_AGEING_S
    memory_changes_per_host: Annotated[
        int, Meta(description="Changes of guests' memory under way on one host at the same time.", ge=1, le=1000)
    ] = 4
    works_per_host: Annotated[
        int, Meta(description="Announced backups and maintenance steps at the same time on one host.", ge=1, le=1000)
    ] = 1
    silent_s: Annotated[
        float,
        Meta(
            description="Announced work that nobody has asked about for so long is taken for over; what runs, so long"
            " after the end of its time.",
            ge=10,
            le=86400,
        ),
    ] = 600.0


class Kept(msgspec.Struct, frozen=True):
    """What survives a restart."""

    announced: dict[str, Announced] = {}
    moves: dict[str, Operation] = {}
    policy: SchedulingPolicy | None = None
    stopped: dict[str, bool] = {}


class Desk:
    """The queue of all operations, with those of its own that others have announced."""

    def __init__(self, options: SchedulingOptions, moves: Mapping[str, int]) -> None:
        """Take the options, and how many migrations there may be: `out` of a host, `in` to one, in the `cluster`."""
        self._options = options
        self._places = {**moves, "memory": options.memory_changes_per_host, "work": options.works_per_host}
        self._announced: Tracked[str, Announced] = Tracked()
        self._moves: Tracked[str, Operation] = Tracked()
        self._stopped: Tracked[str, bool] = Tracked()
        self._restored = False
        self._chosen: SchedulingPolicy | None = None
        self._told: SchedulingPolicy | None = None
        self._waiting: tuple[Operation, ...] = ()

    @property
    def policy(self) -> SchedulingPolicy:
        """The policy in force: the one chosen last while it runs, else the config's."""
        return self._chosen or self._options.policy

    def choose(self, policy: SchedulingPolicy | None) -> None:
        """Go on by another policy, from the next turn on and after a restart; None for the config's."""
        self._chosen = policy
        log.info("the queue's policy was changed", policy=self.policy)

    @property
    def schedule(self) -> Schedule:
        """The schedule in force."""
        return Schedule(policy=self.policy, ageing_s=self._options.ageing_s, places=self._places)

    @property
    def crowded(self) -> bool:
        """Whether something waited for its turn when all were looked at last: nobody may be let past it."""
        return bool(self._waiting)

    def announced(self) -> Iterable[Announced]:
        """Return all work that was announced and has not ended."""
        return self._announced.values()

    def announce(self, work: Announcement, host: str, guest: str, now_ns: int) -> Announced | None:
        """Take an announcement, on a guest's UUID or a whole host; the same again only tells that somebody cares.

        None where too many wait already.
        """
        known = self._announced.get(work.id)
        if known is not None:
            return self.heard(work.id, now_ns) if known.work == work else known
        if len(self._announced) >= MAX_ANNOUNCED:
            return None
        known = self._announced[work.id] = Announced(
            work=work,
            host=host,
            guest=guest,
            standing=Standing.WAITING,
            announced_ns=now_ns,
            since_ns=now_ns,
            heard_ns=now_ns,
        )
        return known

    def heard(self, work: str, now_ns: int) -> Announced | None:
        """Return how announced work stands, and note that somebody cares; None where it is not known (any more)."""
        known = self._announced.get(work)
        if known is not None:
            known = self._announced[work] = msgspec.structs.replace(known, heard_ns=now_ns)
        return known

    def ended(self, work: str) -> Announced | None:
        """Take announced work off the queue, and return it; None where it was not on it."""
        return self._announced.pop(work, None)

    def began(self, command: str, operation: Operation, now_ns: int) -> None:
        """Note that a move is under way: its operation bears the id of its command from now on."""
        self._moves[command] = msgspec.structs.replace(operation, id=command, arrived_s=now_ns / SECOND)

    def stopping(self, command: str) -> None:
        """Note that a migration is being aborted for a shorter one."""
        self._stopped[command] = True

    def was_stopped(self, command: str) -> bool:
        """Tell whether a migration, which is under way or has just ended, was aborted for a shorter one."""
        return command in self._stopped

    def move(self, by_ns: int) -> None:
        """Move all that is remembered to another time: the clocks were set."""
        for work, one in self._announced.items():
            self._announced[work] = one.moved(by_ns)
        for command, move in self._moves.items():
            self._moves[command] = msgspec.structs.replace(move, arrived_s=move.arrived_s + by_ns / SECOND)

    def turn(self, moves: Iterable[Operation], flying: Collection[str], now_ns: int) -> Turn:
        """Return which moves are to begin, stop and wait; announced work is begun and paused here.

        `flying` are the commands under way: moves that are not among them have ended.
        """
        if self._restored:
            # Nobody could ask while nobody was here to answer.
            self._restored = False
            for work in self._announced:
                self.heard(work, now_ns)
        self._forget(flying, now_ns)
        waiting = [*moves, *(one.operation(now_ns) for one in self._standing(Standing.WAITING, Standing.PAUSED))]
        turn = self.schedule.turn(waiting, self._running(now_ns))
        self._waiting = tuple(one for one in waiting if one.id in turn.waiting)
        return Turn(
            begin=tuple(self._own(turn.begin, Standing.RUNNING, now_ns)),
            stop={victim: turn.stop[victim] for victim in self._own(turn.stop, Standing.PAUSED, now_ns)},
            waiting={id_: place for id_, place in turn.waiting.items() if not id_.startswith(WORK)},
        )

    def words(self, place: str) -> str:
        """Say what a waiting operation waits for."""
        kind, _blank, whose = place.partition(" ")
        return f"waits for its turn ({self.policy}): {_WORDS[kind].format(whose)}"

    def moves(self) -> Iterator[Operation]:
        """Give all migrations and memory changes that run or wait."""
        yield from self._moves.values()
        yield from (one for one in self._waiting if not one.id.startswith(WORK))

    def foresee(self, now_ns: int) -> dict[str, Run]:
        """Return when what runs and the first `FORESEEN` that wait will begin and end, if all is as predicted.

        The time that this takes grows faster than the square of how many wait; who runs and has nothing that they
        wait for costs nothing.
        """
        now_s, running = now_ns / SECOND, self._running(now_ns)
        first = sorted(self._waiting, key=self.schedule.rank)[:FORESEEN]
        places = frozenset(place for one in first for place in one.places)
        in_the_way = [one for one in running if places & one.places]
        apart = {one.id: _to_its_end(one, now_s) for one in running if not places & one.places}
        return apart | self.schedule.foresee(first, in_the_way, now_s)

    def _running(self, now_ns: int) -> list[Operation]:
        """Return what is under way; a move began when it arrived here."""
        now_s = now_ns / SECOND
        moves = [
            msgspec.structs.replace(move, done_s=min(max(now_s - move.arrived_s, 0.0), move.takes_s))
            for move in self._moves.values()
        ]
        return [*moves, *(one.operation(now_ns) for one in self._standing(Standing.RUNNING))]

    def _standing(self, *standings: Standing) -> list[Announced]:
        return [one for one in self._announced.values() if one.standing in standings]

    def _own(self, ids: Iterable[str], standing: Standing, now_ns: int) -> Iterator[str]:
        """Bring announced work into another standing, and yield the ids of all other operations."""
        for id_ in ids:
            if not id_.startswith(WORK):
                yield id_
                continue
            work = id_.removeprefix(WORK)
            self._announced[work] = self._announced[work].became(standing, now_ns)

    def _forget(self, flying: Collection[str], now_ns: int) -> None:
        for table in (self._moves, self._stopped):
            for command in [command for command in table if command not in flying]:
                del table[command]
        silent_ns = seconds(self._options.silent_s)
        for work, one in list(self._announced.items()):
            # In the future: the clock was set back, and it would be waited for without end.
            if now_ns - one.heard_ns < -silent_ns or now_ns - one.silent_ns > silent_ns:
                del self._announced[work]
                log.warning("announced work that nobody asks about is taken for over", work=work)

    def saved(self) -> object:
        """Return what survives a restart; `changes` counts from here."""
        list(self.changes())
        return Kept(policy=self._chosen, **{name: dict(table) for name, table in self._tables().items()})

    def _tables(self) -> Mapping[str, Tracked[str, Any]]:
        return {"announced": self._announced, "moves": self._moves, "stopped": self._stopped}

    def changes(self) -> Iterator[tuple[tuple[str, ...], object]]:
        """Return what has changed since the last call, by its place in what `saved` gives."""
        for name, items in self._tables().items():
            for key, value in items.changes().items():
                yield (name, key), value
        if self._told is not self._chosen:
            self._told = self._chosen
            yield ("policy",), self._chosen

    def restore(self, document: Any) -> None:
        """Take up where an earlier run ended; raises StateError for what was not saved here."""
        try:
            kept = msgspec.convert(document, Kept)
        except msgspec.ValidationError as error:
            raise StateError(f"the saved queue of operations is not readable: {error}") from error
        for name, table in self._tables().items():
            table.update(getattr(kept, name))
        self._chosen, self._restored = kept.policy, True


def _to_its_end(operation: Operation, now_s: float) -> Run:
    return Run(
        id=operation.id,
        arrived_s=operation.arrived_s,
        takes_s=operation.takes_s,
        begun_s=now_s,
        ended_s=now_s + operation.left_s,
    )
