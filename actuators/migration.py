"""Live migration: see to the guest's note, start the job, watch it, and believe only where the guest really is.

The guest takes its leases along (travel.py): they are let go here when it has left.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Final

import structlog
from msgspec.structs import replace

from virtpilot.action import Abort, Migrate, Stuck, Way, action_name
from virtpilot.actuators.caps import Caps
from virtpilot.actuators.convergence import Convergence
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
from virtpilot.errors import CommandRefused, HypervisorError, HypervisorTimeout, Unsupported
from virtpilot.hypervisor import OFF, RUNNING, GuestState, JobState, JobStatus, Matchmaker, Move
from virtpilot.knobs import find
from virtpilot.model import Command, Outcome, Result

log = structlog.get_logger(__name__)

# How long an aborted migration may take to end before it is given up.
ABORT_GRACE_NS: Final = seconds(60)
# libvirtd may carry on a migration that an earlier agent began: so long it is watched, with no job to ask.
ORPHAN_WATCH_NS: Final = seconds(120)
# In post-copy a guest runs on the target already, and fetches its memory: so long that is watched without a job.
POST_COPY_WATCH_NS: Final = seconds(3600)
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
        self._bandwidth_max = caps.migration_bandwidth_max
        self._may_post_copy = caps.post_copy
        self._jobs: dict[str, Move] = {}
        self._progress: dict[str, Convergence] = {}
        self._told_to_end: set[str] = set()
        self._unanswered: set[str] = set()

    def start(self, command: Command, action: Migrate, now_ns: int) -> list[Outcome]:
        """Begin to move a guest: plan, pre-check, execute; `poll` verifies. Raises CommandRefused, HypervisorError."""
        operation = Operation(
            command=command,
            started_ns=now_ns,
            deadline_ns=now_ns + self._allowed_ns(action),
            state=OperationState.PLANNED,
        )
        self._check(action)
        self._site.reached(Point.BEFORE_PLAN_WRITTEN)
        self._site.commit(*seen(command), OperationKept(operation))
        self._site.reached(Point.AFTER_PLAN_WRITTEN)
        outcomes: list[Outcome] = []
        try:
            self._pack(action, now_ns, outcomes)
        except HypervisorError as error:
            reason = f"its leases could not be made ready to go with it: {error}"
            return [*outcomes, self._end(operation, Result.FAILED, reason, now_ns)]
        self._site.reached(Point.AFTER_PACKED)
        return outcomes + self._execute(operation, action, now_ns)

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
        if isinstance(self._hypervisor, Matchmaker) and (lacks := self._hypervisor.unfit(action.guest, action.uri)):
            raise CommandRefused("target", f"{action.target} does not offer {lacks}")

    def _allowed_ns(self, action: Migrate) -> int:
        return min(self._timeout_ns, seconds(action.way.within_s) or self._timeout_ns)

    def _way(self, asked: Way) -> Way:
        """Return the way that is asked for, within what this host lets happen."""
        limits = [limit for limit in (asked.bandwidth_bytes_s, self._bandwidth_max) if limit]
        stuck = asked.when_stuck if self._may_post_copy else Stuck.ABORT
        return replace(asked, bandwidth_bytes_s=min(limits, default=0), when_stuck=stuck)

    def _pack(self, action: Migrate, now_ns: int, outcomes: list[Outcome]) -> None:
        """Have the guest carry its leases: its note may have been removed, or was never written.

        What it is pinned to is this host's: that is given back before it goes.
        """
        for lease in self._journal.leases():
            knob = find(lease.knob)
            if lease.guest == action.guest and knob is not None and knob.is_set:
                outcomes += self._knobs.end(lease, f"given back before the migration to {action.target}", now_ns)
        if any(lease.guest == action.guest for lease in self._journal.leases()):
            self._site.write_note(action.guest)

    def _execute(self, operation: Operation, action: Migrate, now_ns: int) -> list[Outcome]:
        started = replace(operation, state=OperationState.STARTED)
        self._journal.note(OperationKept(started))
        self._site.reached(Point.BEFORE_START)
        try:
            self._jobs[operation.command.id] = self._hypervisor.migrate(action.guest, action.uri, self._way(action.way))
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

    def _recover(self, operation: Operation, now_ns: int) -> list[Outcome]:
        """Take up a migration that an earlier process left; raises HypervisorError to be tried again."""
        match operation.state:
            case OperationState.PLANNED:
                return [self._end(operation, Result.FAILED, "the agent stopped before the migration began", now_ns)]
            case OperationState.STARTED:
                self._orphan(operation, now_ns)
                return self._watch(operation, now_ns, over=False)
            case _:
                return self._watch(operation, now_ns, over=now_ns >= operation.deadline_ns)

    def poll(self, operation: Operation, now_ns: int) -> list[Outcome]:
        """Look how a migration goes on; raises HypervisorError to be tried again."""
        job = self._jobs.get(operation.command.id)
        if job is None:
            return self._recover(operation, now_ns)
        status = job.poll()
        match status.state:
            case JobState.RUNNING:
                return self._steer(operation, job, status, now_ns)
            case JobState.DONE:
                return [self._verify(operation, status, now_ns)]
            case JobState.FAILED:
                return [self._failed(operation, status.error or "the migration failed", now_ns)]

    def _watch(self, operation: Operation, now_ns: int, *, over: bool) -> list[Outcome]:
        """Judge a migration without a job by the guest's place alone."""
        place = self._site.place(operation.guest)
        restarted = "the agent restarted or lost sight of the migration"
        if operation.state is OperationState.ABORTING:
            restarted = f"aborted: {operation.why}; {restarted}"
        if place is None or place is GuestState.SHUTOFF:
            return [self._gone(operation, place, restarted, now_ns)]
        if operation.state is OperationState.SWITCHED:
            if place in RUNNING:  # it had not come to that
                self._orphan(operation, now_ns)
                return []
            restarted = f"{restarted} in post-copy"
        if over and not self._gives_up(operation, now_ns):
            return [self._end(operation, Result.FAILED, f"{restarted}; {self._site.whereabouts(place)}", now_ns)]
        if operation.state is OperationState.ABORTING:
            self._ask_to_end(operation)
        return []

    def _gone(self, operation: Operation, place: GuestState | None, restarted: str, now_ns: int) -> Outcome:
        """End a migration without a job whose guest no longer runs here: it may have come, or have ended by itself."""
        action, there = operation.command.action, None
        if isinstance(action, Migrate) and isinstance(self._hypervisor, Matchmaker):
            there = self._hypervisor.there(operation.guest, action.uri)
        missing = self._missing(operation, there)
        if not missing and there is None and place is not None:
            missing = f", and {_target(operation)} could not be asked"
        if place is None or not missing:
            self._let_go(operation.guest, now_ns)
        where = f"{restarted}; {self._site.whereabouts(place)}"
        if missing:
            return self._end(operation, Result.FAILED, where + missing, now_ns)
        told = f", and is {there} on {_target(operation)}" if there is not None else ""
        return self._end(operation, Result.DONE, where + told, now_ns)

    def abort_all(self, why: str, now_ns: int) -> None:
        """Abort every migration that can be; `poll` tells of each when it is over."""
        for operation in self._journal.operations():
            lasts = operation.state in {OperationState.STARTED, OperationState.ORPHANED}
            if lasts and isinstance(operation.command.action, Migrate):
                self._abort(operation, why, now_ns)
                self._ask_to_end(operation)

    def _ask_to_end(self, operation: Operation) -> None:
        """Ask for the end of a migration that is to be aborted, again and again until libvirt has taken it once."""
        if operation.command.id in self._told_to_end:
            return
        job = self._jobs.get(operation.command.id)
        try:
            job.abort() if job is not None else self._hypervisor.abort_job(operation.guest)
        except HypervisorError as error:
            log.warning("not aborted, tried again", guest=operation.guest, error=str(error))
        else:
            self._told_to_end.add(operation.command.id)

    def clock_set(self, by_ns: int) -> None:
        """Let what is watched go on as if the clock had not been set by so much."""
        for progress in self._progress.values():
            progress.clock_set(by_ns)

    def _gives_up(self, operation: Operation, now_ns: int) -> bool:
        """Abort a migration of which sight was lost, should libvirt still be at it; False where it is not."""
        if operation.state in {OperationState.ABORTING, OperationState.SWITCHED}:
            return False
        try:
            self._hypervisor.abort_job(operation.guest)
        except HypervisorTimeout:
            raise
        except HypervisorError as error:
            log.debug("nothing to abort any more", guest=operation.guest, error=str(error))
            return False
        self._told_to_end.add(operation.command.id)
        self._abort(operation, "it went on for too long", now_ns)
        return True

    def _steer(self, operation: Operation, job: Move, status: JobStatus, now_ns: int) -> list[Outcome]:
        """Put an end to a migration that gets nowhere, or takes too long: by post-copy or an abort, as it was asked."""
        if operation.state is OperationState.SWITCHED:
            if operation.command.id in self._unanswered:
                self._start_post_copy(operation, job)
            return []  # there is no way back: it ends, or its link does
        if operation.state is OperationState.ABORTING:
            if now_ns >= operation.deadline_ns:
                return [self._failed(operation, "it does not end on being aborted", now_ns)]
            self._ask_to_end(operation)
            return []
        action = operation.command.action
        way = self._way(action.way) if isinstance(action, Migrate) else Way()
        progress = self._progress.setdefault(operation.command.id, Convergence(way.stall_s))
        why = progress.stuck(status.progress, now_ns)
        if not why and now_ns >= operation.deadline_ns:
            why = f"not finished within {(operation.deadline_ns - operation.started_ns) / SECOND:g} s"
        if not why:
            return []
        if way.when_stuck is Stuck.POST_COPY and self._switch(operation, job, why, now_ns):
            return []
        self._abort(operation, why, now_ns)
        self._ask_to_end(operation)
        return []

    def _switch(self, operation: Operation, job: Move, why: str, now_ns: int) -> bool:
        """Go over to post-copy; False where the hypervisor does not want to. Written first: there is no way back."""
        deadline_ns = now_ns + POST_COPY_WATCH_NS
        switched = replace(operation, state=OperationState.SWITCHED, deadline_ns=deadline_ns, why=why)
        self._journal.note(OperationKept(switched))
        try:
            self._start_post_copy(operation, job)
        except HypervisorTimeout as error:
            log.warning("post-copy may have begun, asked for again", guest=operation.guest, error=str(error))
        except HypervisorError as error:
            log.warning("no post-copy, aborted in its place", guest=operation.guest, error=str(error))
            return False
        return True

    def _start_post_copy(self, operation: Operation, job: Move) -> None:
        self._unanswered.add(operation.command.id)
        job.post_copy()
        self._unanswered.discard(operation.command.id)

    def _abort(self, operation: Operation, why: str, now_ns: int) -> None:
        deadline_ns = now_ns + ABORT_GRACE_NS
        aborting = replace(operation, state=OperationState.ABORTING, deadline_ns=deadline_ns, why=why)
        self._journal.note(OperationKept(aborting))

    def abort(self, command: Command, action: Abort, now_ns: int) -> list[Outcome]:
        """Abort a guest's migration by command; `poll_abort` verifies. Raises CommandRefused, HypervisorError."""
        under_way = self._site.move_of(action.guest)
        operation = Operation(
            command=command,
            started_ns=now_ns,
            deadline_ns=now_ns + ABORT_GRACE_NS + seconds(5),
            state=OperationState.STARTED,
        )
        if under_way is None:
            return [self._aborted(operation, now_ns)]
        if under_way.state is OperationState.SWITCHED:
            raise CommandRefused("state", f"guest {action.guest} is in post-copy: it runs on the other host already")
        self._site.commit(*seen(command), OperationKept(operation))
        self._abort(under_way, f"by command {command.id}", now_ns)
        self._ask_to_end(under_way)
        return []

    def poll_abort(self, operation: Operation, now_ns: int) -> list[Outcome]:
        """Look whether an aborted migration is over, and where the guest is then; raises HypervisorError."""
        if self._site.move_of(operation.guest) is not None and now_ns < operation.deadline_ns:
            return []
        return [self._aborted(operation, now_ns)]

    def _aborted(self, operation: Operation, now_ns: int) -> Outcome:
        place = self._site.place(operation.guest)
        stays = place is not None and place is not GuestState.SHUTOFF and self._site.move_of(operation.guest) is None
        told = f"no migration of it is under way; {self._site.whereabouts(place)}"
        if self._site.move_of(operation.guest) is not None:
            told = f"its migration does not end; {self._site.whereabouts(place)}"
        self._journal.note(*seen(operation.command))
        return self._end(operation, Result.DONE if stays else Result.FAILED, told, now_ns)

    def _verify(self, operation: Operation, status: JobStatus, now_ns: int) -> Outcome:
        """Believe that a guest has left when it is no longer here, and that it came when the target says so."""
        place = self._site.place(operation.guest)
        if place is not None and place is not GuestState.SHUTOFF:
            return self._end(operation, Result.FAILED, f"reported as done, but {self._site.whereabouts(place)}", now_ns)
        target = _target(operation)
        self._let_go(operation.guest, now_ns)
        if missing := self._missing(operation, status.there):
            reason = f"reported as done, and {self._site.whereabouts(place)}{missing}"
            return self._end(operation, Result.FAILED, reason, now_ns)
        took_s = (now_ns - operation.started_ns) / SECOND
        measured = {"took_seconds": took_s} | {
            name: value for name, value in status.progress.items() if name in _TOLD and isfinite(value)
        }
        reason = f"moved from {self._site.host} to {target} in {took_s:.1f} s"
        reason += f"; {target} could not be asked" if status.there is None else f", where it is {status.there}"
        if operation.state is OperationState.SWITCHED:
            reason += f"; by post-copy: {operation.why}"
        return self._end(operation, Result.DONE, reason, now_ns, after=measured)

    @staticmethod
    def _missing(operation: Operation, there: GuestState | None) -> str:
        """Return that a guest did not come to where it was moved, "" where nothing says so."""
        if there is not GuestState.NOSTATE and there not in OFF:
            return ""
        lost = "is not known" if there is GuestState.NOSTATE else f"is {there}"
        return f", but it {lost} on {_target(operation)}"

    def _let_go(self, guest: str, now_ns: int) -> None:
        """Drop the leases of a guest that has left; all are held, for nothing is changed on a guest on its way."""
        for lease in self._journal.leases():
            if lease.guest == guest:
                self._site.reached(Point.BEFORE_LET_GO)
                self._knobs.leave(lease, now_ns)
                self._site.reached(Point.AFTER_LET_GO)

    def _failed(self, operation: Operation, error: str, now_ns: int) -> Outcome:
        if operation.state is OperationState.ABORTING:
            error = f"aborted: {operation.why} ({error})"
        place = self._site.place(operation.guest)
        return self._end(operation, Result.FAILED, f"{error}; {self._site.whereabouts(place)}", now_ns)

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
            action=action_name(command.action),
            rule=command.rule,
            guard=guard,
            reason=reason,
            after=after,
        )
        self._journal.note(OperationDropped(command.id), OutcomeKept(made))
        if isinstance(command.action, Migrate):
            self._site.looks[operation.guest] = result is Result.DONE
        self._jobs.pop(command.id, None)
        self._progress.pop(command.id, None)
        self._told_to_end.discard(command.id)
        self._unanswered.discard(command.id)
        self._site.reached(Point.AFTER_END_WRITTEN)
        return made


def _target(operation: Operation) -> str:
    action = operation.command.action
    return action.target if isinstance(action, Migrate) else ""
