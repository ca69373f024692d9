"""From wanted remedies to signed commands: planner, guards, decision, command.

decider.wants → (arbiter's losers: refused) → plan the action → guards → its turn → Decision → Command → outbox
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Annotated, Final

import msgspec

from virtpilot.action import Abort, Action, Decided, Migrate, Power, ReleaseKnob, Run, SetKnob
from virtpilot.actuators.guards.chain import Guards
from virtpilot.actuators.guards.memory import InFlight
from virtpilot.actuators.guards.request import GuardRequest, Refusal
from virtpilot.clock import seconds
from virtpilot.model import Command, Decision, Kind, Mode, Outcome, Result, Subject, record_id
from virtpilot.pipeline.allocating import Allocator
from virtpilot.pipeline.approvals import ApprovalDesk
from virtpilot.pipeline.asking import Asking
from virtpilot.pipeline.maintenance import MaintenanceDesk
from virtpilot.pipeline.measured_fleet import MeasuredFleet
from virtpilot.pipeline.operations.desk import Desk
from virtpilot.pipeline.operations.moves import id_of, operation_of, waits_in_line
from virtpilot.pipeline.planned import Planned, Refused
from virtpilot.pipeline.timeline import moved
from virtpilot.planner.moving import Hopeless, MovingOptions, plan_move
from virtpilot.planner.placement import HostLoad, NoMove, Reserve, best_target
from virtpilot.rules.decisions.decider import Decider
from virtpilot.rules.decisions.want import Exhausted, Release, Want, standing
from virtpilot.rules.language.records import AllocateRemedy, PowerRemedy, RuleSet, RunRemedy, SetRemedy
from virtpilot.rules.signals.evaluator import Evaluator
from virtpilot.rules.signals.table import Row

# By then a host has measured a guest that came to it; MeasuredFleet stops counting it as coming as soon as it has.
_MEASURED_BY_NS: Final = seconds(60)
# Who holds back for a while only what else may be done.
_PATIENT: Final = frozenset({"concurrency", "queue"})
# The agents' guards.
_FOREIGN: Final = "foreign-change"
_TARGET: Final = "target"


class PilotOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How commands are given."""

    command_ttl_s: Annotated[
        float, msgspec.Meta(description="A command not started within this time is never started.", ge=1, le=3600)
    ] = 30.0


