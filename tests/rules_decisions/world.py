"""A small world around the decider: guards that accept or not, agents that answer, a meter that says what holds."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
from hypothesis import strategies as st

from virtpilot.action import Action, Migrate, SetKnob
from virtpilot.clock import SECOND, seconds
from virtpilot.model import Command, Decision, Kind, Outcome, Result, Signal, SignalState, Subject, record_id
from virtpilot.rules.decisions.decider import Decider, Want
from virtpilot.rules.language import RuleSet, load
from virtpilot.rules.language.expression import Condition
from virtpilot.rules.language.records import SetRemedy

START_NS = 1_700_000_000 * SECOND

STARVED = """
  - name: starved
    on: vm
    when: cpu_steal_ratio > 10%
    priority: 70
    mode: act
    cooldown: 10m
    remedies:
      - set: {cpu_shares: current * 2}
        lease: 15m
        expect: cpu_steal_ratio < 8% within 2m
      - migrate: {to: best}
        expect: cpu_steal_ratio < 5% within 5m
"""
SLOW = """
  - name: slow
    on: vm
    when: cpu_usage_ratio > 90%
    priority: 70
    mode: act
    remedies:
      - set: {cpu_shares: current * 1.5}
        lease: 5m
        expect: cpu_usage_ratio < 80% within 1m
"""
CROWDED = """
  - name: crowded
    on: vm
    when: memory_used_ratio > 90%
    priority: 30
    mode: act
    cooldown: 2m
    remedies:
      - migrate: {to: best}
"""


def ruleset(*rules: str) -> RuleSet:
    """Return rules as the language reads them."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "rules.yaml"
        file.write_text("virtpilot: 1\nrules:" + "".join(rules), encoding="utf-8")
        return load([file])


ALL = ruleset(STARVED, SLOW, CROWDED)


class _Row(msgspec.Struct):
    time_ns: int
    values: Mapping[str, float]


class Meter:
    """Says of each guest whether its expectations hold, by samples that are always fresh."""

    def __init__(self) -> None:
        self.now_ns = START_NS
        self.truth: dict[str, bool | None] = {}
        self.gone: set[str] = set()

    def holds(self, condition: Condition, subject_id: str, after_ns: int) -> bool | None:
        return self.truth.get(subject_id, False) if self.now_ns > after_ns else None

    def inputs(self, condition: Condition, subject_id: str, *more: Condition) -> dict[str, float]:
        names = (name for one in (condition, *more) for _, name in one.fields)
        return dict.fromkeys(names, (self.now_ns - START_NS) / SECOND)

    def row(self, kind: Kind, subject_id: str) -> _Row | None:
        return None if subject_id in self.gone else _Row(self.now_ns, {})

    def knob(self, guest: str, knob: str) -> tuple[float, int] | None:
        return 1024.0, self.now_ns


Make = Callable[[RuleSet], Decider]


