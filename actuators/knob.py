"""A guest's knobs: set under a lease, given back at its end. Source: virDomainSetSchedulerParameters for cpu_shares."""

from __future__ import annotations

from typing import Annotated

import msgspec

from virtpilot.actuators.journal import Journal, Lease, Unleased
from virtpilot.clock import seconds
from virtpilot.errors import CommandRefused, GuestNotFound, HypervisorError
from virtpilot.hypervisor import GuestState, Hypervisor
from virtpilot.model import Command, SetKnob


class Caps(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What this host never lets a command do, whoever signed it."""

    cpu_shares_min: Annotated[int, msgspec.Meta(description="The least cpu_shares a guest is given.", ge=2)] = 2
    cpu_shares_max: Annotated[int, msgspec.Meta(description="The most cpu_shares a guest is given.", le=262_144)] = (
        262_144
    )
    lease_max_s: Annotated[float, msgspec.Meta(description="The longest lease.", gt=0)] = 86_400.0

    def check(self, action: SetKnob) -> None:
        """Raise CommandRefused where an action goes beyond the caps."""
        limits = {"cpu_shares": (self.cpu_shares_min, self.cpu_shares_max)}.get(action.knob)
        if limits is None:
            raise CommandRefused("caps", f"the knob {action.knob[:64]!r} is not for setting on this host")
        if not limits[0] <= action.value <= limits[1]:
            raise CommandRefused("caps", f"{action.knob} {action.value} is outside {limits[0]} to {limits[1]}")
        if not 0 < action.lease_s <= self.lease_max_s:
            raise CommandRefused("caps", f"a lease of {action.lease_s:g} s is outside 0 to {self.lease_max_s:g} s")


class KnobLife:
    """Plan, pre-check, execute, verify, keep or revert, for one guest's knob."""

    def __init__(self, hypervisor: Hypervisor, journal: Journal, caps: Caps) -> None:
        self._hypervisor = hypervisor
        self._journal = journal
        self._caps = caps

    def set(self, command: Command, action: SetKnob, now_ns: int) -> tuple[dict[str, float], dict[str, float]]:
        """Set a knob and return its value before and after; raises CommandRefused, HypervisorError or StateError."""
        lease = self._plan(command, action, now_ns)
        # On disk first: from here on the baseline comes back, whatever happens to this process.
        self._journal.append(lease)
        try:
            self._hypervisor.set_knob(action.guest, action.knob, action.value)
            read = self._hypervisor.get_knob(action.guest, action.knob)
            if read != action.value:
                raise HypervisorError(f"{action.knob} reads {read} after it was set to {action.value}")
        except HypervisorError:
            self.restore(lease)
            raise
        self._journal.append(msgspec.structs.replace(lease, held=True))
        return {action.knob: float(lease.former)}, {action.knob: float(action.value)}

    def _plan(self, command: Command, action: SetKnob, now_ns: int) -> Lease:
        self._caps.check(action)
        state = self._hypervisor.state(action.guest)
        if state not in {GuestState.RUNNING, GuestState.BLOCKED}:
            raise CommandRefused("state", f"the guest is {state}, not running")
        current = self._hypervisor.get_knob(action.guest, action.knob)
        former = self._journal.leases.get((action.guest, action.knob))
        if former is not None and current != former.value:
            # Somebody else has set it since: theirs is the new baseline, and not ours to overwrite.
            self._journal.append(Unleased(action.guest, action.knob))
            former = None
        if current != action.expected:
            reason = f"{action.knob} is {current} by now, not {action.expected} as when it was decided"
            raise CommandRefused("foreign-change", reason)
        return Lease(
            guest=action.guest,
            knob=action.knob,
            baseline=former.baseline if former is not None else current,
            value=action.value,
            former=current,
            command=command.id,
            rule=command.rule,
            end_ns=now_ns + seconds(action.lease_s),
        )

    def restore(self, lease: Lease) -> tuple[int | None, str]:
        """Give a knob back and end its lease; return the value it has now and what there is to say.

        Raises HypervisorError or StateError where that is not possible now: the lease then stays, to be tried again.
        """
        try:
            current = self._hypervisor.get_knob(lease.guest, lease.knob)
            note = ""
            if current not in {lease.value, lease.former, lease.baseline}:
                note = f"somebody else has set {lease.knob} to {current}: it stays"
            elif current != lease.baseline:
                self._hypervisor.set_knob(lease.guest, lease.knob, lease.baseline)
                current = self._hypervisor.get_knob(lease.guest, lease.knob)
                if current != lease.baseline:
                    raise HypervisorError(f"{lease.knob} reads {current} after it was set back to {lease.baseline}")
        except GuestNotFound:
            current, note = None, "the guest is not here any more"
        self._journal.append(Unleased(lease.guest, lease.knob))
        return current, note