class Pilot:
    """Decides on what the rules want, one decision a want, and keeps the count of what is in flight."""

    def __init__(
        self,
        fleet: MeasuredFleet,
        decider: Decider,
        guards: Guards,
        desk: Desk,
        approvals: ApprovalDesk,
        asking: Asking,
        reserve: Reserve,
        options: PilotOptions,
        moving: MovingOptions,
        maintenance: MaintenanceDesk,
        epoch: int,
    ) -> None:
        self.fleet = fleet
        self.decider = decider
        self.guards = guards
        self.desk = desk
        self.approvals = approvals
        self._asking = asking
        self._reserve = reserve
        self._moving = moving
        self.maintenance = maintenance
        self._ttl_ns = seconds(options.command_ttl_s)
        self.epoch = epoch
        self._allocator = Allocator(fleet, self._ask_to_set, decider.holder)
        self._landed: dict[str, tuple[str, int]] = {}
        self._hosts: list[HostLoad] | None = None
        self._stands_ns = 0.0

    def next_ns(self) -> float:
        """Return when something may be decided though nothing is measured and nothing comes; 0: at any moment."""
        return self.decider.next_ns(self._stands_ns)

    def reload(self, ruleset: RuleSet, evaluator: Evaluator) -> None:
        """Go on with other rules; what unchanged ones have under way stays."""
        self.fleet.evaluator = evaluator
        self.decider.reload(ruleset)
        self._asking.reload(ruleset)

    def move(self, by_ns: int) -> None:
        """Move all that is remembered to another time: the clocks were set."""
        self.decider.restore(moved(self.decider.snapshot(), by_ns))
        self.guards.restore(moved(msgspec.to_builtins(self.guards.saved()), by_ns))
        self.approvals.restore(moved(msgspec.to_builtins(self.approvals.saved()), by_ns))
        self.desk.move(by_ns)
        self._landed = {guest: (target, until_ns + by_ns) for guest, (target, until_ns) in self._landed.items()}

    def decide(self, now_ns: int, about: Collection[str] | None = None) -> list[Decision | Command]:
        """Return the new decisions, each accepted one followed by its command; on all that is wanted, or on subjects.

        What a guard holds back is tried again when all are looked at, the highest priority first.
        """
        self._hosts, self.fleet.closed = None, self.maintenance.closed()
        self._stands_ns = 0.0 if about is not None or self.approvals.waits or self.maintenance.orders else math.inf
        records: list[Decision | Command] = []
        self.decider.agreed = self.approvals.agreements()
        winners, losers = self.decider.wants(now_ns, about)
        for want, reason in losers:
            records += self._refuse(want, "arbiter", reason, now_ns)
        queue = [want for want in winners if waits_in_line(want)]
        for want in winners:
            if isinstance(want.remedy, AllocateRemedy):
                self._stands_ns = 0.0
                records += self._divide(want, want.remedy, now_ns)
            elif not waits_in_line(want):
                records += self._decide_one(want, now_ns)
        if about is None:
            queue += self.maintenance.wants(self.fleet)
        if about is None or (queue and not self.desk.crowded):
            records += self._take_turns(queue, now_ns)
        if about is None:
            self.approvals.tick([*winners, *(want for want, _reason in losers)], self.decider.awaited(), now_ns)
        records += [self._release(release, now_ns) for release in self.decider.releases(now_ns)]
        records += [_at_its_end(ladder) for ladder in self.decider.exhausted()]
        if records:
            self._stands_ns = 0.0
        return records

    def _take_turns(self, queue: Sequence[Want], now_ns: int) -> list[Decision | Command]:
        """Decide on what takes time and places, in the order of the queue's policy."""
        records: list[Decision | Command] = []
        ready: dict[str, Planned] = {}
        for want in queue:
            planned = self._tried(want, now_ns)
            if isinstance(planned, Refused):
                records += self._refuse(want, planned.guard, planned.reason, now_ns)
            else:
                ready[id_of(want)] = planned
        operations = {id_: operation_of(planned.want, planned.row, planned.action) for id_, planned in ready.items()}
        turn = self.desk.turn(operations.values(), self.guards.flying(), now_ns)
        for id_ in turn.begin:
            # What began before it may have changed where it is to go, or whether it may.
            made = self._decide_one(ready[id_].want, now_ns)
            records += made
            for command in made:
                if isinstance(command, Command):
                    self.desk.began(command.id, operations[id_], now_ns)
        for victim, newcomer in turn.stop.items():
            records += self._stop(victim, ready[newcomer], now_ns) if newcomer in ready else []
        for id_, place in turn.waiting.items():
            held = ready[id_].held
            guard, reason = ("queue", self.desk.words(place)) if held is None else (held.guard, held.reason)
            records += self._refuse(ready[id_].want, guard, reason, now_ns)
        return records

    def _stop(self, command: str, newcomer: Planned, now_ns: int) -> list[Decision | Command]:
        """Abort a migration for one that is much shorter; it is wanted again when it has ended."""
        flight = self.guards.flight(command)
        if flight is None or self.desk.was_stopped(command):
            return []
        self.desk.stopping(command)
        action = Abort(guest=flight.guest)
        decision = Decision(
            id=record_id("dc", command, "stop", now_ns),
            cause=command,
            rule=flight.rule,
            subject=self._subject_of(flight),
            rung=0,
            priority=newcomer.want.priority,
            at_ns=now_ns,
            accepted=True,
            action=action,
            reason=f"{newcomer.row.subject.name or newcomer.row.subject.id} needs less time than is left of this",
        )
        self.decider.stopped(command, now_ns)
        return [decision, self._command(decision.id, flight.host, action, flight.rule, now_ns)]

    def _subject_of(self, flight: InFlight) -> Subject:
        row = self.fleet.guest(flight.guest)
        return row.subject if row is not None else Subject(Kind.VM, flight.guest, host=flight.host)

    def _decide_one(self, want: Want, now_ns: int) -> list[Decision | Command]:
        planned = self._tried(want, now_ns)
        if isinstance(planned, Refused):
            return self._refuse(want, planned.guard, planned.reason, now_ns)
        if planned.held is not None:
            return self._refuse(want, planned.held.guard, planned.held.reason, now_ns)
        action = planned.action
        decision = self._decision(want, now_ns, accepted=True, action=action, reason=planned.reason)
        command = self._command(decision.id, planned.row.subject.host, action, want.rule, now_ns)
        self.guards.started(planned.request, command.id, now_ns)
        self._hosts = None
        self.decider.on_decision(decision, command, now_ns)
        self.approvals.begun(want, now_ns)
        return [decision, command]

    def _divide(self, want: Want, remedy: AllocateRemedy, now_ns: int) -> list[Decision | Command]:
        """Divide a host among its guests: one decision, and a command for each guest whose knob changes."""

        def check(request: GuardRequest) -> Refusal | None:
            # Whether a person agrees is asked of the whole.
            return self.guards.check(msgspec.structs.replace(request, approved=True), now_ns)

        agreed = self.approvals.agreed(want)
        if agreed is not None:
            division = self._allocator.again(want, remedy, agreed, check)
        else:
            division = self._allocator.plan(want, remedy, check)
        if isinstance(division, Refusal):
            return self._refuse(want, division.guard, division.reason, now_ns)
        if want.mode is Mode.APPROVE:
            told = self.approvals.propose(want, division.action, division.reason, now_ns)
            return self._refuse(want, "approval", told, now_ns)
        action = division.action
        decision = self._decision(want, now_ns, accepted=True, action=action, reason=division.reason)
        commands = [self._command(decision.id, action.host, one, want.rule, now_ns) for one in action.sets]
        for request, command in zip(division.requests, commands, strict=True):
            self.guards.started(request, command.id, now_ns)
        self.decider.divided(decision, commands, now_ns)
        self.approvals.begun(want, now_ns)
        return [decision, *commands]

    def _tried(self, want: Want, now_ns: int) -> Planned | Refused:
        """Do as `_prepared` does, and note until when all that is refused stays so."""
        planned = self._prepared(want, now_ns)
        self._stands_ns = min(self._stands_ns, planned.until_ns if isinstance(planned, Refused) else 0.0)
        return planned

    def _prepared(self, want: Want, now_ns: int) -> Planned | Refused:
        """Return the action for a want once the guards let it through, or who refuses it."""
        row = self.fleet.evaluator.row(want.subject.kind, want.subject.id)
        if row is None:
            return Refused("freshness", f"{want.subject.name or want.subject.id} is not measured any more")
        agreed = self.approvals.agreed(want)
        try:
            action, reason = self._plan(want, row, now_ns) if agreed is None else self._asking.agreed(agreed, row)
        except Refused as refused:
            return refused
        hosts = self._host_loads(now_ns) if isinstance(action, Migrate) else ()
        request = self._asking.request(want, row, action, hosts, approved=agreed is not None)
        refusal = self.guards.check(request, now_ns)
        if refusal is not None and refusal.guard == "approval":
            return Refused("approval", self.approvals.propose(want, action, reason, now_ns))
        if refusal is not None and refusal.guard != "concurrency":
            return Refused(refusal.guard, refusal.reason)
        return Planned(want, row, action, reason, request, refusal)

    def _plan(self, want: Want, row: Row, now_ns: int) -> tuple[Action, str]:
        """Return the action with the reason for it; raises Refused."""
        if isinstance(want.remedy, SetRemedy):
            return self._plan_set(want, want.remedy, row, now_ns)
        if isinstance(want.remedy, PowerRemedy):
            power = Power(guest=row.subject.id, verb=want.remedy.verb, within_s=want.remedy.within_ns / 1e9)
            return power, f"the rule asks the guest to {power.verb}"
        if isinstance(want.remedy, RunRemedy):
            subject = row.subject
            fields = {"name": subject.name} | {f"tags.{key}": value for key, value in subject.tags.items()}
            return Run(guest=subject.id, hook=want.remedy.hook, fields=fields), f"the rule runs {want.remedy.hook}"
        unfit = self.guards.targets.unfit(row.subject.id, now_ns)
        hosts = [host for host in self._host_loads(now_ns) if host.name not in unfit]
        guest = self.fleet.guest_load(row)
        company = self.fleet.company(guest, self._incoming(now_ns))
        leaving = row.subject.host in self.fleet.closed
        placement = best_target(guest, hosts, self._reserve, company, leaving=leaving)
        if isinstance(placement, NoMove):
            # Who has just landed, or is unfit, is so for a while only.
            until_ns = 0.0 if unfit or self._landed else self.fleet.next_stale_ns(now_ns)
            raise Refused("placement", placement.reason, until_ns)
        load = self.fleet.move_load(row, placement.host, self.guards.migrations())
        plan = plan_move(load, self._moving)
        if isinstance(plan, Hopeless):
            raise Refused("convergence", plan.reason)
        uri = self.fleet.migration_uri(placement.host)
        action = Migrate(guest=row.subject.id, target=placement.host, uri=uri, way=plan.way)
        return action, f"{placement.reason}; {plan.reason}"

    def _ask_to_set(self, want: Want, row: Row, action: SetKnob) -> GuardRequest:
        return self._asking.request(want, row, action, (), approved=False)

    def _host_loads(self, now_ns: int) -> list[HostLoad]:
        """Return the hosts as they are and will be by what is under way; the same until something more is."""
        if self._hosts is None:
            self._hosts = self.fleet.host_loads(now_ns, self.guards.migrations(), self._incoming(now_ns))
        return self._hosts

    def _plan_set(self, want: Want, remedy: SetRemedy, row: Row, now_ns: int) -> tuple[Action, str]:
        current = standing(remedy.knob, row.subject.id, row, self.fleet.evaluator)
        if current is None:
            raise Refused("freshness", f"the value of {remedy.knob} is not known yet")
        value = remedy.target(current, row.values)
        if value is None:
            raise Refused("freshness", f"an input of `{remedy.formula.text}` is missing, or there is no limit yet")
        stays = value == current
        if stays and not self.decider.holdings.half_over((row.subject.id, remedy.knob), want.rule, remedy, now_ns):
            raise Refused("limits", f"{remedy.knob} is at {value} already")
        action = SetKnob(
            guest=row.subject.id, knob=remedy.knob, value=value, expected=current, lease_s=remedy.lease_ns / 1e9
        )
        return action, f"the rule {'still ' * stays}asks for {remedy.formula.text}"

    def _decision(
        self,
        want: Want,
        now_ns: int,
        *,
        accepted: bool,
        action: Decided | None = None,
        guard: str = "",
        reason: str = "",
    ) -> Decision:
        return Decision(
            # The guests that are to leave a host have one cause.
            id=record_id("dc", want.rule, want.subject.id, want.cause, want.rung, accepted, guard, now_ns),
            cause=want.cause,
            rule=want.rule,
            subject=want.subject,
            rung=want.rung,
            priority=want.priority,
            at_ns=now_ns,
            accepted=accepted,
            action=action,
            guard=guard,
            reason=reason,
        )

    def _refuse(self, want: Want, guard: str, reason: str, now_ns: int) -> list[Decision | Command]:
        """Refuse a want; said once per reason, however often it is tried."""
        if guard not in _PATIENT:
            self.approvals.stale(want, f"{guard}: {reason}", now_ns)
        decision = self._decision(want, now_ns, accepted=False, guard=guard, reason=reason)
        news = self.maintenance.refused(decision) or self.decider.on_decision(decision, None, now_ns)
        return [decision] if news else []

    def _release(self, release: Release, now_ns: int) -> Command:
        action = ReleaseKnob(guest=release.guest, knob=release.knob)
        # The lease has gone with the guest, where that has moved.
        row = self.fleet.guest(release.guest)
        host = row.subject.host if row is not None else release.host
        return self._command(release.cause, host, action, release.rule, now_ns)

    def _command(self, cause: str, host: str, action: Action, rule: str, now_ns: int) -> Command:
        return Command(
            id=record_id("cm", cause, host, msgspec.json.encode(action)),
            cause=cause,
            host=host,
            action=action,
            rule=rule,
            issued_ns=now_ns,
            not_after_ns=now_ns + self._ttl_ns,
            epoch=self.epoch,
        )

    def _incoming(self, now_ns: int) -> list[tuple[str, str]]:
        """Return each guest on its way with its target; one that has just landed is in no measurement of it yet."""
        self._landed = {guest: landing for guest, landing in self._landed.items() if now_ns < landing[1]}
        return self.guards.incoming() + [(guest, target) for guest, (target, _until) in self._landed.items()]

    def on_outcome(self, outcome: Outcome, now_ns: int) -> None:
        """Take an agent's word on a command: the guards free its place, the ladder goes on."""
        if outcome.result in {Result.DONE, Result.REFUSED, Result.FAILED, Result.REVERTED}:
            flying = dict(self.guards.incoming())
            # Nothing is wrong with a rule or a host whose migration was stopped by us.
            stopped = self.desk.was_stopped(outcome.command) and outcome.result is Result.FAILED
            self.guards.finished(outcome.command, now_ns, Result.REFUSED if stopped else outcome.result)
            landed = outcome.guest in flying and outcome.guest not in dict(self.guards.incoming())
            if landed and outcome.result is Result.DONE:
                self._landed[outcome.guest] = (flying[outcome.guest], now_ns + _MEASURED_BY_NS)
            if outcome.guard == _TARGET and outcome.guest in flying:
                self.guards.targets.refused(outcome.guest, flying[outcome.guest], outcome.reason, now_ns)
        if outcome.guard == _FOREIGN:
            self.guards.foreign.noticed(outcome.guest, "changed it", outcome.at_ns, now_ns)
        self.decider.on_outcome(outcome)

    def on_effect(self, outcome: Outcome, now_ns: int) -> None:
        """Take a measured effect, or the failure of a command whose outcome never came: it holds its place no more."""
        self.guards.finished(outcome.command, now_ns, outcome.result)
        self.guards.breakers.effect(outcome.rule, outcome.result, now_ns)


def _at_its_end(ladder: Exhausted) -> Decision:
    """Return what tells that a rule has no remedy left."""
    return Decision(
        id=record_id("dc", ladder.cause, ladder.rung, "exhausted"),
        cause=ladder.cause,
        rule=ladder.rule,
        subject=ladder.subject,
        rung=ladder.rung,
        priority=ladder.priority,
        at_ns=ladder.at_ns,
        accepted=False,
        guard="exhausted",
        reason="no remedy is left and the signal still fires",
    )
