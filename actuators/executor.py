"""Executes commands on one host: nothing twice, nothing without its way back, everything told.

submit ─▶ seen before? epoch? busy? ─▶ plan ─▶ pre-check ─▶ journal ─▶ execute ─▶ verify ─▶ outcome
poll   ─▶ migrations under way, leases at their end
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

import structlog

from virtpilot.actuators.journal import Epoch, Finished, Journal, Lease, Started, Told
from virtpilot.actuators.knob import Caps, KnobLife
from virtpilot.actuators.migration import MigrationLife, has_left
from virtpilot.clock import seconds
from virtpilot.errors import CommandRefused, GuestNotFound, HypervisorError, StateError
from virtpilot.hypervisor import Hypervisor
from virtpilot.model import Action, Command, Migrate, Outcome, ReleaseKnob, Result, SetKnob, record_id

log = structlog.get_logger(__name__)

_RETRY_NS: Final = seconds(5)
MIGRATION_TIMEOUT_S: Final = 600.0


class Executor:
    """The acting half of an agent."""

    def __init__(
        self,
        hypervisor: Hypervisor,
        journal: Journal,
        *,
        host: str,
        caps: Caps | None = None,
        migration_timeout_s: float = MIGRATION_TIMEOUT_S,
    ) -> None:
        self._hypervisor = hypervisor
        self._journal = journal
        self._host = host
        self._knobs = KnobLife(hypervisor, journal, caps or Caps())
        self._migrations: dict[str, MigrationLife] = {}
        self._timeout_ns = seconds(migration_timeout_s)
        self._retry_ns: dict[tuple[str, str], int] = {}
        # Outcomes that the journal could not take: told all the same, forgotten by a restart.
        self._volatile: dict[str, Outcome] = {}

    def submit(self, command: Command, now_ns: int) -> list[Outcome]:
        """Execute a command, or begin to; return the outcomes that are known now. A duplicate does nothing."""
        if self._known(command):
            return []
        try:
            self._check(command)
            return self._execute(command, now_ns)
        except CommandRefused as refused:
            result, guard, reason = Result.REFUSED, refused.guard, refused.reason
        except GuestNotFound as error:
            result, guard, reason = Result.REFUSED, "guest", f"the guest is not on {self._host}: {error}"
        except StateError as error:
            result, guard, reason = Result.REFUSED, "journal", str(error)
        except HypervisorError as error:
            result, guard, reason = Result.FAILED, "", str(error)
        return [self._finish(command, result, now_ns, guard=guard, reason=reason)]

    def _known(self, command: Command) -> bool:
        """Tell whether a command was here before; its outcome is then told once more."""
        outcome = self._journal.outcome(command.id)
        if outcome is not None:
            self._volatile[outcome.id] = outcome
            return True
        return any(started.command.id == command.id for started in self._journal.operations.values())

    def _check(self, command: Command) -> None:
        if command.epoch < self._journal.epoch:
            reason = f"epoch {command.epoch} is over: a newer controller speaks since {self._journal.epoch}"
            raise CommandRefused("epoch", reason)
        if command.epoch > self._journal.epoch:
            self._journal.append(Epoch(command.epoch))
        if self.busy(command.action.guest):
            raise CommandRefused("busy", "another operation on this guest is under way")

    def _execute(self, command: Command, now_ns: int) -> list[Outcome]:
        match command.action:
            case SetKnob() as action:
                before, after = self._knobs.set(command, action, now_ns)
                return [self._finish(command, Result.DONE, now_ns, before=before, after=after)]
            case ReleaseKnob() as action:
                return [self._release(command, action, now_ns)]
            case Migrate() as action:
                return self._migrate(command, action, now_ns)

    def _release(self, command: Command, action: ReleaseKnob, now_ns: int) -> Outcome:
        lease = self._journal.leases.get((action.guest, action.knob))
        if lease is None:
            return self._finish(command, Result.REVERTED, now_ns, reason="nothing is leased")
        before = {lease.knob: float(lease.value)}
        value, note = self._knobs.restore(lease)
        after = {} if value is None else {lease.knob: float(value)}
        return self._finish(command, Result.REVERTED, now_ns, reason=note, before=before, after=after)

    def _migrate(self, command: Command, action: Migrate, now_ns: int) -> list[Outcome]:
        MigrationLife.check(self._hypervisor, action, self._host)
        # No changed knob travels without its lease: the guest leaves as it would be without us.
        leases = [lease for lease in self._journal.leases.values() if lease.guest == action.guest]
        outcomes = [self._end(lease, now_ns, "before the guest moves") for lease in leases]
        started = Started(command, now_ns)
        self._journal.append(started)
        life = MigrationLife(self._hypervisor, started, self._timeout_ns)
        life.start()
        self._migrations[action.guest] = life
        return outcomes

    def poll(self, now_ns: int) -> list[Outcome]:
        """Follow migrations and end leases whose time is up; return the new outcomes."""
        outcomes = []
        for guest, life in list(self._migrations.items()):
            try:
                took_s = life.poll(now_ns)
                if took_s is None:
                    continue
                outcome = self._finish(life.started.command, Result.DONE, now_ns, after={"took_seconds": took_s})
            except HypervisorError as error:
                outcome = self._finish(life.started.command, Result.FAILED, now_ns, reason=str(error))
            del self._migrations[guest]
            outcomes.append(outcome)
        for key, lease in list(self._journal.leases.items()):
            if now_ns >= max(lease.end_ns, self._retry_ns.get(key, 0)) and not self.busy(lease.guest):
                outcomes += self._try_end(lease, now_ns, "the lease has ended")
        self._compact(now_ns)
        return outcomes

    def _compact(self, now_ns: int) -> None:
        try:
            self._journal.compact(now_ns)
        except StateError as error:
            log.error("journal not compacted", error=str(error))

    def _try_end(self, lease: Lease, now_ns: int, why: str) -> list[Outcome]:
        key = (lease.guest, lease.knob)
        try:
            outcome = self._end(lease, now_ns, why)
        except (HypervisorError, StateError) as error:
            self._retry_ns[key] = now_ns + _RETRY_NS
            log.warning("knob not given back yet", guest=lease.guest, knob=lease.knob, error=str(error))
            return []
        self._retry_ns.pop(key, None)
        return [outcome]

    def _end(self, lease: Lease, now_ns: int, why: str) -> Outcome:
        value, note = self._knobs.restore(lease)
        outcome = Outcome(
            id=record_id("oc", lease.command, Result.REVERTED, lease.end_ns),
            cause=lease.command,
            command=lease.command,
            host=self._host,
            guest=lease.guest,
            result=Result.REVERTED,
            at_ns=now_ns,
            action=f"release {lease.knob}",
            rule=lease.rule,
            reason="; ".join(filter(None, (why, note))),
            before={lease.knob: float(lease.value)},
            after={} if value is None else {lease.knob: float(value)},
        )
        return self._keep(outcome, now_ns)

    def recover(self, now_ns: int) -> list[Outcome]:
        """Put right what an earlier run left in the middle; leases that still run are kept."""
        outcomes = [self._recover_operation(started, now_ns) for started in list(self._journal.operations.values())]
        for lease in [lease for lease in self._journal.leases.values() if not lease.held]:
            if self._journal.outcome(lease.command) is None:
                outcomes.append(self._interrupted(lease, now_ns))
            outcomes += self._try_end(lease, now_ns, "the agent was stopped before the change was verified")
        return outcomes

    def _recover_operation(self, started: Started, now_ns: int) -> Outcome:
        guest = started.command.action.guest
        try:
            left = has_left(self._hypervisor, guest)
        except HypervisorError as error:
            return self._finish(started.command, Result.FAILED, now_ns, reason=f"the agent was restarted; {error}")
        if left:
            return self._finish(started.command, Result.DONE, now_ns, reason="seen after a restart of the agent")
        reason = "the agent was restarted; the guest still runs here"
        return self._finish(started.command, Result.FAILED, now_ns, reason=reason)

    def _interrupted(self, lease: Lease, now_ns: int) -> Outcome:
        outcome = Outcome(
            id=record_id("oc", lease.command, Result.FAILED),
            cause=lease.command,
            command=lease.command,
            host=self._host,
            guest=lease.guest,
            result=Result.FAILED,
            at_ns=now_ns,
            action=f"set {lease.knob}",
            rule=lease.rule,
            reason="the agent was stopped before the change was verified",
        )
        return self._keep(outcome, now_ns)

    def _finish(
        self,
        command: Command,
        result: Result,
        now_ns: int,
        *,
        guard: str = "",
        reason: str = "",
        before: dict[str, float] | None = None,
        after: dict[str, float] | None = None,
    ) -> Outcome:
        outcome = Outcome(
            id=record_id("oc", command.id, result),
            cause=command.id,
            command=command.id,
            host=self._host,
            guest=command.action.guest,
            result=result,
            at_ns=now_ns,
            action=_name(command.action),
            rule=command.rule,
            guard=guard,
            reason=reason,
            before=before or {},
            after=after or {},
        )
        return self._keep(outcome, command.not_after_ns)

    def _keep(self, outcome: Outcome, not_after_ns: int) -> Outcome:
        try:
            self._journal.append(Finished(outcome, not_after_ns))
        except StateError as error:
            log.error("outcome is not in the journal", outcome=outcome.id, error=str(error))
            self._volatile[outcome.id] = outcome
        return outcome

    def busy(self, guest: str) -> bool:
        """Tell whether an operation on a guest is under way."""
        return guest in self._journal.operations

    def leases(self) -> Sequence[Lease]:
        """Return the live leases."""
        return tuple(self._journal.leases.values())

    def leased(self, guest: str, knob: str) -> bool:
        """Tell whether a knob is changed under a lease."""
        return (guest, knob) in self._journal.leases

    def unpublished(self) -> Collection[Outcome]:
        """Return the outcomes that the broker is not known to have."""
        return tuple((self._journal.untold | self._volatile).values())

    def published(self, outcome_id: str) -> None:
        """Note that the broker has an outcome."""
        self._volatile.pop(outcome_id, None)
        if outcome_id in self._journal.untold:
            try:
                self._journal.append(Told(outcome_id))
            except StateError as error:
                log.error("journal cannot be written: an outcome may be told again", error=str(error))

    def close(self) -> None:
        """Let go of the journal; migrations under way go on in libvirt and are looked at by the next run."""
        self._journal.close()


def _name(action: Action) -> str:
    match action:
        case SetKnob():
            return f"set {action.knob}"
        case ReleaseKnob():
            return f"release {action.knob}"
        case Migrate():
            return "migrate"
