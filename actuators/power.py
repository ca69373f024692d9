"""Guests suspended, resumed, started, shut down, rebooted and destroyed: asked for once, and believed when it is seen.

A guest that is already as it should be is done with at once. One that ignores what it is asked (a shutdown without
anybody inside who listens) is told of at the end of its time; nothing harsher is done to it then.
"""

from __future__ import annotations

from typing import Final

from virtpilot.action import Power, Verb
from virtpilot.actuators.caps import Caps
from virtpilot.actuators.knob import Knobs
from virtpilot.actuators.ledger import (
    LeaseState,
    Operation,
    OperationDropped,
    OperationKept,
    OperationState,
    OutcomeKept,
)
from virtpilot.actuators.lifecycle import Point, Site, outcome, seen
from virtpilot.clock import SECOND, seconds
from virtpilot.errors import CommandRefused, GuestNotFound, HypervisorError, HypervisorTimeout, Unsupported
from virtpilot.hypervisor import FITTING, GOALS, OFF, GuestState, Job, JobState
from virtpilot.model import Command, Outcome, Result

_PAST: Final = {
    Verb.SUSPEND: "suspended",
    Verb.RESUME: "resumed",
    Verb.START: "started",
    Verb.SHUTDOWN: "shut down",
    Verb.REBOOT: "rebooted",
    Verb.DESTROY: "destroyed",
}


class Powers:
    """Brings guests of this host into other states."""

    def __init__(self, site: Site, knobs: Knobs, caps: Caps) -> None:
        self._site = site
        self._knobs = knobs
        self._hypervisor = site.hypervisor
        self._journal = site.journal
        self._may_destroy = caps.destroy_guests
        self._jobs: dict[str, Job] = {}

    def start(self, command: Command, action: Power, now_ns: int) -> list[Outcome]:
        """Ask for another state: plan, pre-check, execute; `poll` verifies. Raises CommandRefused, HypervisorError."""
        operation = Operation(
            command=command,
            started_ns=now_ns,
            deadline_ns=now_ns + seconds(action.within_s),
            state=OperationState.PLANNED,
        )
        state = self._check(action)
        if action.verb is not Verb.REBOOT and state in GOALS[action.verb]:
            self._journal.note(*seen(command))
            return [self._end(operation, action, Result.DONE, f"it is {state} already", now_ns)]
        self._site.reached(Point.BEFORE_POWER)
        self._site.commit(*seen(command), OperationKept(operation))
        try:
            self._jobs[command.id] = self._hypervisor.power(action.guest, action.verb)
        except HypervisorTimeout:
            return []  # it may be under way: the guest's state tells
        except Unsupported as error:
            return [self._end(operation, action, Result.REFUSED, str(error), now_ns, guard="driver")]
        except HypervisorError as error:
            return [self._end(operation, action, Result.FAILED, str(error), now_ns)]
        self._site.reached(Point.AFTER_POWER)
        return self._seen(operation, action, now_ns)

    def _check(self, action: Power) -> GuestState:
        if action.verb is Verb.DESTROY and not self._may_destroy:
            raise CommandRefused("caps", "this host lets no guest be destroyed: destroy_guests is not set")
        state = self._site.state(action.guest)
        self._site.check_idle(action.guest)
        if state not in FITTING[action.verb] | GOALS[action.verb]:
            raise CommandRefused("state", f"guest {action.guest} is {state}: it cannot be {_PAST[action.verb]}")
        return state

    def _seen(self, operation: Operation, action: Power, now_ns: int) -> list[Outcome]:
        """Look at once: most are there already. What cannot be looked at now is looked at later."""
        try:
            return self.poll(operation, action, now_ns)
        except HypervisorError:
            return []

    def poll(self, operation: Operation, action: Power, now_ns: int) -> list[Outcome]:
        """Look whether the guest is as it should be; raises HypervisorError to be tried again."""
        job = self._jobs.get(operation.command.id)
        if job is None:
            return self._watch(operation, action, now_ns)
        status = job.poll()
        if status.state is JobState.DONE:
            took_s = (now_ns - operation.started_ns) / SECOND
            return self._done(operation, action, f"{_PAST[action.verb]} in {took_s:.1f} s", now_ns)
        if status.state is JobState.FAILED:
            return [self._end(operation, action, Result.FAILED, status.error, now_ns)]
        if now_ns < operation.deadline_ns:
            return []
        job.abort()
        where = self._place(action.guest)
        reason = f"not {_PAST[action.verb]} within {action.within_s:g} s: {where}, nothing in it has obeyed"
        return [self._end(operation, action, Result.FAILED, reason, now_ns)]

    def _watch(self, operation: Operation, action: Power, now_ns: int) -> list[Outcome]:
        """Judge by the guest's state alone what an earlier process, or a call that hung, may have asked for."""
        where = f"the agent restarted or lost sight of it; {self._place(action.guest)}"
        if action.verb is not Verb.REBOOT and self._state(action.guest) in GOALS[action.verb]:
            return self._done(operation, action, where, now_ns)
        if action.verb is not Verb.REBOOT and now_ns < operation.deadline_ns:
            return []
        return [self._end(operation, action, Result.FAILED, where, now_ns)]

    def _done(self, operation: Operation, action: Power, reason: str, now_ns: int) -> list[Outcome]:
        """End what was seen; a guest that is off has lost its changed knobs: their leases are over."""
        why = f"the guest was {_PAST[action.verb]}"
        mine = [lease for lease in self._journal.leases() if lease.guest == action.guest]
        lost = [lease for lease in mine if lease.state is LeaseState.HELD] if GOALS[action.verb] == OFF else []
        outcomes = [outcome for lease in lost for outcome in self._knobs.end(lease, why, now_ns)]
        return [*outcomes, self._end(operation, action, Result.DONE, reason, now_ns)]

    def _state(self, guest: str) -> GuestState:
        """Return a guest's state; one without a definition has gone with its end."""
        try:
            return self._hypervisor.state(guest)
        except GuestNotFound:
            return GuestState.SHUTOFF

    def _place(self, guest: str) -> str:
        return f"the guest is {self._state(guest)} on {self._site.host}"

    def _end(
        self, operation: Operation, action: Power, result: Result, reason: str, now_ns: int, *, guard: str = ""
    ) -> Outcome:
        self._site.reached(Point.BEFORE_POWER_END)
        command = operation.command
        made = outcome(
            command.id,
            result,
            now_ns,
            host=self._site.host,
            guest=action.guest,
            action=str(action.verb),
            rule=command.rule,
            guard=guard,
            reason=reason,
        )
        self._journal.note(OperationDropped(command.id), OutcomeKept(made))
        self._jobs.pop(command.id, None)
        return made
