"""Live migration: see to the guest's note, start the job, watch it, and believe only where the guest really is.

The guest takes its leases along (travel.py): they are let go here when it has left.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Final

from msgspec.structs import replace

from virtpilot.action import Migrate
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
from virtpilot.hypervisor import RUNNING, GuestState, Job, JobState, JobStatus
from virtpilot.model import Command, Outcome, Result

# How long an aborted migration may take to end before it is given up.
ABORT_GRACE_NS: Final = seconds(60)
# libvirtd may carry on a migration that an earlier agent began: so long it is watched, with no job to ask.
ORPHAN_WATCH_NS: Final = seconds(120)
# What of a job's statistics an outcome tells.
_TOLD: Final = frozenset({"downtime_seconds", "data_processed_bytes"})


class Migrations:
    """Moves guests away from this host."""

    def __init__(self, site: Site, knobs: Knobs, caps: Caps) -> None:
        self._site = site
        self._knobs = knobs
        self._hypervisor = site.hypervisor
        self._journal = site.journal
        self._out_max = caps.migrations_out_max
        self._timeout_ns = seconds(caps.migration_timeout_s)
        self._jobs: dict[str, Job] = {}

    def start(self, command: Command, action: Migrate, now_ns: int) -> list[Outcome]:
        """Begin to move a guest: plan, pre-check, execute; `poll` verifies. Raises CommandRefused, HypervisorError."""
        operation = Operation(
            command=command,
            started_ns=now_ns,
            deadline_ns=now_ns + self._timeout_ns,
            state=OperationState.PLANNED,
        )
        self._check(action)
        self._site.reached(Point.BEFORE_PLAN_WRITTEN)
        self._site.commit(*seen(command), OperationKept(operation))
        self._site.reached(Point.AFTER_PLAN_WRITTEN)
        try:
            self._pack(action)
        except HypervisorError as error:
            reason = f"its leases could not be made ready to go with it: {error}"
            return [self._end(operation, Result.FAILED, reason, now_ns)]
        self._site.reached(Point.AFTER_PACKED)
        return self._execute(operation, action, now_ns)

    def _check(self, action: Migrate) -> None:
        self._site.check_guest(action.guest)
        if action.target == self._site.host:
            raise CommandRefused("target", f"guest {action.guest} is on {self._site.host} already")
        for lease in self._journal.leases():
            if lease.guest == action.guest and lease.state is not LeaseState.HELD:
                raise CommandRefused("busy", f"{lease.knob} of guest {lease.guest} is being given back just now")
        leaving = [one for one in self._journal.operations() if isinstance(one.command.action, Migrate)]
        if len(leaving) >= self._out_max:
            raise CommandRefused("caps", f"this host lets {self._out_max} guests leave at the same time")

    def _pack(self, action: Migrate) -> None:
        """Have the guest carry its leases: its note may have been removed, or was never written."""
        if any(lease.guest == action.guest for lease in self._journal.leases()):
            self._site.write_note(action.guest)

    def _execute(self, operation: Operation, action: Migrate, now_ns: int) -> list[Outcome]:
        started = replace(operation, state=OperationState.STARTED)
        self._journal.note(OperationKept(started))
        self._site.reached(Point.BEFORE_START)
        try:
            self._jobs[operation.command.id] = self._hypervisor.migrate(action.guest, action.uri)
        except HypervisorTimeout:
            self._orphan(started, now_ns)
            return []
        except Unsupported as error:
            return [self._end(operation, Result.REFUSED, str(error), now_ns, guard="driver")]
        except HypervisorError as error:
            return [self._end(operation, Result.FAILED, str(error), now_ns)]
        self._site.reached(Point.AFTER_START)
        return []

    def _orphan(self, operation: Operation, now_ns: int) -> None:
        orphan = replace(operation, state=OperationState.ORPHANED, deadline_ns=now_ns + ORPHAN_WATCH_NS)
        self._journal.note(OperationKept(orphan))

    def recover(self, operation: Operation, now_ns: int) -> list[Outcome]:
        """Take up a migration that an earlier process left; raises HypervisorError to be tried again."""
        if operation.state is OperationState.PLANNED:
            return [self._end(operation, Result.FAILED, "the agent stopped before the migration began", now_ns)]
        if operation.state is not OperationState.ORPHANED:
            self._orphan(operation, now_ns)
        return self._watch(operation, now_ns, over=False)

    def poll(self, operation: Operation, now_ns: int) -> list[Outcome]:
        """Look how a migration goes on; raises HypervisorError to be tried again."""
        job = self._jobs.get(operation.command.id)
        if job is None:
            if operation.state is not OperationState.ORPHANED:
                return self.recover(operation, now_ns)
            return self._watch(operation, now_ns, over=now_ns >= operation.deadline_ns)
        status = job.poll()
        match status.state:
            case JobState.RUNNING:
                return self._hurry(operation, job, now_ns)
            case JobState.DONE:
                return [self._verify(operation, status, now_ns)]
            case JobState.FAILED:
                return [self._failed(operation, status.error or "the migration failed", now_ns)]

    def _watch(self, operation: Operation, now_ns: int, *, over: bool) -> list[Outcome]:
        """Judge a migration without a job by the guest's place alone."""
        place = self._place(operation.guest)
        restarted = "the agent restarted or lost sight of the migration"
        if place is None or place is GuestState.SHUTOFF:
            self._let_go(operation.guest, now_ns)
            return [self._end(operation, Result.DONE, f"{restarted}; {self._whereabouts(place)}", now_ns)]
        if over:
            return [self._end(operation, Result.FAILED, f"{restarted}; {self._whereabouts(place)}", now_ns)]
        return []

    def _hurry(self, operation: Operation, job: Job, now_ns: int) -> list[Outcome]:
        """Abort a migration that takes too long, and give it up when it does not even end then."""
        if now_ns < operation.deadline_ns:
            return []
        if operation.state is OperationState.ABORTING:
            return [self._failed(operation, "the migration took too long and does not end on being aborted", now_ns)]
        job.abort()
        aborting = replace(operation, state=OperationState.ABORTING, deadline_ns=now_ns + ABORT_GRACE_NS)
        self._journal.note(OperationKept(aborting))
        return []

    def _verify(self, operation: Operation, status: JobStatus, now_ns: int) -> Outcome:
        """Believe that a guest has left when it is no longer here."""
        place = self._place(operation.guest)
        if place is None or place is GuestState.SHUTOFF:
            took_s = (now_ns - operation.started_ns) / SECOND
            action = operation.command.action
            target = action.target if isinstance(action, Migrate) else ""
            reason = f"moved from {self._site.host} to {target} in {took_s:.1f} s"
            measured = {"took_seconds": took_s} | {
                name: value for name, value in status.progress.items() if name in _TOLD and isfinite(value)
            }
            self._let_go(operation.guest, now_ns)
            return self._end(operation, Result.DONE, reason, now_ns, after=measured)
        return self._end(operation, Result.FAILED, f"reported as done, but {self._whereabouts(place)}", now_ns)

    def _let_go(self, guest: str, now_ns: int) -> None:
        """Drop the leases of a guest that has left; all are held, for nothing is changed on a guest on its way."""
        for lease in self._journal.leases():
            if lease.guest == guest:
                self._site.reached(Point.BEFORE_LET_GO)
                self._knobs.leave(lease, now_ns)
                self._site.reached(Point.AFTER_LET_GO)

    def _failed(self, operation: Operation, error: str, now_ns: int) -> Outcome:
        if operation.state is OperationState.ABORTING:
            limit_s = self._timeout_ns / SECOND
            error = f"aborted: not finished within {limit_s:g} s ({error})"
        place = self._place(operation.guest)
        return self._end(operation, Result.FAILED, f"{error}; {self._whereabouts(place)}", now_ns)

    def _place(self, guest: str) -> GuestState | None:
        """Return the state of a guest here, None when it is not here."""
        try:
            return self._hypervisor.state(guest)
        except GuestNotFound:
            return None

    def _whereabouts(self, place: GuestState | None) -> str:
        if place is None:
            return f"the guest is no longer on {self._site.host}"
        doing = "still runs" if place in RUNNING else f"is {place}"
        return f"the guest {doing} on {self._site.host}"

    def _end(
        self,
        operation: Operation,
        result: Result,
        reason: str,
        now_ns: int,
        *,
        guard: str = "",
        after: Mapping[str, float] | None = None,
    ) -> Outcome:
        self._site.reached(Point.BEFORE_END_WRITTEN)
        command = operation.command
        made = outcome(
            command.id,
            result,
            now_ns,
            host=self._site.host,
            guest=operation.guest,
            action="migrate",
            rule=command.rule,
            guard=guard,
            reason=reason,
            after=after,
        )
        self._journal.note(OperationDropped(command.id), OutcomeKept(made))
        self._site.looks[operation.guest] = result is Result.DONE
        self._jobs.pop(command.id, None)
        self._site.reached(Point.AFTER_END_WRITTEN)
        return made
