"""The production controller on a virtual clock: samples in, records out, commands answered by a stand-in.

Rule tests and replay run on it: bus, evaluator, decider, guards, planner and signatures are those of production.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import groupby
from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from virtpilot.actuators.command import Signer
from virtpilot.actuators.guards.options import GuardOptions
from virtpilot.clock import SECOND, VirtualClock
from virtpilot.model import Command, HostStatus, Kind, Message, Mode, Sample
from virtpilot.pipeline import assembly
from virtpilot.pipeline.bus.memory import MemoryBroker
from virtpilot.pipeline.controller_config import ControllerConfig
from virtpilot.pipeline.operations.desk import SchedulingOptions
from virtpilot.pipeline.pilot import Pilot
from virtpilot.pipeline.records import Record, RecordLog
from virtpilot.pipeline.rulebook import Rulebook, RuleOptions
from virtpilot.pipeline.standin import Reply, StandIn
from virtpilot.pipeline.steering import SteeringOptions
from virtpilot.pipeline.timing import ControllerTiming
from virtpilot.pipeline.unwritten import Unwritten
from virtpilot.rules.language import RuleSet
from virtpilot.rules.signals.film.film import Film, can_foresee
from virtpilot.rules.signals.film.reels import Coming
from virtpilot.topics import Topics

CLUSTER: Final = "rehearsal"
MAX_RECORDS: Final = 1_000_000
# Nothing here is secret: the key seals what never leaves this process, and a fixed one keeps ids and runs the same.
_KEY: Final = bytes(32)
_FAR_NS: Final = 2**63 - 1


class Rehearsal:
    """Steps everything in one thread; `mode` takes the place of the rules' own."""

    def __init__(
        self,
        rules: RuleSet,
        start_ns: int,
        reply: Callable[[Command], Reply],
        *,
        mode: Mode | None = None,
        tick_s: float = 1.0,
        guards: GuardOptions = GuardOptions(),  # noqa: B008 - frozen
        scheduling: SchedulingOptions = SchedulingOptions(),  # noqa: B008 - frozen
    ) -> None:
        self.clock = VirtualClock(start_ns)
        self.topics = Topics(CLUSTER)
        self._tick_ns = round(tick_s * SECOND)
        self._each_tick = any(rule.on is Kind.CLUSTER for rule in rules.rules)
        self._acts = any(rule.remedies for rule in rules.rules)
        asked = {name for rule in rules.rules for name in rule.signals()}
        self.heeded = asked | {rule.name for rule in rules.rules if rule.remedies}
        """The rules of whose signals something may come."""
        self._settled = False
        self._sequence: dict[str, int] = {}
        self._hosts: set[str] = set()
        broker = MemoryBroker(self.clock)
        signer, public_key = _keys()
        self.controller = assembly.controller(
            _config(tick_s, guards, scheduling),
            bus=lambda will: broker.connect("controller", will),
            clock=self.clock,
            signer=signer,
            folder=None,
            rulebook=Rulebook(RuleOptions(modes={} if mode is None else {"*": mode}), rules),
        )
        # Where nothing is said of many and nothing done, nothing that was measured waits for a tick.
        self._at_once = not (self._each_tick or self._acts or len(self.controller.rulebook.evaluator.world.aggregates))
        self.controller.books.records = RecordLog(keep=MAX_RECORDS)
        self.controller.start()
        self._unwritten = Unwritten(self.controller.rulebook.wanted)
        self._bus = broker.connect("hosts")
        self.agents = StandIn(broker.connect("agents"), self.topics, {signer.key_id: public_key}, reply)

    def measure(self, host: str, samples: Sequence[Sample]) -> None:
        """Let the controller take what a host has measured, as one message."""
        self.measure_all({host: samples})

    def measure_all(self, told: Mapping[str, Sequence[Sample]]) -> None:
        """Let the controller take what hosts have measured, a message each: in turn where something may come of it."""
        heard = []
        for host, samples in told.items():
            self._announce(host)
            self._sequence[host] = self._sequence.get(host, 0) + 1
            heard.append((self._unwritten.lines(samples), self._message_id(host)))
            if self._acts:
                self.controller.take(heard)
                self.controller.step(0)
                heard = []
        if heard:
            self.controller.take(heard)
            self.controller.step(0)
        self._settled = self._at_once and not self.controller.rulebook.evaluator.silent(self.clock.now_ns())

    def _message_id(self, host: str) -> str:
        return f"{host}/{CLUSTER}/{self._sequence[host]}"

    def _announce(self, host: str) -> None:
        """Say once that a host is there and takes guests."""
        if host not in self._hosts:
            self._hosts.add(host)
            status = HostStatus(
                host=host, online=True, at_ns=self.clock.now_ns(), migration_uri=f"qemu+tcp://{host}/system"
            )
            self._bus.publish(Message(self.topics.status(host), msgspec.json.encode(status), retain=True))
            self.controller.step(0)

    def run_until(self, time_ns: int) -> None:
        """Let time pass, tick by tick, up to a time; ticks at which nothing can happen are left out."""
        while (left_ns := time_ns - self.clock.now_ns()) > 0:
            quiet_ns = self._quiet_ns()
            if quiet_ns > left_ns:
                self.clock.advance(left_ns / SECOND)
                self.controller.slept()
                self.controller.rulebook.evaluator.pass_time(time_ns)
                return
            self.clock.advance(min(left_ns, max(quiet_ns // self._tick_ns, 1) * self._tick_ns) / SECOND)
            self.agents.step(self.clock.now_ns())
            self.controller.step(0)
            self._settled = True

    def idle(self) -> bool:
        """Tell whether nothing is under way, so that only signals and effects can bring something about, and time."""
        decider = self.controller.pilot.decider
        if _waits(self.controller.pilot) or decider.next_ns() <= self.clock.now_ns():
            return False
        return all(can_foresee(expect.condition) for expect, _of, _over in decider.effects())

    def calm(self, film: Film, at: int) -> int:
        """Return up to which of a film's frames nothing comes of what is measured after one."""
        until = film.calm(at, self.heeded)
        for expect, subject_id, over in self.controller.pilot.decider.effects():
            until = min(until, film.unseen(expect.condition, subject_id, at, known=over))
        return until

    def due_ns(self) -> float:
        """Return when something happens even if no signal changes, infinite for never."""
        agents_ns = self.agents.next_ns()
        return min(self.controller.pilot.decider.next_ns(), math.inf if agents_ns is None else agents_ns)

    def film(self, coming: Coming) -> Film | None:
        """Return what is to be measured, as a film; None where that is not just more of what was."""
        return self.controller.rulebook.evaluator.film(coming, self._tick_ns if self._each_tick else 0)

    def play(self, film: Film, at: int, until: int) -> None:
        """Let time pass up to a film's frame, with the signals that come of which nothing does.

        Who looks on has to `put` that frame.
        """
        known = dict(self._sequence)
        for (frame, at_ns), changes in groupby(film.play(at, until), key=lambda one: (one.frame, one.at_ns)):
            self._sequence = {host: number + frame - at for host, number in known.items()}
            self.clock.advance((at_ns - self.clock.now_ns()) / SECOND)
            self.controller.follow([film.signal(one, self._message_id) for one in changes], self.clock.now_ns())
        self._sequence = known
        self._pass(film.time_ns(until))

    def put(self, film: Film, at: int, until: int, last: Mapping[str, Sequence[Sample]]) -> None:
        """Take it that a film's frames after `at`, up to one, were measured; `last` is what that frame's hosts say."""
        for host in last:
            self._sequence[host] += until - at
        film.put(at, until, self._message_id)
        others = (sample for samples in last.values() for sample in samples)
        self.controller.rulebook.evaluator.pass_time(film.time_ns(until), others)
        self._pass(film.time_ns(until))

    def _pass(self, time_ns: int) -> None:
        """Let time pass without a tick."""
        self.clock.advance((time_ns - self.clock.now_ns()) / SECOND)
        self.controller.slept()
        self._settled = self._at_once

    def _quiet_ns(self) -> int:
        """Return for how long nothing can happen if nothing is measured, 0 where something may at the next tick."""
        controller, now_ns = self.controller, self.clock.now_ns()
        # What is said of many is taken at the tick after a sample; of the cluster each tick is a sample.
        if not self._settled or self._each_tick or _waits(controller.pilot):
            return 0
        decided_ns = controller.pilot.next_ns()
        if decided_ns <= now_ns:
            return 0
        due = (self.agents.next_ns(), controller.rulebook.evaluator.next_silence_ns(now_ns))
        return int(min(decided_ns, _FAR_NS, *(at_ns for at_ns in due if at_ns is not None))) - now_ns

    def records(self) -> Iterator[Record]:
        """Yield what came to be, in order."""
        return (entry.record for entry in self.controller.entries())


@cache
def _keys() -> tuple[Signer, Ed25519PublicKey]:
    key = Ed25519PrivateKey.from_private_bytes(_KEY)
    return Signer(key), key.public_key()


def _config(tick_s: float, guards: GuardOptions, scheduling: SchedulingOptions) -> ControllerConfig:
    return ControllerConfig(
        cluster=CLUSTER,
        sampling=SteeringOptions(every_s=0),
        guards=guards,
        scheduling=scheduling,
        timing=ControllerTiming(tick_s=tick_s),
    )


def _waits(pilot: Pilot) -> bool:
    """Tell whether somebody waits for a turn, or has work of which nobody knows when it ends."""
    return pilot.desk.crowded or any(pilot.desk.announced())
