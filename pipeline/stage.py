"""What the hosts and guests of a rule test measure, tick by tick, where commands have put them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from virtpilot.model import Kind, Sample
from virtpilot.pipeline.rehearsal import CLUSTER
from virtpilot.pipeline.standin import StandIn
from virtpilot.rules.signals.film.reels import Column, Coming
from virtpilot.rules.testing.records import Actor, Measured, RuleTest
from virtpilot.rules.testing.series import Series

GIB: Final = float(2**30)
# What the planner and the guards read of every host and guest, where a test does not say otherwise.
USUAL: Final[Mapping[Kind, Mapping[str, float]]] = {
    Kind.HOST: {
        "cpu_usage_ratio": 0.3,
        "cpus_count": 8.0,
        "memory_total_bytes": 64 * GIB,
        "memory_available_bytes": 32 * GIB,
    },
    Kind.VM: {"state_code": 1.0, "cpu_usage_ratio": 0.5, "vcpus_count": 2.0, "memory_balloon_bytes": 4 * GIB},
}
Fields = dict[str, int | float]


class _Line:
    """What is said at each tick of one thing: fields that stay, series with the tick that each began at."""

    def __init__(
        self,
        measurement: str,
        tags: dict[str, str],
        series: Sequence[tuple[str, Series, int]],
        usual: Fields,
        state: Fields,
    ) -> None:
        self.measurement, self.tags = measurement, tags
        self._series, self._usual, self._state = series, usual, state
        self._tick: int | None = None
        self._told: Fields | None = None
        self._fields: Fields = {}

    def fields(self, tick: int) -> Fields:
        """Return what is said at a tick, the very same while nothing changes; nothing where all series are missing."""
        if tick == self._tick:
            return self._fields
        self._tick = tick
        told = {name: value for name, one, began in self._series if (value := one.at(tick - began)) is not None}
        if told != self._told:
            self._told = told
            self._fields = self._usual | told | self._state if told or not self._series else {}
        return self._fields

    def ahead(self, first: int, last: int) -> tuple[dict[str, Column], NDArray[np.bool_]]:
        """Return what `fields` gives at several ticks, and at which of them it is something."""
        columns: dict[str, Column] = dict(self._usual)
        told = np.full(last - first + 1, not self._series)
        for name, one, began in self._series:
            columns[name] = values = one.between(first - began, last - began)
            told |= np.isfinite(values)
        return columns | self._state, told


class _Part(NamedTuple):
    """One subject with its devices and knobs."""

    own: _Line
    others: tuple[_Line, ...]


class Stage:
    """A test's hosts and guests; `agents` know where guests are by now, and how they are set."""

    def __init__(self, test: RuleTest, agents: StandIn) -> None:
        self._test = test
        self._agents = agents
        self._then: dict[str, tuple[int, Measured]] = {}
        self._known: object = None
        self._lines: dict[str, list[tuple[_Line, _Line]]] = {}

    def change(self, guest: str, at_ns: int, then: Measured) -> None:
        """Let other series of a guest begin."""
        self._then[guest] = (at_ns, then)

    def state(self) -> object:
        """Return what is measured by, beside the tick."""
        agents = self._agents
        return dict(agents.places), dict(agents.states), dict(agents.knobs), dict(self._then)

    def frame(self, tick: int) -> dict[str, list[Sample]]:
        """Return what each host measures at a tick, subjects last, as things stand; nothing of who is silent."""
        state = self.state()
        if state != self._known:
            self._known, self._lines = state, self._set()
        time_ns = self._test.start_ns + tick * self._test.every_ns
        found = {
            host: [
                Sample(line.measurement, line.tags, fields, time_ns)
                for line, own in lines
                if own.fields(tick) and (fields := line.fields(tick))
            ]
            for host, lines in self._lines.items()
        }
        return {host: samples for host, samples in found.items() if samples}

    def coming(self, first: int, last: int) -> Coming:
        """Return what `frame` gives at several ticks, from one on, as long as it is of the same as at that."""
        samples = [sample for told in self.frame(first).values() for sample in told]
        seen = {id(line): line.ahead(first, last) for lines in self._lines.values() for line, _own in lines}
        pairs = [(seen[id(line)], seen[id(own)][1]) for lines in self._lines.values() for line, own in lines]
        there = np.array([told & of_own for (_columns, told), of_own in pairs])
        others = np.flatnonzero((there != there[:, :1]).any(axis=0))
        count = int(others[0]) if len(others) else there.shape[1]
        times = self._test.start_ns + np.arange(first, first + count) * self._test.every_ns
        told = [columns for ((columns, _told), _of_own), one in zip(pairs, there, strict=True) if one[0]]
        return Coming(samples, times, told)

    def _set(self) -> dict[str, list[tuple[_Line, _Line]]]:
        """Return what is said on each host now, each line with the own one of whom it is about: of all of them last."""
        actors, places = self._test.actors, self._agents.places
        found: dict[str, list[_Part]] = {actor.host: [] for actor in actors}
        for actor in {actor.id: actor for actor in actors}.values():
            host = places.get(actor.id, actor.host)
            if host in found:
                found[host].append(self._part(actor, host))
        return {
            host: [(line, part.own) for part in parts for line in part.others]
            + [(part.own, part.own) for part in parts]
            for host, parts in found.items()
        }

    def _part(self, actor: Actor, host: str) -> _Part:
        tags = {"cluster": CLUSTER, "host": host, **actor.tags}
        if actor.kind is Kind.VM:
            tags |= {"vm": actor.id, "name": actor.name}
        started, (since_ns, then) = dict.fromkeys(actor.series, 0), self._then.get(actor.id, (0, {}))
        # The first sample after what was done is the first of what comes then.
        began = 1 + (since_ns - self._test.start_ns) // self._test.every_ns
        series = actor.series | then
        started |= dict.fromkeys(then, began)
        states = self._agents.states
        return _Part(
            _Line(
                actor.kind.value,
                tags,
                tuple((name, one, started[name]) for name, one in series.items()),
                {name: value for name, value in USUAL[actor.kind].items() if name not in series},
                {"state_code": states[actor.id]} if actor.id in states else {},
            ),
            (
                *(
                    _Line(one.measurement, tags | one.tags, [(name, s, 0) for name, s in one.series.items()], {}, {})
                    for one in actor.devices
                ),
                *(
                    _Line("knob", tags | {"knob": knob}, (), {"value_count": value}, {})
                    for (guest, knob), value in self._agents.knobs.items()
                    if guest == actor.id
                ),
            ),
        )