class World:
    """Runs a script against a decider and writes down all that it says; keeps what must never happen from happening."""

    def __init__(self, make: Make, rules: RuleSet = ALL, *, restart: Make | None = None, twice: bool = False) -> None:
        self.rules = rules
        self.decider = make(rules)
        self.meter = Meter()
        self.accepts = True
        self.log: list[object] = []
        self.firing: set[tuple[str, str]] = set()
        self.open: list[tuple[Command, Want]] = []
        self.returning: list[tuple[str, Command]] = []
        self.past: list[Signal | Outcome] = []
        self._restart = restart
        self._twice = twice
        self._commanded: set[tuple[str, str, str, int, int]] = set()
        self._released: set[str] = set()
        self._lost: set[str] = set()

    @property
    def now_ns(self) -> int:
        return self.meter.now_ns

    def signal(self, rule: str, guest: str, state: SignalState) -> None:
        subject = Subject(Kind.VM, guest, guest, "h1")
        known = (rule, guest)
        (self.firing.add if state is SignalState.FIRING else self.firing.discard)(known)
        self.deliver(
            Signal(
                id=record_id("sg", rule, guest, state, self.now_ns),
                cause="sample",
                rule=rule,
                subject=subject,
                previous=SignalState.PENDING,
                state=state,
                at_ns=self.now_ns,
                inputs={"cpu_steal_ratio": 0.5},
            )
        )
        self.settle()

    def answer(self, result: Result) -> Outcome | None:
        if not self.open:
            return None
        command, want = self.open.pop(0)
        outcome = self._outcome(command, want.subject.id, result)
        self.deliver(outcome)
        self.settle()
        return outcome

    def give_back(self) -> None:
        if self.returning:
            guest, command = self.returning.pop(0)
            self.deliver(self._outcome(command, guest, Result.REVERTED))
            self.settle()

    def wait(self, duration_s: float) -> None:
        self.meter.now_ns += seconds(duration_s)
        self.settle()

    def hold(self, guest: str, truth: bool | None) -> None:
        self.meter.truth[guest] = truth
        self.settle()

    def allow(self, accepts: bool) -> None:
        self.accepts = accepts
        self.settle()

    def deliver(self, record: Signal | Outcome) -> None:
        self._tell(record)
        if self._twice:
            for earlier in [record, *self.past[-5:]]:
                self._tell(earlier)
        self.past.append(record)

    def settle(self) -> None:
        """One step of a controller, a nanosecond later."""
        self.meter.now_ns += 1
        if self._restart is not None:
            document = json.loads(json.dumps(self.decider.snapshot()))
            self.decider = self._restart(self.rules)
            self.decider.restore(document)
        for outcome in self.decider.measure(self.now_ns, self.meter):
            self.log.append(outcome)
            if outcome.result is Result.FAILED:
                self._lost.add(outcome.command)
            self.deliver(outcome)
        winners, losers = self.decider.wants(self.now_ns)
        for want, reason in losers:
            self._refuse(want, "arbiter", reason)
        for want in winners:
            assert (want.rule, want.subject.id) in self.firing, "wanted although its signal does not fire"
            self._decide(want)
        self._take_releases()
        self.log += self.decider.exhausted()

    def _tell(self, record: Signal | Outcome) -> None:
        (self.decider.on_signal if isinstance(record, Signal) else self.decider.on_outcome)(record)  # type: ignore[arg-type]

    def _decide(self, want: Want) -> None:
        waiting = {known.subject.id for command, known in self.open if command.id not in self._lost}
        if want.subject.id in waiting:
            assert want.blocked or any(known.blocked for _, known in self.open), "a second operation on one guest"
            self._refuse(want, "concurrency", "something is under way")
        elif self.accepts:
            self._accept(want)
        else:
            self._refuse(want, "budget", f"{self.now_ns} is too early")

    def _accept(self, want: Want) -> None:
        about = (want.rule, want.subject.id, want.cause, want.rung, want.attempt)
        assert about not in self._commanded, "commanded twice"
        self._commanded.add(about)
        decision = self._decision(want, accepted=True)
        command = Command(
            id=record_id("cm", decision.id),
            cause=decision.id,
            host="h1",
            action=_action(want),
            rule=want.rule,
            issued_ns=self.now_ns,
            not_after_ns=self.now_ns + seconds(30),
            epoch=1,
        )
        assert self.decider.on_decision(decision, command, self.now_ns)
        self.open.append((command, want))
        self.log += [decision, command]

    def _refuse(self, want: Want, guard: str, reason: str) -> None:
        decision = self._decision(want, accepted=False, guard=guard, reason=reason)
        if self.decider.on_decision(decision, None, self.now_ns):
            self.log.append(decision)

    def _take_releases(self) -> None:
        for release in self.decider.releases(self.now_ns):
            assert release.command not in self._released, "given back twice"
            self._released.add(release.command)
            action = SetKnob(guest=release.guest, knob=release.knob, value=1, expected=1, lease_s=0)
            command = Command(
                id=record_id("cm", release.cause),
                cause=release.cause,
                host=release.host,
                action=action,
                rule=release.rule,
                issued_ns=self.now_ns,
                not_after_ns=self.now_ns + seconds(30),
                epoch=1,
            )
            self.returning.append((release.guest, command))
            self.log.append(release)

    def _decision(self, want: Want, *, accepted: bool, guard: str = "", reason: str = "") -> Decision:
        return Decision(
            id=record_id("dc", want.cause, want.rung, accepted, guard, self.now_ns),
            cause=want.cause,
            rule=want.rule,
            subject=want.subject,
            rung=want.rung,
            priority=want.priority,
            at_ns=self.now_ns,
            accepted=accepted,
            guard=guard,
            reason=reason,
        )

    def _outcome(self, command: Command, guest: str, result: Result) -> Outcome:
        return Outcome(
            id=record_id("oc", command.id, result, self.now_ns),
            cause=command.id,
            command=command.id,
            host="h1",
            guest=guest,
            result=result,
            at_ns=self.now_ns,
            rule=command.rule,
        )


def _action(want: Want) -> Action:
    if isinstance(want.remedy, SetRemedy):
        return SetKnob(guest=want.subject.id, knob=want.remedy.knob, value=2048, expected=1024, lease_s=900)
    return Migrate(guest=want.subject.id, target="h2", uri="qemu+tls://h2/system")


Step = tuple[str, tuple[object, ...]]

_guests = st.sampled_from(["g1", "g2"])
_rules = st.sampled_from(["starved", "slow", "crowded"])
_states = st.sampled_from([*SignalState, SignalState.FIRING, SignalState.FIRING])
_results = st.sampled_from(
    [Result.DONE, Result.DONE, Result.DONE, Result.REFUSED, Result.FAILED, Result.REVERTED],
)

scripts: st.SearchStrategy[list[Step]] = st.lists(
    st.one_of(
        st.tuples(st.just("signal"), st.tuples(_rules, _guests, _states)),
        st.tuples(st.just("answer"), st.tuples(_results)),
        st.tuples(st.just("give_back"), st.tuples()),
        st.tuples(st.just("wait"), st.tuples(st.sampled_from([1, 20, 70, 130, 400, 700, 2000]))),
        st.tuples(st.just("hold"), st.tuples(_guests, st.sampled_from([True, False, None]))),
        st.tuples(st.just("allow"), st.tuples(st.booleans())),
    ),
    max_size=30,
)


def play(world: World, script: list[Step]) -> list[object]:
    """Run a script and return all that was said."""
    for verb, arguments in script:
        getattr(world, verb)(*arguments)
    return world.log
