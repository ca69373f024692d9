"""What the guards alarm about, as signals like those of rules: a stop, open breakers, and guests that go to and fro."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from virtpilot.actuators.guards.chain import Guards
from virtpilot.model import Kind, Signal, SignalState, Subject, record_id
from virtpilot.pipeline.measured_fleet import MeasuredFleet
from virtpilot.rules.language import Severity

BREAKER: Final = "virtpilot-breaker-open"
OSCILLATION: Final = "virtpilot-oscillation"
STOPPED: Final = "virtpilot-stopped"
OWN: Final = frozenset({BREAKER, OSCILLATION, STOPPED})


class Alarm(msgspec.Struct, frozen=True):
    """Something that people should know, for as long as it is so."""

    rule: str
    subject: Subject
    severity: Severity
    about: str
    annotations: dict[str, str]


class Alarms:
    """Turns what is the case into transitions."""

    def __init__(self, cluster: str) -> None:
        self._cluster = cluster
        self._told: dict[tuple[str, str], Alarm] = {}

    def resume(self, firing: Iterable[Signal]) -> None:
        """Take up what fired before a restart."""
        for one in firing:
            if one.rule in OWN:
                alarm = Alarm(one.rule, one.subject, Severity(one.severity), one.about, one.annotations)
                self._told[one.rule, one.subject.id] = alarm

    def news(self, now_ns: int, current: Iterable[Alarm]) -> list[Signal]:
        """Return a signal for each alarm that has begun or ended."""
        found = {(alarm.rule, alarm.subject.id): alarm for alarm in current}
        begun = [alarm for key, alarm in found.items() if key not in self._told]
        ended = [alarm for key, alarm in self._told.items() if key not in found]
        self._told = found
        return [_signal(one, now_ns, fires=True) for one in begun] + [
            _signal(one, now_ns, fires=False) for one in ended
        ]

    def of_guards(self, guards: Guards, fleet: MeasuredFleet) -> Iterator[Alarm]:
        """Yield what the guards alarm about just now."""
        if guards.stopped.why:
            subject = Subject(Kind.CLUSTER, self._cluster, self._cluster)
            yield Alarm(STOPPED, subject, Severity.CRITICAL, "Nothing new is begun.", {"why": guards.stopped.why})
        for name, circuit in guards.breakers.opened():
            kind, _, who = name.partition(" ")
            # A rule is no subject of measurements: it stands for what it does in the cluster.
            subject = Subject(Kind.HOST, who, who) if kind == "host" else Subject(Kind.CLUSTER, who, self._cluster)
            about = f"The breaker of {name} is open: nothing more is tried there for a while."
            told = {"failures": str(circuit.failures), "opened": str(circuit.opened)}
            yield Alarm(BREAKER, subject, Severity.CRITICAL, about, told)
        for guest, what, way in guards.oscillations.alarms():
            row = fleet.guest(guest)
            subject = row.subject if row is not None else Subject(Kind.VM, guest)
            about = "A guest goes to and fro: further returns wait longer and longer."
            yield Alarm(OSCILLATION, subject, Severity.WARNING, about, {"what": what, "way": way})


def _signal(alarm: Alarm, now_ns: int, *, fires: bool) -> Signal:
    quiet, firing = SignalState.INACTIVE, SignalState.FIRING
    return Signal(
        id=record_id("sg", alarm.rule, alarm.subject.id, fires, now_ns),
        cause=f"tick/{now_ns}",
        rule=alarm.rule,
        subject=alarm.subject,
        previous=quiet if fires else firing,
        state=firing if fires else quiet,
        at_ns=now_ns,
        severity=alarm.severity,
        about=alarm.about,
        annotations=alarm.annotations,
    )
