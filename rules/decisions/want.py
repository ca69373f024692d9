"""The records of the second stage: a remedy that is wanted, a knob to give back, a ladder at its end."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, Protocol

import msgspec

from virtpilot.knobs import find
from virtpilot.model import Kind, Mode, Subject
from virtpilot.rules.language.expression import Condition
from virtpilot.rules.language.records import (
    AllocateRemedy,
    Cooldown,
    MigrateRemedy,
    PowerRemedy,
    Remedy,
    Rule,
    RuleBudget,
    RunRemedy,
    SetRemedy,
)

PLACEMENT: Final = "placement"
POWER: Final = "power"


class Want(msgspec.Struct, frozen=True, kw_only=True):
    """A remedy that a rule wants for a subject now; `cause`, `rung` and `attempt` tell it from every other want.

    `blocked` says that a guard has refused it before, so that it does not keep others from the guest.
    """

    cause: str
    rule: str
    subject: Subject
    rung: int
    attempt: int
    remedy: Remedy
    priority: int
    knob: str
    severity: str
    mode: Mode
    cooldown: Cooldown
    since_ns: int = 0
    """Since when it is wanted."""
    budgets: tuple[RuleBudget, ...] = ()
    blocked: bool = False


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """A leased knob to give back now: `command` set it on `host`, and the outcome `cause` is why it goes."""

    cause: str
    command: str
    rule: str
    guest: str
    knob: str
    host: str


class Exhausted(msgspec.Struct, frozen=True, kw_only=True):
    """A rule's last rung did not help and its signal still fires; `cause` is the outcome of that rung."""

    cause: str
    rule: str
    subject: Subject
    rung: int
    priority: int
    at_ns: int


class Measurements(Protocol):
    """What the second stage asks the signals' evaluator."""

    def holds(self, condition: Condition, subject_id: str, after_ns: int) -> bool | None:
        """Tell whether a condition holds by a sample after `after_ns`; None while that is not known."""

    def inputs(self, condition: Condition, subject_id: str, *more: Condition) -> dict[str, float]:
        """Return the values that conditions read just now; empty where the subject is not known."""

    def row(self, kind: Kind, subject_id: str) -> Measured | None:
        """Return a subject as last measured, None where it is not known."""

    def knob(self, guest: str, knob: str) -> tuple[float, int] | None:
        """Return a knob's measured value and its time, None where it is not known."""


class Measured(Protocol):
    """A subject as last measured."""

    @property
    def time_ns(self) -> int:
        """When it was measured."""

    @property
    def values(self) -> Mapping[str, float]:
        """Return its fields, and its host's as `host.<field>`."""


def knob_of(remedy: Remedy) -> str:
    """Return what a remedy changes: the knob's name, the guest's placement, or whether it runs."""
    match remedy:
        case SetRemedy(knob=knob):
            return knob
        case AllocateRemedy(resource=resource):
            return f"the division of its {resource}"
        case MigrateRemedy():
            return PLACEMENT
        case PowerRemedy():
            return POWER
        case RunRemedy(hook=hook):
            return f"hook {hook}"


def relative_change(remedy: Remedy, subject: Subject, evaluator: Measurements) -> float:
    """Return how far a remedy takes its knob from its value now, as a share of it; infinite where that is not known."""
    if not isinstance(remedy, SetRemedy):
        return math.inf
    row = evaluator.row(subject.kind, subject.id)
    current = standing(remedy.knob, subject.id, row, evaluator) if row is not None else None
    if current is None or row is None:
        return math.inf
    target = remedy.target(current, row.values)
    return math.inf if target is None else abs(target - current) / max(abs(current), 1.0)


def standing(name: str, guest: str, row: Measured, evaluator: Measurements) -> int | None:
    """Return where a guest's knob stands, None while that is not known.

    A limit that is not told with the guest's last sample is none; so with what else is told only where it is unusual.
    """
    knob, known = find(name), evaluator.knob(guest, name)
    if knob is not None and knob.field in row.values:
        return int(row.values[knob.field])
    if known is not None and read_at(name, guest, row, evaluator) is not None:
        return int(known[0])
    return None if knob is None else knob.untold


def _own(remedy: Remedy) -> tuple[object, ...]:
    match remedy:
        case SetRemedy():
            return remedy.formula.text, remedy.lease_ns
        case PowerRemedy():
            return str(remedy.verb), remedy.within_ns
        case AllocateRemedy():
            return str(remedy.policy), remedy.by, remedy.reserve_ratio, remedy.lease_ns
        case RunRemedy() | MigrateRemedy():
            return ()


def read_at(name: str, guest: str, row: Measured, evaluator: Measurements) -> int | None:
    """Return when the value that `standing` goes by was measured, where it is not the guest's own sample."""
    knob, known = find(name), evaluator.knob(guest, name)
    if known is None or (knob is not None and knob.field in row.values):
        return None
    return None if knob is not None and knob.untold is not None and known[1] < row.time_ns else known[1]


def signature(rule: Rule) -> tuple[str, str]:
    """Return what tells a rule's signal, and its remedies, from others; compiled parts are known by their texts."""
    remedies = []
    for remedy in rule.remedies:
        expect = remedy.expect and (remedy.expect.condition.text, remedy.expect.within_ns)
        remedies.append((knob_of(remedy), _own(remedy), expect))
    return rule.digest, repr(remedies)
