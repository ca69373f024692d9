"""A film: frames to come, each a sample of every subject, seen at once; up to which of them no signal changes.

The rules' own conditions are evaluated, by columns whose rows are moments. A film decides nothing: where it shows that
a signal may change, the evaluator takes that frame's samples as ever. It stays right as long as its frames are what
comes; where rules ask for signals only until one changes (`renew`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from virtpilot.model import Kind, Signal
from virtpilot.rules.language.devices import Of
from virtpilot.rules.language.expression import Condition
from virtpilot.rules.language.records import Rule
from virtpilot.rules.language.typed import Aggregate, Numbers, Window
from virtpilot.rules.signals.aggregates import Members, evaluate
from virtpilot.rules.signals.columns import masks
from virtpilot.rules.signals.film.columns import FilmColumns
from virtpilot.rules.signals.film.outlook import Outlook
from virtpilot.rules.signals.film.past import Past
from virtpilot.rules.signals.film.reels import Coming, Reel, reels
from virtpilot.rules.signals.intake import Intake
from virtpilot.rules.signals.machine import CLEARING, FIRING, INACTIVE, PENDING, Given, Machine
from virtpilot.rules.signals.made import signal_of
from virtpilot.rules.signals.panel import Panel
from virtpilot.rules.signals.reading import inputs_at
from virtpilot.rules.signals.tolerance import Tolerance
from virtpilot.rules.signals.windows import Track
from virtpilot.rules.signals.world import World

Mask = NDArray[np.bool_]
# How often each of several conditions is true, and how often false.
Counted = tuple[list[int], list[int]]


class Film:
    """What the rules see of the frames to come; frame 0 is what the tables held when it was made."""

    def __init__(self, world: World, reels: Mapping[Of, Reel]) -> None:
        self.world = world
        self.reels = reels
        self._columns: dict[Of, FilmColumns] = {}
        self._outlooks: dict[Of, Outlook] = {}
        self._windows: dict[tuple[Of, str], Numbers] = {}
        self._aggregates: dict[tuple[Kind, str], Numbers] = {}
        self._sights: dict[str, _Sight] = {}
        self._resting: dict[str, bool] = {}
        self._counts: dict[int, tuple[Panel, tuple[NDArray[np.int64], NDArray[np.int64]]]] = {}
        rules = [machine.rule for kind in Kind for machine in world.bank.machines(kind)]
        self._asking = [rule for rule in rules if rule.signals()]
        # Now, before any of the frames is put: what comes later would be counted as past and once more as to come.
        kinds = [kind for kind, reel in reels.items() if len(reel.rows)]
        self._pasts = {id(track): self._past(kind, track) for kind in kinds for track in world.windows.about(kind)}

    @property
    def frames(self) -> int:
        """The number of the last frame."""
        return len(self.reels[Kind.HOST].times) - 1

    def time_ns(self, frame: int) -> int:
        """Return a frame's time."""
        return int(self.reels[Kind.HOST].times[frame])

    def renew(self) -> bool:
        """Look anew at what rules ask of signals, of which some may have changed; False where that cannot be done."""
        asked = [condition.reads for rule in self._asking for condition in rule.conditions()]
        if any(one.reads.signals for reads in asked for one in reads.aggregates.values()):
            return False  # these are kept from one moment to the next, in windows too
        for rule in self._asking:
            self._sights.pop(rule.name, None)
        self._counts = {key: known for key, known in self._counts.items() if not known[0].asks}
        return True

    def columns(self, kind: Of) -> FilmColumns:
        """Return the inputs of all moments of a kind."""
        found = self._columns.get(kind)
        if found is None:
            found = self._columns[kind] = FilmColumns(self, kind)
        return found

    def outlook(self, kind: Of) -> Outlook:
        """Return what can be seen at little cost of a kind's moments."""
        found = self._outlooks.get(kind)
        if found is None:
            found = self._outlooks[kind] = Outlook(self, kind)
        return found

    def past(self, track: Track) -> Past:
        """Return the points of a track at each moment."""
        return self._pasts[id(track)]

    def _past(self, kind: Of, track: Track) -> Past:
        reel = self.reels[kind]
        shape = (len(reel.times), len(reel.rows))

        def told() -> list[Numbers]:
            with np.errstate(all="ignore"):
                return [one.reshape(shape) for one in track.read(self.columns(kind), shape[0] * shape[1])]

        return Past(track, reel, told)

    def window(self, window: Window) -> Numbers:
        """Return what a window says at each moment of each row."""
        found = self._windows.get(window.key)
        if found is None:
            track, first = self.world.windows.track(window)
            reel = self.reels[window.on]
            nobody = np.zeros((len(reel.times), 0))
            found = self._windows[window.key] = self.past(track).value(first) if len(reel.rows) else nobody
        return found

    def aggregate(self, aggregate: Aggregate) -> Numbers:
        """Return an aggregate over hosts or guests as of each frame: of each host, or (one column) of the cluster."""
        found = self._aggregates.get(aggregate.key)
        if found is None:
            assert isinstance(aggregate.members, Kind)  # noqa: S101 - others are read with their owners
            reel, frames = self.reels[aggregate.members], self.frames + 1
            groups = 1 if aggregate.scope is Kind.CLUSTER else len(self.reels[Kind.HOST].rows)
            own = np.zeros(len(reel.rows), np.int64) if aggregate.scope is Kind.CLUSTER else reel.owners
            numbered = np.where(own >= 0, np.arange(frames)[:, None] * groups + own, -1).ravel()
            members = Members(self.columns(aggregate.members), numbered, frames * groups, np.tile(reel.rows, frames))
            found = self._aggregates[aggregate.key] = evaluate(aggregate, members).reshape(frames, groups)
        return found

    def calm(self, at: int, heeded: Collection[str]) -> int:
        """Return up to which frame no signal of some rules changes after `at`, which is the newest in the tables."""
        until = self.frames
        with np.errstate(all="ignore"):
            for kind in (Kind.HOST, Kind.VM, Kind.CLUSTER):
                reel = self.reels.get(kind)
                if reel is None or not len(reel.rows):
                    continue
                moment = reel.last(at)
                for machine in self.world.bank.machines(kind) if heeded else ():
                    if machine.rule.name in heeded:
                        until = min(until, self._calm(machine, reel, moment))
                    if until == at:
                        return at
        return until

    def unseen(self, condition: Condition, subject_id: str, at: int, *, known: bool) -> int:
        """Return up to which frame a condition holds of a subject at no tick from that after `at` on, or to the end.

        With `known` it is not false either. Where it is otherwise at once it is `at`.
        """
        reel, row = self.reels[condition.on], self.world.tables[condition.on].row_of.get(subject_id)
        place = np.flatnonzero(reel.rows == row)
        if not len(place):
            return at
        shape = (len(reel.times), len(reel.rows))
        with np.errstate(all="ignore"):
            true, false = masks(condition, FilmColumns(self, condition.on, delay=0), shape[0] * shape[1])
        seen = ((true | false) if known else true).reshape(shape)[at:, place[0]]
        return max(at, at + int(seen.argmax()) - 1) if seen.any() else self.frames

    def _calm(self, machine: Machine, reel: Reel, moment: int) -> int:
        """Return the frame before that in which a machine may change after a moment."""
        first = self._next(machine, reel, moment)
        return self.frames if first is None else int(reel.frames[first]) - 1

    def _next(self, machine: Machine, reel: Reel, moment: int) -> int | None:
        """Return the moment at which a machine may change after a moment, None for never."""
        if not machine.active[0] and self._rests(machine.rule):
            return None
        sight = self._sight(machine, reel)
        if machine.active[0]:
            changes = _changes(machine, reel, moment, sight).any(axis=1)
            return moment + 1 + int(changes.argmax()) if changes.any() else None
        after = bisect_right(sight.rising, moment)
        return sight.rising[after] if after < len(sight.rising) else None

    def play(self, at: int, until: int) -> list[Transition]:
        """Let the machines go through the frames after `at`, up to one; returns the transitions in order.

        Each goes its way by itself: no rule asks for a signal that changes.
        """
        found: list[Transition] = []
        with np.errstate(all="ignore"):
            for kind, reel in self.reels.items():
                first, last = reel.last(at) + 1, reel.last(until)
                if first <= last and len(reel.rows) and isinstance(kind, Kind):
                    for number, machine in self.world.bank.numbered(kind):
                        found += self._played(number, machine, reel, first, last)
        # Ticks come before the samples of their time; of those each has its place in the frame.
        return sorted(found, key=lambda one: (one.frame, one.at_ns, one.order, one.number))

    def _played(self, number: int, machine: Machine, reel: Reel, first: int, last: int) -> Iterator[Transition]:
        """Let a machine go through some moments."""
        while first <= last:
            change = self._next(machine, reel, first - 1)
            calm = last if change is None else min(change - 1, last)
            if first <= calm:
                _go_on(machine, reel, first, calm)
            if change is None or change > last:
                return
            given = Given(*(one[change] for one in self._sight(machine, reel).given))
            at_ns, frame = int(reel.times[change]), int(reel.frames[change])
            times = np.full(len(reel.rows), at_ns)
            states = machine.state[reel.rows]
            for place, old, new in machine.go(given, states, reel.rows, times, reel.patience[change]):
                row, of = int(reel.rows[place]), change * len(reel.rows) + place
                yield Transition(frame, at_ns, reel.orders[place], number, machine.rule, row, of, old, new)
            first = change + 1

    def signal(self, one: Transition, cause: Callable[[str], str]) -> Signal:
        """Return the signal of a transition; `cause` gives the id of a host's message of that frame."""
        subject = self.world.tables[one.rule.on].subjects[one.row]
        assert subject is not None  # noqa: S101 - a row of a reel belongs to a subject
        inputs = inputs_at(self.world, self.columns(one.rule.on), one.rule.when, one.place)
        told = f"tick/{one.at_ns}" if one.rule.on is Kind.CLUSTER else cause(subject.host)
        return signal_of(one.rule, subject, told, inputs, (one.old, one.new), one.at_ns)

    def _rests(self, rule: Rule) -> bool:
        """Tell whether a rule is easily seen to fire nowhere."""
        found = self._resting.get(rule.name)
        if found is None:
            found = self._resting[rule.name] = not self.outlook(rule.on).fires(rule)
        return found

    def _sight(self, machine: Machine, reel: Reel) -> _Sight:
        """Return what a rule's conditions say at each moment."""
        found = self._sights.get(machine.rule.name)
        if found is None:
            shape = (len(reel.times), len(reel.rows))
            told = machine.given(self.columns(reel.kind), np.repeat(reel.times, len(reel.rows)))
            given = Given(*(np.broadcast_to(one, shape[0] * shape[1]).reshape(shape) for one in told))
            rising = np.flatnonzero(given.fires.any(axis=1)).tolist()
            found = self._sights[machine.rule.name] = _Sight(given, rising)
        return found

    def counts(self, panel: Panel, first: int, last: int) -> Counted:
        """Return how often each condition of a panel is true, and how often false, in some frames with the last."""
        known = self._counts.get(id(panel))
        if known is None:
            known = self._counts[id(panel)] = (panel, self._counted(panel))
        true, false = (one[last + 1] - one[first] for one in known[1])
        return true.tolist(), false.tolist()

    def _counted(self, panel: Panel) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Count the conditions of a panel before each frame and after the last, a column a condition."""
        reel = self.reels[panel.kind]
        shape = (len(panel.conditions), len(reel.times), len(reel.rows))
        outlook = self.outlook(panel.kind)
        found = panel.look(self.columns(panel.kind), shape[1] * shape[2], lambda one: outlook.unknown(one.part))
        # Of the cluster's ticks the last one before each frame.
        moments = slice(None) if shape[1] == self.frames + 1 else reel.lasts
        counts = [np.zeros((self.frames + 2, shape[0]), np.int64) for _ in found]
        for count, one in zip(counts, found, strict=True):
            one.reshape(shape)[:, moments].sum(axis=2).T.cumsum(axis=0, out=count[1:])
        true, false = counts
        return true, false

    def newest(self, kind: Kind, frame: int) -> dict[str, int]:
        """Return all subjects of a kind, each with the time of its newest sample as of a frame."""
        reel, subjects = self.reels[kind], self.world.tables[kind].subjects
        at_ns = int(reel.times[reel.last(frame)])
        return {subject.id: at_ns for row in reel.rows.tolist() if (subject := subjects[row]) is not None}

    def put(self, at: int, until: int, cause: Callable[[str], str]) -> None:
        """Put the frames after `at`, up to one, into the tables and histories.

        `cause` gives the id of a host's last message.
        """
        for kind, reel in self.reels.items():
            first, last = reel.last(at) + 1, reel.last(until)
            if first > last or not len(reel.rows):
                continue
            self._put(kind, reel, last, cause)
            for track in self.world.windows.about(kind):
                told = [one[first : last + 1] for one in self.past(track).told]
                track.push_all(reel.where, reel.times[first : last + 1], told)

    def _put(self, kind: Of, reel: Reel, last: int, cause: Callable[[str], str]) -> None:
        table = self.world.tables[kind]
        subjects = [table.subjects[row] for row in reel.rows.tolist()]
        told = [
            f"tick/{reel.times[last]}" if kind is Kind.CLUSTER else cause(one.host if one else "") for one in subjects
        ]
        table.values[:, reel.where] = reel.values[:, last]
        table.time[reel.where], table.interval[reel.where] = reel.times[last], reel.intervals[last]
        table.causes[reel.where] = np.array(told, np.object_)


def can_foresee(condition: Condition) -> bool:
    """Tell whether a film shows what a condition says at the tick after each frame."""
    return condition.on is not Kind.CLUSTER and not condition.reads.signals


class Transition(NamedTuple):
    """A machine's change of state: in which frame, when, of whose sample in it, by which rule."""

    frame: int
    at_ns: int
    order: int
    number: int
    rule: Rule
    row: int
    place: int
    """The row's place among all moments of its kind."""
    old: int
    new: int


