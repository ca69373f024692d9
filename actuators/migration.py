"""Live migration: see to the guest's note, start the job, watch it, and believe only where the guest really is.

The guest takes its leases along (travel.py): they are let go here when it has left.
"""

from __future__ import annotations

from typing import Final

import structlog
from msgspec.structs import replace

from virtpilot.action import Abort, Migrate, Stuck, Way
from virtpilot.actuators.aborts import ABORT_GRACE_NS, Aborts
from virtpilot.actuators.caps import Caps
from virtpilot.actuators.convergence import Convergence
from virtpilot.actuators.endings import Endings
from virtpilot.actuators.knob import Knobs
from virtpilot.actuators.ledger import (
    LeaseState,
    Operation,
    OperationKept,
    OperationState,
)
from virtpilot.actuators.lifecycle import Point, Site, seen
from virtpilot.actuators.orphans import Orphans
from virtpilot.actuators.watched import Watched
from virtpilot.clock import SECOND, seconds
from virtpilot.errors import CommandRefused, HypervisorError, HypervisorTimeout, Unsupported
from virtpilot.hypervisor import GuestState, JobState, JobStatus, Matchmaker, Move
from virtpilot.knobs import find
from virtpilot.model import Command, Outcome, Result

log = structlog.get_logger(__name__)

# In post-copy a guest runs on the target already, and fetches its memory: so long that is watched without a job.
POST_COPY_WATCH_NS: Final = seconds(3600)


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
        self._watched = Watched()
        self._aborts = Aborts(site, self._watched)
        self._endings = Endings(site, knobs, self._watched)
        self._orphans = Orphans(site, self._endings, self._aborts, self._watched)

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
            return [*outcomes, self._endings.end(operation, Result.FAILED, reason, now_ns)]
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
        if isinstance(self._hypervisor, Matchmaker) and (
            lacks := self._hypervisor.unfit(action.guest, action.uri, action.way)
        ):
            raise CommandRefused("target", f"{action.target} does not offer {lacks}")

    def _allowed_ns(self, action: Migrate) -> int:
        return min(self._timeout_ns, seconds(action.way.within_s) or self._timeout_ns)

    def _way(self, asked: Way) -> Way:
        """Return the way that is asked for, within what this host lets happen."""
        limits = [limit for limit in (asked.bandwidth_bytes_s, self._bandwidth_max) if limit]
        stuck = asked.when_stuck if self._may_post_copy else Stuck.ABORT
        return replace(asked, bandwidth_bytes_s=min(limits, default=0), when_stuck=stuck)

    def _pack(self, action: Migrate, now_ns: int, outcomes: list[Outcome]) -> None:
        """Have the guest carry its leases, and that it is moved: the target is to know whose doing it is.

        What it is pinned to is this host's: that is given back before it goes.
        """
        for lease in self._journal.leases():
            knob = find(lease.knob)
            if lease.guest == action.guest and knob is not None and knob.is_set:
                outcomes += self._knobs.end(lease, f"given back before the migration to {action.target}", now_ns)
        try:
            self._site.write_note(action.guest)
        except HypervisorError as error:
            if any(lease.guest == action.guest for lease in self._journal.leases()):
                raise
            log.warning("the target will not know whose move it is", guest=action.guest, error=str(error))

    def _execute(self, operation: Operation, action: Migrate, now_ns: int) -> list[Outcome]:
        started = replace(operation, state=OperationState.STARTED)
        self._journal.note(OperationKept(started))
        self._site.reached(Point.BEFORE_START)
        try:
            job = self._hypervisor.migrate(action.guest, action.uri, self._way(action.way))
        except HypervisorTimeout:
            self._orphans.take(started, now_ns)
            return []
        except Unsupported as error:
            return [self._endings.end(operation, Result.REFUSED, str(error), now_ns, guard="driver")]
        except HypervisorError as error:
            return [self._endings.end(operation, Result.FAILED, str(error), now_ns)]
        self._watched.jobs[operation.command.id] = job
        self._site.reached(Point.AFTER_START)
        return []

    def poll(self, operation: Operation, now_ns: int) -> list[Outcome]:
        """Look how a migration goes on; raises HypervisorError to be tried again."""
        job = self._watched.jobs.get(operation.command.id)
        if job is None:
            return self._orphans.poll(operation, now_ns)
        status = job.poll()
        match status.state:
            case JobState.RUNNING:
                return self._steer(operation, job, status, now_ns)
            case JobState.DONE:
                return [self._endings.verify(operation, status, now_ns)]
            case JobState.FAILED:
                return [self._endings.failed(operation, status.error or "the migration failed", now_ns)]

    def abort_all(self, why: str, now_ns: int) -> None:
        """Abort every migration that can be; `poll` tells of each when it is over."""
        for operation in self._journal.operations():
            lasts = operation.state in {OperationState.STARTED, OperationState.ORPHANED}
            if lasts and isinstance(operation.command.action, Migrate):
                self._aborts.write(operation, why, now_ns)
                self._aborts.ask(operation)

    def clock_set(self, by_ns: int) -> None:
        """Let what is watched go on as if the clock had not been set by so much."""
        self._watched.clock_set(by_ns)

    def _steer(self, operation: Operation, job: Move, status: JobStatus, now_ns: int) -> list[Outcome]:
        """Put an end to a migration that gets nowhere, or takes too long: by post-copy or an abort, as it was asked."""
        if operation.state is OperationState.SWITCHED:
            if operation.command.id in self._watched.unanswered:
                self._start_post_copy(operation, job)
            return []  # there is no way back: it ends, or its link does
        if operation.state is OperationState.ABORTING:
            if now_ns >= operation.deadline_ns:
                return [self._endings.failed(operation, "it does not end on being aborted", now_ns)]
            self._aborts.ask(operation)
            return []
        action = operation.command.action
        way = self._way(action.way) if isinstance(action, Migrate) else Way()
        progress = self._watched.progress.setdefault(operation.command.id, Convergence(way.stall_s))
        why = progress.stuck(status.progress, now_ns)
        if not why and now_ns >= operation.deadline_ns:
            why = f"not finished within {(operation.deadline_ns - operation.started_ns) / SECOND:g} s"
        if not why:
            return []
        if way.when_stuck is Stuck.POST_COPY and self._switch(operation, job, why, now_ns):
            return []
        self._aborts.write(operation, why, now_ns)
        self._aborts.ask(operation)
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
        self._watched.unanswered.add(operation.command.id)
        job.post_copy()
        self._watched.unanswered.discard(operation.command.id)

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
        self._aborts.write(under_way, f"by command {command.id}", now_ns)
        self._aborts.ask(under_way)
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
        return self._endings.end(operation, Result.DONE if stays else Result.FAILED, told, now_ns)
