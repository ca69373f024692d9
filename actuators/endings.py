"""How a migration ends: what is written of it, and where its guest is then by both hosts' word."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Final

from virtpilot.action import Migrate, action_name
from virtpilot.actuators.knob import Knobs
from virtpilot.actuators.ledger import Operation, OperationDropped, OperationState, OutcomeKept
from virtpilot.actuators.lifecycle import Point, Site, outcome
from virtpilot.actuators.watched import Watched
from virtpilot.clock import SECOND
from virtpilot.hypervisor import OFF, GuestState, JobStatus, Matchmaker
from virtpilot.model import Outcome, Result

# What of a job's statistics an outcome tells.
_TOLD: Final = frozenset({"downtime_seconds", "data_processed_bytes"})


class Endings:
    """Ends migrations, and says where their guests are."""

    def __init__(self, site: Site, knobs: Knobs, watched: Watched) -> None:
        self._site = site
        self._knobs = knobs
        self._hypervisor = site.hypervisor
        self._journal = site.journal
        self._watched = watched

    def verify(self, operation: Operation, status: JobStatus, now_ns: int) -> Outcome:
        """Believe that a guest has left when it is no longer here, and that it came when the target says so."""
        place = self._site.place(operation.guest)
        if place is not None and place is not GuestState.SHUTOFF:
            return self.end(operation, Result.FAILED, f"reported as done, but {self._site.whereabouts(place)}", now_ns)
        target = _target(operation)
        self._let_go(operation.guest, now_ns)
        if missing := self._missing(operation, status.there):
            reason = f"reported as done, and {self._site.whereabouts(place)}{missing}"
            return self.end(operation, Result.FAILED, reason, now_ns)
        took_s = (now_ns - operation.started_ns) / SECOND
        measured = {"took_seconds": took_s} | {
            name: value for name, value in status.progress.items() if name in _TOLD and isfinite(value)
        }
        reason = f"moved from {self._site.host} to {target} in {took_s:.1f} s"
        reason += f"; {target} could not be asked" if status.there is None else f", where it is {status.there}"
        if operation.state is OperationState.SWITCHED:
            reason += f"; by post-copy: {operation.why}"
        return self.end(operation, Result.DONE, reason, now_ns, after=measured)

    def there(self, operation: Operation) -> GuestState | None:
        """Return what the target says of the guest: NOSTATE where it has none such, None without an answer."""
        action = operation.command.action
        if not isinstance(action, Migrate) or not isinstance(self._hypervisor, Matchmaker):
            return None
        return self._hypervisor.there(operation.guest, action.uri)

    def gone(self, operation: Operation, place: GuestState | None, restarted: str, now_ns: int) -> Outcome:
        """End a migration without a job whose guest no longer runs here: it may have come, or have ended by itself."""
        there = self.there(operation)
        missing = self._missing(operation, there)
        if not missing and there is None and place is not None:
            missing = f", and {_target(operation)} could not be asked"
        if place is None or not missing:
            self._let_go(operation.guest, now_ns)
        where = f"{restarted}; {self._site.whereabouts(place)}"
        if missing:
            return self.end(operation, Result.FAILED, where + missing, now_ns)
        told = f", and is {there} on {_target(operation)}" if there is not None else ""
        return self.end(operation, Result.DONE, where + told, now_ns)

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

    def failed(self, operation: Operation, error: str, now_ns: int) -> Outcome:
        """End a migration that has failed, and say where the guest is."""
        if operation.state is OperationState.ABORTING:
            error = f"aborted: {operation.why} ({error})"
        place = self._site.place(operation.guest)
        return self.end(operation, Result.FAILED, f"{error}; {self._site.whereabouts(place)}", now_ns)

    def end(
        self,
        operation: Operation,
        result: Result,
        reason: str,
        now_ns: int,
        *,
        guard: str = "",
        after: Mapping[str, float] | None = None,
    ) -> Outcome:
        """End a migration, and have its guest looked at."""
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
        self._watched.forget(command.id)
        self._site.reached(Point.AFTER_END_WRITTEN)
        return made


def _target(operation: Operation) -> str:
    action = operation.command.action
    return action.target if isinstance(action, Migrate) else ""