class _Sight(NamedTuple):
    """What a rule's conditions say, moments by rows, and the moments at which they fire for somebody."""

    given: Given
    rising: list[int]


def _changes(machine: Machine, reel: Reel, moment: int, sight: _Sight) -> Mask:
    """Tell whose state may change at each moment after one, by rows."""
    fires, _gives_up, clears, _stays, void = (one[moment + 1 :] for one in sight.given)
    state, times = machine.state[reel.rows], reel.times[moment + 1 :, None]
    lasts = times - machine.since[reel.rows]
    before = np.where(np.arange(len(times))[:, None] == 0, machine.seen[reel.rows], reel.times[moment:-1, None])
    # After a gap what is waited for begins again.
    again = times - before > reel.patience[moment + 1 :]
    # Where a rule does not apply nothing fires or clears.
    changes: Mask = (state == INACTIVE) & fires
    changes |= (state == PENDING) & (~fires | again | (lasts >= machine.rule.for_ns))
    changes |= (state == FIRING) & (clears | void)
    changes |= (state == CLEARING) & (~clears | again | (lasts >= machine.rule.clear_for_ns))
    return changes


def film_of(world: World, intake: Intake, coming: Coming, tick_ns: int, rest: Tolerance) -> Film | None:
    """Return frames to come as a film, None where they are not just more of the same; see `reels`."""
    found = reels(world, intake, coming, tick_ns, rest)
    return None if found is None else Film(world, found)


def _go_on(machine: Machine, reel: Reel, first: int, last: int) -> None:
    """Let a machine's rows be as they are after calm moments."""
    state = machine.state[reel.rows]
    if not state.any():
        return
    rows = reel.rows[(state == PENDING) | (state == CLEARING)]
    firing = np.flatnonzero(state == FIRING)
    times = reel.times[first : last + 1, None]
    for place in firing.tolist():
        row = reel.rows[place]
        late = times[:, 0] - machine.seen[row] > reel.patience[first : last + 1, place]
        if late.any():
            machine.since[row] = times[np.flatnonzero(late)[-1], 0]
    machine.seen[rows] = reel.times[last]
    if machine.fired is not None:
        machine.fired[reel.rows[state >= FIRING]] = reel.times[last]
