"""The typed rules: what a checked rule file means."""

from __future__ import annotations

from enum import StrEnum
from functools import cached_property
from typing import Final, Literal

import msgspec

from virtpilot.action import AllocationPolicy, Resource, Verb
from virtpilot.calendar import Calendar
from virtpilot.knobs import NO_LIMIT, find
from virtpilot.model import Kind, Mode
from virtpilot.rules.language.expression import Condition, Formula, RowValues
from virtpilot.rules.language.wording import Wording


class NoData(StrEnum):
    """What becomes of a signal whose inputs are missing."""

    HOLD = "hold"
    CLEAR = "clear"
    FIRE = "fire"


class Severity(StrEnum):
    """How much a signal matters to a person."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


class Expect(msgspec.Struct, frozen=True):
    """The effect that a remedy must have: `condition` holds within `within_ns` after it was done."""

    condition: Condition
    within_ns: int


class SetRemedy(msgspec.Struct, frozen=True):
    """Set a knob of the guest to a value computed from its current one, for `lease_ns`.

    The formula counts in the knob's own unit, or, `scale` times as many, in seconds. Written as 0 a limit is lifted.
    """

    knob: str
    formula: Formula
    lease_ns: int
    expect: Expect | None
    scale: int = 1
    lifts: bool = False

    def reads(self) -> frozenset[tuple[str, str]]:
        """Return the fields that the formula reads, and the one that tells where the knob stands."""
        knob = find(self.knob)
        own = (
            {("host" if knob.of_host else "vm", knob.field)}
            if knob is not None and knob.field
            else set[tuple[str, str]]()
        )
        return self.formula.fields | own

    def target(self, current: int, row: RowValues) -> int | None:
        """Return the value to set, within the knob's limits; None where an input is missing, or a limit to go by."""
        knob = find(self.knob)
        if knob is None or self.lifts:
            return NO_LIMIT if self.lifts else None
        value = self.formula.value(row, knob.height(current))
        return None if value is None else knob.fit(value * self.scale)


class MigrateRemedy(msgspec.Struct, frozen=True):
    """Live-migrate the guest to the host that the planner finds best."""

    expect: Expect | None


class PowerRemedy(msgspec.Struct, frozen=True):
    """Suspend, resume, start, shut down, reboot or destroy the guest; seen to be so within `within_ns`."""

    verb: Verb
    within_ns: int
    expect: Expect | None


class RunRemedy(msgspec.Struct, frozen=True):
    """Run a program or webhook that the guest's host has on its list under this name."""

    hook: str
    expect: Expect | None


class AllocateRemedy(msgspec.Struct, frozen=True):
    """Divide a host's CPU or memory among its guests, for `lease_ns`, all but `reserve_ratio` of it.

    CPU by `shares` (who is busy gets them in proportion, what nobody uses is anybody's), or by `quota` (a hard limit).
    """

    policy: AllocationPolicy
    resource: Resource
    lease_ns: int
    expect: Expect | None
    reserve_ratio: float = 0.0
    by: Literal["shares", "quota"] = "shares"

    @property
    def knob(self) -> str:
        """The knob of each guest that is set."""
        if self.resource is Resource.MEMORY:
            return "memory_balloon"
        return "cpu_shares" if self.by == "shares" else "vcpu_quota"

    def reads(self) -> frozenset[tuple[str, str]]:
        """Return the fields by which is divided."""
        guest = _CPU_FIELDS if self.resource is Resource.CPU else _MEMORY_FIELDS
        return frozenset(("vm", field) for field in guest)


# What of the fleet is measured anyway is not named here.
_CPU_FIELDS: Final = ("cpu_usage_ratio", "cpu_steal_ratio", "vcpus_count")
_MEMORY_FIELDS: Final = ("memory_balloon_bytes", "memory_usable_bytes", "memory_available_bytes", "memory_max_bytes")

Remedy = AllocateRemedy | SetRemedy | MigrateRemedy | PowerRemedy | RunRemedy


class RuleBudget(msgspec.Struct, frozen=True):
    """How many actions a rule may want in a span: in all, on one guest, on the guests of one host."""

    scope: Literal["rule", "guest", "host"]
    count: int
    span_ns: int


class Cooldown(msgspec.Struct, frozen=True):
    """How long nothing more is tried after a knob went up, and after it went down; after a migration the longer."""

    up_ns: int = 0
    down_ns: int = 0


class Rule(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """One rule; durations in ns. `digest` changes with whatever changes its signal."""

    name: str
    on: Kind
    when: Condition
    digest: str
    about: str = ""
    group: str = ""
    where: Condition | None = None
    unless: Condition | None = None
    for_ns: int = 0
    clear: Condition | None = None
    clear_for_ns: int = 0
    no_data: NoData = NoData.HOLD
    priority: int = 50
    severity: Severity = Severity.WARNING
    mode: Mode = Mode.OBSERVE
    during: tuple[Calendar, ...] = ()
    not_during: tuple[Calendar, ...] = ()
    cooldown: Cooldown = Cooldown()
    budgets: tuple[RuleBudget, ...] = ()
    remedies: tuple[Remedy, ...] = ()
    notify: tuple[str, ...] = ()
    annotations: dict[str, Wording] = {}

    @property
    def cooldown_ns(self) -> int:
        """The shorter cooldown: after it the rule may want something again."""
        return min(self.cooldown.up_ns, self.cooldown.down_ns)

    def in_time(self, at_ns: int) -> bool:
        """Tell whether the rule speaks at a time, by its `during` and `not_during`."""
        inside = not self.during or any(one.covers(at_ns) for one in self.during)
        return inside and not any(one.covers(at_ns) for one in self.not_during)

    def conditions(self) -> tuple[Condition, ...]:
        """Return every condition of the rule, those of its remedies' expectations too."""
        return self._conditions

    @cached_property
    def _conditions(self) -> tuple[Condition, ...]:
        own = [condition for condition in (self.when, self.where, self.unless, self.clear) if condition is not None]
        expected = [remedy.expect for remedy in self.remedies if remedy.expect is not None]
        return (*own, *(expect.condition for expect in expected))

    def signals(self) -> frozenset[str]:
        """Return the rules whose signals this one reads."""
        return self._signals

    @cached_property
    def _signals(self) -> frozenset[str]:
        return frozenset(name for condition in self.conditions() for name in condition.reads.signals)

    def recalled(self) -> frozenset[str]:
        """Return the rules of whose signals this one asks whether they fired within a span."""
        reads = (condition.reads.signals for condition in self.conditions())
        return frozenset(name for signals in reads for name, within_ns in signals.items() if within_ns)


class RuleSet(msgspec.Struct, frozen=True, dict=True):
    """All rules in force, in the order of their files."""

    rules: tuple[Rule, ...]

    def wanted(self) -> dict[str, frozenset[str]]:
        """Return the fields that some rule reads, by measurement."""
        return dict(self._wanted)

    @cached_property
    def _wanted(self) -> dict[str, frozenset[str]]:
        found: dict[str, set[str]] = {}
        for rule in self.rules:
            sets = [remedy for remedy in rule.remedies if isinstance(remedy, SetRemedy | AllocateRemedy)]
            read = [part.fields for part in rule.conditions()] + [remedy.reads() for remedy in sets]
            for measurement, field in (pair for fields in read for pair in fields):
                found.setdefault(measurement, set()).add(field)
            if sets:
                found.setdefault("knob", set()).add("value_count")
        return {measurement: frozenset(fields) for measurement, fields in found.items()}
