"""What the hosts and guests of a rule test measure, tick by tick, where commands have put them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from virtpilot.model import Kind, Sample
from virtpilot.pipeline.rehearsal import CLUSTER
from virtpilot.pipeline.standin import StandIn
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


class _Line(NamedTuple):
    """What is said at each tick of one thing: fields that stay, series with the tick that each began at."""

    measurement: str
    tags: dict[str, str]
    series: tuple[tuple[str, Series, int], ...]
    usual: Fields
    state: Fields

    def told(self, tick: int) -> Fields:
        """Return the values that series have at a tick."""
        told = ((name, one.at(tick - began)) for name, one, began in self.series)
        return {name: value for name, value in told if value is not None}


class _Part(NamedTuple):
    """One subject with its devices and knobs."""

    own: _Line
    devices: tuple[_Line, ...]
    knobs: tuple[_Line, ...]

    def samples(self, tick: int, time_ns: int) -> Iterator[Sample]:
        """Yield what is measured at a tick; nothing where all series have ended or are missing."""
        own, told = self.own, self.own.told(tick)
        if own.series and not told:
            return
        for device in self.devices:
            fields = device.told(tick)
            if fields:
                yield Sample(device.measurement, device.tags, fields, time_ns)
        yield Sample(own.measurement, own.tags, own.usual | told | own.state, time_ns)
        for knob in self.knobs:
            yield Sample(knob.measurement, knob.tags, knob.usual, time_ns)


class Stage:
    """A test's hosts and guests; `agents` know where guests are by now, and how they are set."""

    def __init__(self, test: RuleTest, agents: StandIn) -> None:
        self._test = test
        self._agents = agents
        self._then: dict[str, tuple[int, Measured]] = {}
        self._known: object = None
        self._parts: dict[str, list[_Part]] = {}

    def change(self, guest: str, at_ns: int, then: Measured) -> None:
        """Let other series of a guest begin."""
        self._then[guest] = (at_ns, then)

    def state(self) -> object:
        """Return what is measured by, beside the tick."""
        agents = self._agents
        return dict(agents.places), dict(agents.states), dict(agents.knobs), dict(self._then)

    def frame(self, tick: int) -> dict[str, list[Sample]]:
        """Return what each host measures at a tick, as things stand; nothing of those that are silent."""
        state = self.state()
        if state != self._known:
            self._known, self._parts = state, self._set()
        time_ns = self._test.start_ns + tick * self._test.every_ns
        found = {
            host: [sample for part in parts for sample in part.samples(tick, time_ns)]
            for host, parts in self._parts.items()
        }
        return {host: samples for host, samples in found.items() if samples}

    def _set(self) -> dict[str, list[_Part]]:
        """Return who is on each host now: itself, then its guests."""
        actors, places = self._test.actors, self._agents.places
        found: dict[str, list[_Part]] = {actor.host: [] for actor in actors}
        for actor in {actor.id: actor for actor in actors}.values():
            host = places.get(actor.id, actor.host)
            if host in found:
                found[host].append(self._part(actor, host))
        return found

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
            tuple(
                _Line(one.measurement, tags | one.tags, tuple((name, s, 0) for name, s in one.series.items()), {}, {})
                for one in actor.devices
            ),
            tuple(
                _Line("knob", tags | {"knob": knob}, (), {"value_count": value}, {})
                for (guest, knob), value in self._agents.knobs.items()
                if guest == actor.id
            ),
        )
