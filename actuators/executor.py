"""The executor of one host: takes opened commands, keeps leases to their end, and puts right what a crash left.

submit → duplicate? epoch? in time? → the action's life cycle → journal → outcomes
poll   → leases that have ended, changes to take back, migrations under way, guests to look at (travel.py);
         what fails is tried again, ever slower
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import structlog

from virtpilot.action import Abort, Migrate, Power, ReleaseKnob, Run, SetKnob, action_name
from virtpilot.actuators.caps import Caps
from virtpilot.actuators.hooks.hook import HookOptions
from virtpilot.actuators.hooks.hooks import Hooks
from virtpilot.actuators.journal import Journal
from virtpilot.actuators.knob import INTERRUPTED, Knobs
from virtpilot.actuators.ledger import Lease, LeaseKept, LeaseState, Operation, OperationKept, OutcomeKept
from virtpilot.actuators.lifecycle import Point, Site, nowhere, outcome, seen
from virtpilot.actuators.migration import Migrations
from virtpilot.actuators.power import Powers
from virtpilot.actuators.timekeeping import ClockWatch, moved_lease, moved_operation
from virtpilot.actuators.travel import NotSettled, Travel
from virtpilot.clock import SECOND, Clock, seconds
from virtpilot.errors import CommandRefused, HypervisorError, HypervisorUnavailable
from virtpilot.hypervisor import GuestEvent, Hypervisor
from virtpilot.model import Command, Outcome, Result

log = structlog.get_logger(__name__)

PRUNE_EVERY_NS: Final = seconds(600)
LOOK_EVERY_NS: Final = seconds(5)
_FIRST_RETRY_NS: Final = seconds(1)
_LAST_RETRY_NS: Final = seconds(30)
_CLOCK_SLACK_NS: Final = seconds(60)
# Guests looked at in one poll: each takes some calls to libvirt, and what is measured must not wait for all of them.
_LOOKS: Final = 16


class Retries:
    """When what failed is due again: after 1 s at first, twice as long each time, 30 s at most."""

    def __init__(self) -> None:
        self._waits: dict[tuple[str, ...], tuple[int, int]] = {}

    def due(self, key: tuple[str, ...], now_ns: int) -> bool:
        """Tell whether something may be tried; a clock that was set back holds nothing up for long."""
        failed_ns, wait_ns = self._waits.get(key, (now_ns, 0))
        return not 0 <= now_ns - failed_ns < wait_ns

    def failed(self, key: tuple[str, ...], now_ns: int) -> None:
        """Note that it did not work."""
        _failed_ns, wait_ns = self._waits.get(key, (0, 0))
        self._waits[key] = (now_ns, min(max(2 * wait_ns, _FIRST_RETRY_NS), _LAST_RETRY_NS))

    def worked(self, key: tuple[str, ...]) -> None:
        """Forget earlier failures."""
        self._waits.pop(key, None)


class Executor:
    """Executes commands on one host; every change is in the journal before it is made."""

    def __init__(
        self,
        hypervisor: Hypervisor,
        journal: Journal,
        *,
        host: str,
        caps: Caps | None = None,
        hooks: HookOptions | None = None,
        clock: Clock | None = None,
        reached: Callable[[Point], None] = nowhere,
    ) -> None:
        """`clock` is the one that the times of all calls are of; without it nobody notices that it is set."""
        caps = caps or Caps()
        self._watch = ClockWatch(clock) if clock is not None else None
        self._earlier = frozenset(lease.command for lease in journal.leases())
        site = Site(hypervisor, journal, host=host, reached=reached)
        self._journal = journal
        self._host = host
        self._lease_max_ns = seconds(caps.lease_max_s)
        self._knobs = Knobs(site, caps)
        self._migrations = Migrations(site, self._knobs, caps)
        self._travel = Travel(site, self._knobs, caps)
        self._site = site
        self._survey = False
        # Why every lease ends now, "" while each ends in its time.
        self.forsaken = ""
        self._powers = Powers(site, self._knobs, caps)
        self._hooks = Hooks(site, hooks or HookOptions())
        self._retries = Retries()
        self._next_prune_ns = 0
        self._next_look_ns = 0
        self.stopped = ""
        """Why nothing new is begun, "" where it is; what is held runs to its end, and may be given back."""

    def submit(self, command: Command, now_ns: int) -> list[Outcome]:
        """Execute an opened command; a duplicate changes nothing and has its known outcomes published again."""
        now_ns = self._in_time(now_ns)
        if self._journal.seen(command.id):
            known = self._journal.outcomes(command.id)
            self._journal.republish(known)
            return known
        try:
            self._check(command, now_ns)
            return self._start(command, now_ns)
        except CommandRefused as refused:
            return [self._close(command, Result.REFUSED, refused.reason, now_ns, guard=refused.guard)]
        except HypervisorError as error:
            return [self._close(command, Result.FAILED, str(error), now_ns)]

    def _check(self, command: Command, now_ns: int) -> None:
        if command.host != self._host:
            raise CommandRefused("host", f"it is for {command.host}, this is {self._host}")
        if command.not_after_ns < now_ns:
            late_s = (now_ns - command.not_after_ns) / SECOND
            raise CommandRefused("expired", f"it expired {late_s:.1f} s ago")
        if self.stopped and not isinstance(command.action, ReleaseKnob | Abort):
            raise CommandRefused("stopped", self.stopped)
        newest = self._journal.epoch
        if command.epoch < newest:
            reason = f"a newer controller has taken over: epoch {command.epoch}, newest seen {newest}"
            raise CommandRefused("epoch", reason)

    def _start(self, command: Command, now_ns: int) -> list[Outcome]:
        match command.action:
            case SetKnob() as action:
                return self._looked_at(action, now_ns) + self._knobs.set(command, action, now_ns)
            case ReleaseKnob() as action:
                return self._looked_at(action, now_ns) + self._knobs.release(command, action, now_ns)
            case Migrate() as action:
                return self._migrations.start(command, action, now_ns)
            case Abort() as action:
                return self._migrations.abort(command, action, now_ns)
            case Power() as action:
                return self._powers.start(command, action, now_ns)
            case Run() as action:
                return self._hooks.start(command, action, now_ns)

    def _looked_at(self, action: SetKnob | ReleaseKnob, now_ns: int) -> list[Outcome]:
        """Look at a guest on whose knob no lease is held: it may have come with one that is not taken up yet."""
        if self._journal.lease(action.guest, action.knob) is not None:
            return []
        try:
            return self._travel.look(action.guest, now_ns, left=False)
        except NotSettled as error:
            raise CommandRefused("busy", str(error)) from error

    def _close(self, command: Command, result: Result, reason: str, now_ns: int, *, guard: str = "") -> Outcome:
        """End a command that has changed nothing."""
        made = outcome(
            command.id,
            result,
            now_ns,
            host=self._host,
            guest=command.action.guest,
            action=action_name(command.action),
            rule=command.rule,
            guard=guard,
            reason=reason,
        )
        self._journal.note(*seen(command), OutcomeKept(made))
        return made

    def knows(self, command: str) -> bool:
        """Tell whether a command was taken up before."""
        return self._journal.seen(command)

    def recover(self, now_ns: int) -> list[Outcome]:
        """Put right what an earlier process left: changes cut short, leases that have ended, migrations in flight.

        Guests may have come, gone or started anew meanwhile, and knobs may have been changed: all are looked at.
        """
        self._survey = True
        now_ns = self._in_time(now_ns)
        # What was begun later than now was begun before the clock was set back.
        late = [one for one in self._journal.operations() if one.started_ns > now_ns]
        if late:
            self._journal.note(*(OperationKept(moved_operation(one, now_ns - one.started_ns)) for one in late))
        for lease in self._journal.leases():
            self.look_at(lease.guest)
        return self.poll(now_ns)

    def look_at(self, guest: str, *, left: bool = False) -> None:
        """Have a guest looked at soon: it came, or its knobs are not as they were; `left`: it went to another host."""
        self._site.looks[guest] = left or self._site.looks.get(guest, False)

    def see(self, guest: str, knob: str, value: float) -> None:
        """Take what was measured of a knob; one that is leased and reads otherwise is looked at."""
        lease = self._journal.lease(guest, knob)
        if lease is not None and lease.state is LeaseState.HELD and lease.value != value:
            self.look_at(guest)

    def news(self) -> list[tuple[GuestEvent, str]]:
        """Return which leases have come and gone with their guests since the last call, each with its command."""
        return self._site.news()

    def poll(self, now_ns: int) -> list[Outcome]:
        """Do what is due: end leases, take back what failed, watch migrations; never raises HypervisorError."""
        self._journal.retry()
        now_ns = self._in_time(now_ns)
        if not 0 <= self._next_prune_ns - now_ns <= PRUNE_EVERY_NS:
            self._next_prune_ns = now_ns + PRUNE_EVERY_NS
            self._journal.prune(now_ns)
        outcomes: list[Outcome] = []
        if not self._retries.due((), now_ns):
            return outcomes
        try:
            self._poll_operations(now_ns, outcomes)
            self._poll_looks(now_ns, outcomes)
            self._poll_leases(now_ns, outcomes)
        except HypervisorUnavailable as error:
            # One deadline is enough to know: the rest would only wait as long each.
            self._retries.failed((), now_ns)
            log.warning("hypervisor not there, tried again later", error=str(error))
        else:
            self._retries.worked(())
        return outcomes

    def _in_time(self, now_ns: int) -> int:
        """Return the time; where the clock was set, all that is under way moves along: what was left of it is left.

        A lease that an earlier process left ends no later than it was written: which clock was right is not known.
        """
        if self._watch is None:
            return now_ns
        now_ns, by_ns = self._watch.look()
        if by_ns:
            log.warning("this machine's clock was set", by_s=by_ns / SECOND)
            leases, operations = self._journal.leases(), self._journal.operations()
            moves = [(one, min(by_ns, 0) if one.command in self._earlier else by_ns) for one in leases]
            self._journal.note(
                *(LeaseKept(moved_lease(lease, moved_ns)) for lease, moved_ns in moves),
                *(OperationKept(moved_operation(operation, by_ns)) for operation in operations),
            )
            self._migrations.clock_set(by_ns)
            for lease in leases:
                self.look_at(lease.guest)  # its note tells the end too
        return now_ns

    def _poll_leases(self, now_ns: int, outcomes: list[Outcome]) -> None:
        look = not 0 < self._next_look_ns - now_ns <= LOOK_EVERY_NS
        if look:
            self._next_look_ns = now_ns + LOOK_EVERY_NS
        for lease in self._journal.leases():
            # Of a guest on its way nothing can be changed: whoever has it in the end ends the lease.
            if self._site.move_of(lease.guest) is not None:
                continue
            if self._over(lease, now_ns):
                self._attempt(lease.key, partial(self._end, lease, now_ns), now_ns, outcomes)
            elif look:
                self._attempt(("strained", *lease.key), partial(self._relieve, lease, now_ns), now_ns, outcomes)

    def _poll_operations(self, now_ns: int, outcomes: list[Outcome]) -> None:
        for operation in self._journal.operations():
            self._attempt((operation.command.id,), partial(self._look, operation, now_ns), now_ns, outcomes)

    def _look(self, operation: Operation, now_ns: int) -> list[Outcome]:
        action = operation.command.action
        if isinstance(action, Power):
            return self._powers.poll(operation, action, now_ns)
        if isinstance(action, Abort):
            return self._migrations.poll_abort(operation, now_ns)
        if isinstance(action, Run):
            return self._hooks.poll(operation, action, now_ns)
        return self._migrations.poll(operation, now_ns)

    def _poll_looks(self, now_ns: int, outcomes: list[Outcome]) -> None:
        """Look at a few of the guests that wait for it, all of them at the first time."""
        if self._survey:
            self._survey = not self._attempt(("survey",), self._look_at_all, now_ns, outcomes)
        for guest in list(self._site.looks)[:_LOOKS]:
            left, done = self._site.looks.pop(guest), False
            work = partial(self._travel.look, guest, now_ns, left=left)
            try:
                done = self._attempt(("look", guest), work, now_ns, outcomes)
            finally:
                if not done:
                    self.look_at(guest, left=left)

    def _look_at_all(self) -> list[Outcome]:
        for stats in self._site.hypervisor.guests():
            self.look_at(stats.uuid)
        return []

    def _relieve(self, lease: Lease, now_ns: int) -> list[Outcome]:
        """End a lease that its guest cannot bear any longer."""
        why = self._knobs.strained(lease)
        return self._knobs.end(lease, why, now_ns) if why else []

    def _over(self, lease: Lease, now_ns: int) -> bool:
        """Tell whether a lease is to be settled; the cap holds also for one whose end a clock set back moved away."""
        left_ns = lease.end_ns - now_ns
        ends = lease.state is not LeaseState.HELD or bool(self.forsaken)
        return ends or not 0 < left_ns <= self._lease_max_ns + _CLOCK_SLACK_NS

    def _end(self, lease: Lease, now_ns: int) -> list[Outcome]:
        match lease.state:
            case LeaseState.INTENDED:
                told = bool(self._journal.outcomes(lease.command))
                made = self._knobs.undo(lease, INTERRUPTED, now_ns)
                return ([] if told else [made]) + self._end_prior(lease, now_ns)
            case LeaseState.HELD:
                return self._knobs.end(lease, self.forsaken or "the lease has ended", now_ns)
            case LeaseState.RELEASING:
                return self._knobs.give_back(lease, now_ns)

    def _end_prior(self, undone: Lease, now_ns: int) -> list[Outcome]:
        """End the lease that an undone change has brought back, where its time is over too."""
        prior = self._journal.lease(*undone.key)
        return self._end(prior, now_ns) if prior is not None and self._over(prior, now_ns) else []

    def _attempt(
        self, key: tuple[str, ...], work: Callable[[], list[Outcome]], now_ns: int, outcomes: list[Outcome]
    ) -> bool:
        """Do something that may fail, where it is due; returns whether it was done."""
        if not self._retries.due(key, now_ns):
            return False
        try:
            outcomes += work()
        except HypervisorUnavailable:
            raise
        except HypervisorError as error:
            self._retries.failed(key, now_ns)
            say = log.debug if isinstance(error, NotSettled) else log.warning
            say("not settled, tried again later", what=key, error=str(error))
            return False
        self._retries.worked(key)
        return True

    @property
    def epoch(self) -> int:
        """The newest epoch of any command so far."""
        return self._journal.epoch

    def abort_migrations(self, now_ns: int) -> None:
        """Abort the migrations under way that can be; their guests stay."""
        self._migrations.abort_all("everything is to stop", self._in_time(now_ns))

    def busy(self, guest: str) -> bool:
        """Tell whether a long operation on a guest is in flight, or a change to it is still to be taken back."""
        moving = (operation.guest for operation in self._journal.operations())
        unsettled = (lease.guest for lease in self._journal.leases() if lease.state is not LeaseState.HELD)
        return guest in {*moving, *unsettled}

    def moving(self, guest: str) -> str:
        """Return the id of the command that a long operation on a guest carries out, empty where there is none."""
        return next((one.command.id for one in self._journal.operations() if one.guest == guest), "")

    def came_by(self, guest: str) -> str:
        """Return the command by which another host's agent brings a guest here, empty where none is known."""
        return self._travel.came_by(guest)

    def leases(self) -> Sequence[Lease]:
        """Return all leases, those being given back too."""
        return self._journal.leases()

    def leased(self, guest: str, knob: str) -> bool:
        """Tell whether virtpilot holds a lease on a knob."""
        return self._journal.lease(guest, knob) is not None

    def unpublished(self) -> list[Outcome]:
        """Return the outcomes that the broker is not known to have, oldest first."""
        return self._journal.unpublished()

    def published(self, outcome_id: str) -> None:
        """Note that the broker has an outcome."""
        self._journal.published(outcome_id)

    def close(self) -> None:
        """Let go of the journal; leases stay, and are ended by the next run."""
        self._hooks.close()
        self._journal.close()
