"""What the guards are asked: a wanted action with all that is known of its guest, and of where it would go."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from virtpilot.action import Action, Divide, Migrate, Power, Run, SetKnob
from virtpilot.actuators.guards.bucket import Budget
from virtpilot.actuators.guards.options import GuardOptions
from virtpilot.actuators.guards.request import ALIVE, ANY, GuardRequest, Input, Target
from virtpilot.hypervisor import fitting_codes
from virtpilot.knobs import find
from virtpilot.pipeline.approvals import Waiting
from virtpilot.pipeline.measured_fleet import MeasuredFleet
from virtpilot.pipeline.planned import Refused
from virtpilot.planner.placement import HostLoad, Reserve
from virtpilot.rules.decisions.want import Want, read_at, standing
from virtpilot.rules.language.records import Rule, RuleSet
from virtpilot.rules.signals.ages import read_times
from virtpilot.rules.signals.table import Row

# ProxLB's tag counts too.
_OPT_OUT: Final = ("plb_ignore_vm", "virtpilot_ignore")
_ENGINE: Final = "virtpilot_engine"
_LEAST, _MOST = "virtpilot_least_", "virtpilot_most_"
_NO: Final = frozenset({"", "0", "false", "no", "off"})
_INT64: Final = 2**63


class Asking:
    """Makes the guards' requests."""

    def __init__(self, fleet: MeasuredFleet, ruleset: RuleSet, reserve: Reserve, limits: GuardOptions) -> None:
        self._fleet = fleet
        self._reserve = reserve
        self._stale_ratio = limits.stale_inputs_ratio
        self._engine = frozenset(name.lower() for name in limits.engine_guests)
        self._rules: dict[str, Rule] = {}
        self.reload(ruleset)

    def reload(self, ruleset: RuleSet) -> None:
        """Go on with other rules."""
        self._rules = {rule.name: rule for rule in ruleset.rules}

    def request(
        self, want: Want, row: Row, action: Action, hosts: Sequence[HostLoad], *, approved: bool
    ) -> GuardRequest:
        """Return what the guards are asked about an action; `hosts` are needed where a guest moves."""
        tags, knob = row.subject.tags, action if isinstance(action, SetKnob) else None
        target = action.target if isinstance(action, Migrate) else ""
        return GuardRequest(
            mode=want.mode,
            rule=want.rule,
            cooldown_ns=_cooldown_ns(want, action),
            opt_out=next((name for name in _OPT_OUT if _says_so(tags, name)), ""),
            engine=self._is_engine(row),
            budgets=tuple(Budget(one.scope, one.count, one.span_ns, want.rule) for one in want.budgets),
            rung=want.rung,
            guest=row.subject.id,
            host=row.subject.host,
            target=target,
            target_view=self._view(row, target, hosts) if target else None,
            knob=knob.knob if knob is not None else "",
            value=_height(knob.knob, knob.value) if knob is not None else 0,
            current=_height(knob.knob, knob.expected) if knob is not None else 0,
            bounds=_bounds(tags, knob.knob) if knob is not None else (),
            sample_ns=row.time_ns,
            first_seen_ns=row.since_ns,
            state_code=int(row.values.get("state_code", 1)),
            fitting=_fitting(action),
            inputs=tuple(self._inputs(want, row, knob)),
            effect_ns=want.remedy.expect.within_ns if want.remedy.expect is not None else 0,
            approved=approved,
        )

    def agreed(self, waiting: Waiting, row: Row) -> tuple[Action, str]:
        """Return what somebody has accepted, as it is; raises Refused where things are others by now."""
        pending, action = waiting.pending, waiting.pending.action
        if isinstance(action, Divide):
            raise Refused("approval", "the rule wants something else by now")
        if row.subject.host != pending.subject.host:
            raise Refused("approval", f"the guest is on {row.subject.host} by now, it was on {pending.subject.host}")
        if isinstance(action, SetKnob):
            evaluator = self._fleet.evaluator
            if standing(action.knob, row.subject.id, row, evaluator) != action.expected:
                raise Refused("approval", f"{action.knob} is no longer {action.expected}")
        return action, waiting.words

    def _inputs(self, want: Want, row: Row, knob: SetKnob | None) -> Iterator[Input]:
        rule, evaluator = self._rules.get(want.rule), self._fleet.evaluator
        for condition in (rule.when, rule.where, rule.unless) if rule is not None else ():
            if condition is not None:
                for what, time_ns in read_times(evaluator.world, condition, want.subject.id, self._stale_ratio):
                    yield Input(what, time_ns)
        if knob is not None and (read_ns := read_at(knob.knob, row.subject.id, row, evaluator)) is not None:
            yield Input(f"the value of {knob.knob}", read_ns)

    def _is_engine(self, row: Row) -> str:
        subject = row.subject
        if {subject.id.lower(), subject.name.lower()} & self._engine:
            return "engine_guests, or the controller's own UUID"
        return f"its tag {_ENGINE}" if _says_so(subject.tags, _ENGINE) else ""

    def _view(self, row: Row, target: str, hosts: Sequence[HostLoad]) -> Target | None:
        load = next((host for host in hosts if host.name == target), None)
        measured = self._fleet.host(target)
        if load is None or measured is None:
            return None
        guest = self._fleet.guest_load(row)
        total = load.memory_total_bytes
        return Target(
            online=load.online,
            time_ns=measured.time_ns,
            cpus=load.cpus,
            vcpus=guest.vcpus,
            memory_free_bytes=load.memory_available_bytes - load.incoming_memory_bytes - guest.memory_bytes,
            memory_spare_bytes=max(round(self._reserve.memory_ratio * total), self._reserve.memory_bytes),
        )


def _cooldown_ns(want: Want, action: Action) -> int:
    """Return how long the rule leaves the guest alone after this action: after a knob went up, down, after a move."""
    cooldown = want.cooldown
    if isinstance(action, SetKnob):
        rises = _height(action.knob, action.value) > _height(action.knob, action.expected)
        return cooldown.up_ns if rises else cooldown.down_ns
    return max(cooldown.up_ns, cooldown.down_ns)


def _height(name: str, value: int) -> int:
    """Return a knob's value for comparisons: no limit is higher than any."""
    knob = find(name)
    height = value if knob is None else knob.height(value)
    return int(height) if math.isfinite(height) else _INT64 - 1


def _fitting(action: Action) -> frozenset[int]:
    """Return in which states of its guest an action makes sense: a hook is run whatever it does."""
    match action:
        case Power(verb=verb):
            return fitting_codes(verb)
        case Run():
            return ANY
        case _:
            return ALIVE


def _bounds(tags: Mapping[str, str], knob: str) -> tuple[tuple[int, int, str], ...]:
    """Return the floor and the cap that a guest's tags set for a knob; a tag that is no number sets none."""
    least, most = _number(tags.get(_LEAST + knob, "")), _number(tags.get(_MOST + knob, ""))
    found = []
    if least is not None:
        found.append((least, _INT64 - 1, f"the guest's tag {_LEAST}{knob}"))
    if most is not None:
        found.append((-_INT64, most, f"the guest's tag {_MOST}{knob}"))
    return tuple(found)


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() else None


def _says_so(tags: Mapping[str, str], name: str) -> bool:
    return tags.get(name, "").lower() not in _NO
