"""Dividing a host among its guests: from what is measured to the knob of each, by the planner's policies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from virtpilot.action import Divide, Resource, SetKnob
from virtpilot.actuators.guards.request import GuardRequest, Refusal
from virtpilot.errors import CannotDivide
from virtpilot.knobs import find
from virtpilot.model import Kind
from virtpilot.pipeline.approvals import Waiting
from virtpilot.pipeline.measured_fleet import MeasuredFleet
from virtpilot.planner.allocation import Claim, divide
from virtpilot.planner.placement import MIB
from virtpilot.rules.decisions.want import Want, standing
from virtpilot.rules.language.records import AllocateRemedy
from virtpilot.rules.signals.table import Row

WEIGHT_TAG: Final = "virtpilot_weight"
# The kernel's weight of a guest that nobody has given another, which all guests have on average after a division.
_USUAL_SHARES: Final = 1024
_USUAL_PERIOD_US: Final = 100_000
# A guest must stay able to answer, and must not be squeezed below what it works with.
_FLOOR_CORES: Final = 0.05
_FLOOR_BYTES: Final = 128 * MIB
_WHOLE: Final = frozenset({"mode", "approval", "calendar", "budget", "breaker", "cooldown", "concurrency"})
"""The guards that speak of the rule or the cluster, or of a moment: what they refuse is refused for all guests."""

Check = Callable[[GuardRequest], Refusal | None]


class Division(msgspec.Struct, frozen=True):
    """What each guest gets, with what the guards were asked about it, and the reason for people."""

    action: Divide
    requests: tuple[GuardRequest, ...]
    reason: str


class Allocator:
    """Plans divisions; a guest that a guard holds back keeps what it has, and the others share the rest."""

    def __init__(
        self, fleet: MeasuredFleet, ask: Callable[[Want, Row, SetKnob], GuardRequest], holder: Callable[[str, str], str]
    ) -> None:
        """Take who makes the guards' requests, and who knows which rule holds a guest's knob ("" for none)."""
        self._fleet = fleet
        self._ask = ask
        self._holder = holder

    def plan(self, want: Want, remedy: AllocateRemedy, check: Check) -> Division | Refusal:
        """Return a division that every guard lets through, or who refuses it."""
        host = self._fleet.host(want.subject.id)
        if host is None:
            return Refusal("freshness", f"{want.subject.id} is not measured any more")
        rows = sorted(self._guests(want.subject.id), key=lambda row: row.subject.id)
        left_out: dict[str, Refusal] = {}
        while taking := [row for row in rows if row.subject.id not in left_out]:
            parts = self._parts(remedy, host, rows, taking)
            if isinstance(parts, Refusal):
                return parts
            found = self._checked(want, remedy, taking, parts, check)
            if isinstance(found, Division | Refusal):
                return found
            left_out |= found
        return next(iter(left_out.values()), Refusal("limits", f"{want.subject.id} has no running guests"))

    def again(self, want: Want, remedy: AllocateRemedy, accepted: Waiting, check: Check) -> Division | Refusal:
        """Return a division as it was accepted, or who refuses it by now: it is done whole or not at all."""
        action = accepted.pending.action
        if not isinstance(action, Divide) or (action.resource, action.policy) != (remedy.resource, remedy.policy):
            return Refusal("approval", "the rule wants something else by now")
        requests: list[GuardRequest] = []
        for one in action.sets:
            row = self._fleet.guest(one.guest)
            if row is None or row.subject.host != action.host:
                return Refusal("approval", f"{one.guest} is not on {action.host} any more")
            if standing(one.knob, one.guest, row, self._fleet.evaluator) != one.expected:
                return Refusal("approval", f"{one.knob} of {row.subject.name} is no longer {one.expected}")
            request = self._ask(want, row, one)
            requests.append(msgspec.structs.replace(request, budgets=()) if requests else request)
            if (refusal := check(requests[-1])) is not None:
                return refusal
        return Division(action, tuple(requests), accepted.words)

    def _guests(self, host: str) -> Iterator[Row]:
        for row in self._fleet.evaluator.latest(Kind.VM).values():
            if row.subject.host == host and row.values.get("state_code") == 1:
                yield row

    def _checked(
        self, want: Want, remedy: AllocateRemedy, rows: list[Row], parts: dict[str, float], check: Check
    ) -> Division | Refusal | dict[str, Refusal]:
        """Return the division, who refuses all of it, or the guests that are to be left out.

        Of a guest that keeps the part which it has by an earlier division the lease is renewed.
        """
        sets: list[SetKnob] = []
        requests: list[GuardRequest] = []
        held: dict[str, Refusal] = {}
        for row in rows:
            made = self._set(want, remedy, row, parts)
            if isinstance(made, Refusal):
                held[row.subject.id] = made
                continue
            stays = made.value == made.expected
            if stays and self._holder(made.guest, made.knob) != want.rule:
                continue
            request = self._ask(want, row, made)
            if requests:
                # The rule's own budgets bear one division, however many guests are in it.
                request = msgspec.structs.replace(request, budgets=())
            refusal = check(request)
            if refusal is None:
                sets.append(made)
                requests.append(request)
            elif stays:
                continue  # it has its part until its lease ends
            elif refusal.guard in _WHOLE:
                return refusal
            else:
                held[row.subject.id] = refusal
        if held:
            return held
        if not sets:
            return Refusal("limits", f"{want.subject.id} is divided so already")
        action = Divide(host=want.subject.id, resource=remedy.resource, policy=remedy.policy, sets=tuple(sets))
        return Division(action, tuple(requests), _reason(remedy, rows, parts))

    def _set(self, want: Want, remedy: AllocateRemedy, row: Row, parts: dict[str, float]) -> SetKnob | Refusal:
        guest, knob = row.subject.id, find(remedy.knob)
        current = standing(remedy.knob, guest, row, self._fleet.evaluator)
        if current is None or knob is None:
            return Refusal("freshness", f"the value of {remedy.knob} of {row.subject.name} is not known yet")
        holder = self._holder(guest, remedy.knob)
        if holder not in {"", want.rule}:
            return Refusal("arbiter", f"{holder} holds {remedy.knob} of {row.subject.name}")
        value = knob.fit(_value(remedy, row, parts))
        return SetKnob(guest=guest, knob=knob.name, value=value, expected=current, lease_s=remedy.lease_ns / 1e9)

    def _parts(
        self, remedy: AllocateRemedy, host: Row, rows: list[Row], taking: list[Row]
    ) -> dict[str, float] | Refusal:
        claim_of = _cpu_claim if remedy.resource is Resource.CPU else _memory_claim
        claims: list[Claim] = []
        for row in taking:
            claim = claim_of(row)
            if claim is None:
                return Refusal("freshness", f"what {row.subject.name} uses is not measured")
            claims.append(claim)
        there = _capacity(remedy.resource, host, rows)
        if there is None:
            return Refusal("freshness", f"what {host.subject.id} has is not measured")
        kept = sum(_has(remedy.resource, row) for row in rows if row not in taking)
        try:
            return divide(remedy.policy, claims, max(there - kept, 0.0), remedy.reserve_ratio * there)
        except CannotDivide as error:
            return Refusal("limits", str(error))


def _cpu_claim(row: Row) -> Claim | None:
    values, vcpus = row.values, row.values.get("vcpus_count", 0.0)
    if "cpu_usage_ratio" not in values or vcpus <= 0:
        return None
    return Claim(
        guest=row.subject.id,
        used=values["cpu_usage_ratio"] * vcpus,
        lacked=values.get("cpu_steal_ratio", 0.0) * vcpus,
        size=vcpus,
        weight=_weight(row),
        floor=min(_FLOOR_CORES, vcpus),
        cap=vcpus,
    )


def _memory_claim(row: Row) -> Claim | None:
    """Return a claim in bytes: a guest keeps what it works with and a floor above it."""
    values = row.values
    if not {"memory_balloon_bytes", "memory_usable_bytes", "memory_max_bytes"} <= values.keys():
        return None
    balloon, most = values["memory_balloon_bytes"], values["memory_max_bytes"]
    used = max(values.get("memory_available_bytes", balloon) - values["memory_usable_bytes"], 0.0)
    return Claim(
        guest=row.subject.id,
        used=used,
        size=most,
        weight=_weight(row),
        floor=min(used + _FLOOR_BYTES, most),
        cap=most,
    )


def _capacity(resource: Resource, host: Row, rows: list[Row]) -> float | None:
    """Return what there is to divide: the host's CPUs, or what its guests have and what is free beside them."""
    values = host.values
    if resource is Resource.CPU:
        return values.get("cpus_count")
    free = values.get("memory_available_bytes")
    return None if free is None else free + sum(_has(resource, row) for row in rows)


