"""Knobs: values of a running guest that are set for a time, under a lease, and given back at its end."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import msgspec
from msgspec.structs import replace

from virtpilot.action import ReleaseKnob, SetKnob
from virtpilot.actuators.caps import Caps
from virtpilot.actuators.knobs import check_value
from virtpilot.actuators.knobs.memory import may_strain, shortage
from virtpilot.actuators.ledger import Entry, Lease, LeaseDropped, LeaseKept, LeaseState, OutcomeKept
from virtpilot.actuators.lifecycle import Point, Site, outcome, seen
from virtpilot.clock import SECOND, seconds
from virtpilot.errors import (
    CommandRefused,
    GuestNotFound,
    HypervisorError,
    HypervisorTimeout,
    HypervisorUnavailable,
    KnobUnsupported,
)
from virtpilot.events import EventKind
from virtpilot.hypervisor import OFF, RUNNING, GuestState
from virtpilot.knobs import Family, Knob, find, names
from virtpilot.model import Command, Outcome, Result


class Returned(msgspec.Struct, frozen=True):
    """Where a knob stands after giving it back: its last value read, whether it is the wanted one, and why not."""

    done: bool
    live: int | None = None
    why: str = ""
    gone: bool = False


class Knobs:
    """Sets knobs under leases and gives them back."""

    def __init__(self, site: Site, caps: Caps) -> None:
        self._site = site
        self._hypervisor = site.hypervisor
        self._journal = site.journal
        self._caps = caps
        self._lease_max_ns = seconds(caps.lease_max_s)

    def set(self, command: Command, action: SetKnob, now_ns: int) -> list[Outcome]:
        """Set a knob: plan, pre-check, execute, verify, keep or revert; raises CommandRefused and HypervisorError."""
        lease = self._plan(command, action, now_ns)
        self._check(lease, action)
        self._site.reached(Point.BEFORE_INTENT)
        self._site.commit(*seen(command), LeaseKept(lease))
        self._site.reached(Point.AFTER_INTENT)
        try:
            live = self._execute(lease)
        except HypervisorError as error:
            return [self._revert(lease, str(error), now_ns, lost=_lost(error))]
        if live == lease.value:
            return [self._keep(lease, now_ns)]
        reason = f"{action.knob} was set to {action.value} and reads {live}"
        return [self._revert(lease, reason, now_ns, lost=False)]

    def _plan(self, command: Command, action: SetKnob, now_ns: int) -> Lease:
        """Return the lease to be; one that is held already gives its baseline and stays as the prior one."""
        if find(action.knob) is None:
            raise CommandRefused("knob", f"no knob {action.knob!r} here; there are: {names()}")
        held = self._journal.lease(action.guest, action.knob)
        return Lease(
            guest=action.guest,
            knob=action.knob,
            baseline=held.baseline if held is not None else action.expected,
            value=action.value,
            rule=command.rule,
            command=command.id,
            end_ns=now_ns + seconds(action.lease_s),
            state=LeaseState.INTENDED,
            prior=held,
        )

    def _check(self, lease: Lease, action: SetKnob) -> None:
        knob = _known(lease)
        if not knob.of_host:
            self._site.check_guest(lease.guest)
        elif lease.guest != self._site.host:
            raise CommandRefused("host", f"{lease.knob} is for {lease.guest}, this is {self._site.host}")
        live = self._check_foreign(lease, action.expected)
        try:
            check_value(self._hypervisor, lease.guest, knob, live, lease.value, self._caps)
        except KnobUnsupported as error:
            raise CommandRefused("knob", str(error)) from error
        if seconds(action.lease_s) > self._lease_max_ns:
            limit_s = self._lease_max_ns / SECOND
            raise CommandRefused("caps", f"a lease of {action.lease_s:g} s is longer than this host's {limit_s:g} s")

    def _check_foreign(self, lease: Lease, expected: int) -> int:
        """Return the live value; refuses to overwrite what somebody else has set."""
        held = lease.prior
        if held is not None and held.state is not LeaseState.HELD:
            raise CommandRefused("busy", f"{lease.knob} of guest {lease.guest} is being given back just now")
        try:
            live = self._hypervisor.get_knob(lease.guest, lease.knob)
        except KnobUnsupported as error:
            raise CommandRefused("knob", str(error)) from error
        except GuestNotFound:
            raise CommandRefused("guest", f"guest {lease.guest} is not on {self._site.host}") from None
        ours = expected if held is None else held.value
        if live != ours:
            who = "the decision was based on" if held is None else "virtpilot set it to"
            raise CommandRefused(FOREIGN, f"{lease.knob} is {live}, {who} {ours}: somebody else changed it")
        if live != expected:
            # By another command of ours that came in between, or out of its order.
            raise CommandRefused("stale", f"{lease.knob} was {expected} when this was decided, and is {live} by now")
        return live

    def _execute(self, lease: Lease) -> int:
        self._site.write_note(lease.guest)
        self._site.reached(Point.AFTER_NOTE)
        self._hypervisor.set_knob(lease.guest, lease.knob, lease.value)
        self._site.reached(Point.AFTER_CHANGE)
        return self._hypervisor.get_knob(lease.guest, lease.knob)

    def _keep(self, lease: Lease, now_ns: int) -> Outcome:
        self._site.reached(Point.AFTER_VERIFY)
        made = self._outcome(
            lease, Result.DONE, now_ns, before=_before(lease), after=lease.value, action=f"set {lease.knob}"
        )
        self._journal.note(LeaseKept(replace(lease, state=LeaseState.HELD, prior=None)), OutcomeKept(made))
        if lease.prior is not None:
            self._site.rewrite_note(lease.guest)
        self._site.reached(Point.AFTER_KEEP)
        return made

    def _revert(self, lease: Lease, reason: str, now_ns: int, *, lost: bool) -> Outcome:
        """Take back a change that did not work; what cannot be taken back now stays an intended lease for later."""
        self._site.reached(Point.BEFORE_REVERT)
        if not lost:
            try:
                return self.undo(lease, reason, now_ns)
            except HypervisorError as error:
                reason = f"{reason}; taking it back: {error}"
        later = f"{reason}; it is set back to {_before(lease)} as soon as the hypervisor answers"
        made = self._outcome(lease, Result.FAILED, now_ns, reason=later, action=f"set {lease.knob}")
        self._journal.note(OutcomeKept(made))
        return made

    def undo(self, lease: Lease, reason: str, now_ns: int) -> Outcome:
        """Bring an intended lease's knob to where it was before; raises HypervisorError to be tried again.

        The value is set whatever it reads. If right: a call left hanging may still be under way, and this one queues
        behind it (what gets no turn is no refusal but a timeout). If unknown: it was right just before the change, so
        it is the change, rounded.
        """
        before = _before(lease)
        returned = self._return(lease, before, ours=None)
        entry: Entry = LeaseDropped(*lease.key)
        if returned.done and lease.prior is not None:
            entry = LeaseKept(lease.prior)
        told = "; ".join(filter(None, (reason, returned.why or f"it is back at {before}")))
        made = self._outcome(
            lease, Result.FAILED, now_ns, reason=told, before=before, after=returned.live, action=f"set {lease.knob}"
        )
        self._site.reached(Point.AFTER_REVERT)
        self._journal.note(entry, OutcomeKept(made))
        if not returned.gone:
            self._site.rewrite_note(lease.guest)
        return made

    def release(self, command: Command, action: ReleaseKnob, now_ns: int) -> list[Outcome]:
        """Give a knob back now; one that is not leased has been given back already. Raises CommandRefused."""
        lease = self._journal.lease(action.guest, action.knob)
        if lease is None:
            return [self._nothing_leased(command, action, now_ns)]
        if lease.state is LeaseState.INTENDED or lease.release:
            raise CommandRefused("busy", f"{lease.knob} of guest {lease.guest} is being given back just now")
        self._site.check_stays(lease.guest)
        self._site.reached(Point.BEFORE_RELEASE)
        releasing = replace(lease, state=LeaseState.RELEASING, release=command.id, why="released")
        self._journal.note(*seen(command), LeaseKept(releasing))
        self._site.reached(Point.AFTER_RELEASE_MARK)
        try:
            return self.give_back(releasing, now_ns)
        except HypervisorError:
            return []  # the executor tries again until it is done; the outcome comes then

    def _nothing_leased(self, command: Command, action: ReleaseKnob, now_ns: int) -> Outcome:
        made = outcome(
            command.id,
            Result.REVERTED,
            now_ns,
            host=self._site.host,
            guest=action.guest,
            action=f"release {action.knob}",
            rule=command.rule,
            reason="nothing leased",
        )
        self._journal.note(*seen(command), OutcomeKept(made))
        return made

    def end(self, lease: Lease, why: str, now_ns: int) -> list[Outcome]:
        """End a held lease; raises HypervisorError, and then the lease stays marked for release."""
        self._site.reached(Point.BEFORE_RELEASE)
        releasing = replace(lease, state=LeaseState.RELEASING, why=why)
        self._journal.note(LeaseKept(releasing))
        self._site.reached(Point.AFTER_RELEASE_MARK)
        return self.give_back(releasing, now_ns)

    def strained(self, lease: Lease) -> str:
        """Return why a held lease is to end before its time, "" where it may stay; raises HypervisorError."""
        knob = find(lease.knob)
        if knob is None or not may_strain(knob, lease.baseline, lease.value):
            return ""
        try:
            running = self._hypervisor.state(lease.guest) in RUNNING
        except GuestNotFound:
            return ""
        return shortage(self._hypervisor.footprint(lease.guest), self._caps) if running else ""

    def give_back(self, lease: Lease, now_ns: int) -> list[Outcome]:
        """Restore the baseline of a lease marked for release; raises HypervisorError to be tried again."""
        returned = self._return(lease, lease.baseline, ours=own_values(lease))
        if returned.gone:
            return self.leave(lease, now_ns)
        self._site.reached(Point.AFTER_RESTORE)
        foreign = returned.live not in {None, lease.baseline}
        made = self.over(lease, "; ".join(filter(None, (lease.why, returned.why))), returned.live, now_ns, foreign)
        self._site.reached(Point.AFTER_RELEASE)
        return [made]

    def over(self, lease: Lease, reason: str, live: int | None, now_ns: int, foreign: bool) -> Outcome:
        """Drop a lease whose knob now reads `live`; `foreign`: somebody else has set that."""
        made = self._outcome(
            lease,
            Result.REVERTED,
            now_ns,
            guard=FOREIGN if foreign else "",
            reason=reason,
            before=lease.value,
            after=live,
            action=f"release {lease.knob}",
        )
        self._journal.note(LeaseDropped(*lease.key), OutcomeKept(made))
        self._site.rewrite_note(lease.guest)
        return made

    def leave(self, lease: Lease, now_ns: int) -> list[Outcome]:
        """Let go of a lease whose guest is no longer here; a release that was asked for has failed then."""
        why = f"not on {self._site.host} any more, the lease is where the guest is"
        if not lease.release:
            self._journal.note(LeaseDropped(*lease.key))
            self._site.tell(EventKind.LEASE_LEFT, lease, why, now_ns)
            return []
        made = self._outcome(lease, Result.FAILED, now_ns, reason=f"the guest is {why}", action=f"release {lease.knob}")
        self._journal.note(LeaseDropped(*lease.key), OutcomeKept(made))
        self._site.tell(EventKind.LEASE_LEFT, lease, why, now_ns)
        return [made]

    def _return(self, lease: Lease, target: int, *, ours: Collection[int] | None) -> Returned:
        """Set a knob back to `target` where its value is one of `ours` (None: any); what others have set stays."""
        try:
            state = GuestState.RUNNING if _known(lease).of_host else self._hypervisor.state(lease.guest)
            if state in OFF:
                return Returned(False, None, f"the guest is {state}: it starts with its own {lease.knob}")
            live = self._hypervisor.get_knob(lease.guest, lease.knob)
            if ours is not None and live not in ours:
                return Returned(False, live, f"{lease.knob} was changed by someone else to {live} and stays")
            if ours is None or live != target:
                live = self._set_back(lease, target, sure=ours is not None)
        except GuestNotFound:
            why = f"the guest is not on {self._site.host} any more: what it has of {lease.knob} went with it"
            return Returned(False, None, why, gone=True)
        except KnobUnsupported as error:
            return Returned(False, None, str(error))
        if live != target:
            raise HypervisorError(f"{lease.knob} of guest {lease.guest} was set back to {target} and reads {live}")
        return Returned(True, live)

    def _set_back(self, lease: Lease, target: int, *, sure: bool) -> int:
        """Set a knob to `target` and return what it reads; a refusal is none where that is what it reads anyway.

        `sure`: the change is known to have been made, so that it is there to be taken back whatever is said of it.
        """
        try:
            self._hypervisor.set_knob(lease.guest, lease.knob, target)
        except HypervisorError as error:
            if isinstance(error, GuestNotFound) or _lost(error):
                raise
            live = self._hypervisor.get_knob(lease.guest, lease.knob)
            if live == target:
                return live
            if isinstance(error, KnobUnsupported) and not sure:
                raise
            raise HypervisorError(f"{lease.knob} of guest {lease.guest} reads {live}: {error}") from error
        return self._hypervisor.get_knob(lease.guest, lease.knob)

    def _outcome(
        self,
        lease: Lease,
        result: Result,
        now_ns: int,
        *,
        action: str,
        guard: str = "",
        reason: str = "",
        before: int | None = None,
        after: int | None = None,
    ) -> Outcome:
        return outcome(
            lease.release or lease.command,
            result,
            now_ns,
            host=self._site.host,
            guest=lease.guest,
            action=action,
            rule=lease.rule,
            guard=guard,
            reason=reason,
            before={} if before is None else {lease.knob: before},
            after={} if after is None else {lease.knob: after},
        )


# The guard that stands for what somebody else has set; an outcome names it where a lease has yielded to that.
FOREIGN: Final = "foreign-change"
# What a change that was cut short by the agent's own end is reported with.
INTERRUPTED: Final = "the agent stopped during the change"


def _known(lease: Lease) -> Knob:
    knob = find(lease.knob)
    if knob is None:
        raise KnobUnsupported(f"no knob {lease.knob!r} here")
    return knob


def own_values(lease: Lease) -> Collection[int]:
    """Return the values that virtpilot itself may have left."""
    held = held_values(lease)
    return held if isinstance(held, range) else {lease.baseline, *held}


def held_values(lease: Lease) -> Collection[int]:
    """Return the values at which a lease is in force: that before it too, until the change is verified.

    A balloon on its way stands anywhere between its value and its baseline.
    """
    knob, prior = find(lease.knob), lease.prior.value if lease.prior is not None else lease.value
    if knob is not None and knob.family is Family.BALLOON:
        values = (lease.value, prior, lease.baseline)
        return range(min(values), max(values) + 1)
    return {lease.value, prior}


def _before(lease: Lease) -> int:
    return lease.prior.value if lease.prior is not None else lease.baseline


def _lost(error: HypervisorError) -> bool:
    """Tell whether asking again at once is pointless, and the call itself may still be under way."""
    return isinstance(error, HypervisorUnavailable | HypervisorTimeout)