def _has(resource: Resource, row: Row) -> float:
    values = row.values
    if resource is Resource.MEMORY:
        return values.get("memory_balloon_bytes", 0.0)
    return values.get("cpu_usage_ratio", 0.0) * values.get("vcpus_count", 0.0)


def _weight(row: Row) -> float:
    try:
        weight = float(row.subject.tags.get(WEIGHT_TAG, "1"))
    except ValueError:
        return 1.0
    return weight if 0 < weight <= 10_000 else 1.0


def _value(remedy: AllocateRemedy, row: Row, parts: dict[str, float]) -> float:
    """Return a part in the knob's own unit."""
    part = parts[row.subject.id]
    if remedy.resource is Resource.MEMORY:
        return part
    if remedy.by == "quota":
        return part / row.values["vcpus_count"] * _USUAL_PERIOD_US
    total = sum(parts.values())
    return _USUAL_SHARES * len(parts) * part / total if total > 0 else _USUAL_SHARES


def _reason(remedy: AllocateRemedy, rows: list[Row], parts: dict[str, float]) -> str:
    unit, scale = ("GiB", 2.0**30) if remedy.resource is Resource.MEMORY else ("cores", 1.0)
    told = ", ".join(f"{row.subject.name} {parts[row.subject.id] / scale:.2f}" for row in rows)
    return f"{remedy.resource} by {remedy.policy}: {told} {unit}"
