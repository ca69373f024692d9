"""Leases that travel: what a guest carries is compared with what the journal says, and with what the guest has.

look → gone? let go · off? over · a lease that it carries and nobody holds here? taken up
     · a value that is not ours? somebody else's: the lease ends and the value stays

The holder of a lease is the agent of the host on which the guest runs: libvirt sees to it that this is one host.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import structlog
from msgspec.structs import replace

from virtpilot.actuators.caps import Caps
from virtpilot.actuators.knob import Knobs, held_values
from virtpilot.actuators.ledger import Lease, LeaseKept, LeaseState
from virtpilot.actuators.lifecycle import Point, Site
from virtpilot.actuators.note import read_journey, read_note
from virtpilot.clock import seconds
from virtpilot.errors import GuestNotFound, HypervisorError, KnobUnsupported
from virtpilot.events import EventKind
from virtpilot.hypervisor import OFF, RUNNING, NoteKeeper
from virtpilot.knobs import Knob, find
from virtpilot.model import Outcome

log = structlog.get_logger(__name__)


class NotSettled(HypervisorError):
    """A guest is between two hosts, or paused: look again."""


class Travel:
    """Takes up the leases of guests that come, and lets go of those of guests that leave."""

    def __init__(self, site: Site, knobs: Knobs, caps: Caps) -> None:
        self._site = site
        self._knobs = knobs
        self._hypervisor = site.hypervisor
        self._journal = site.journal
        self._lease_max_ns = seconds(caps.lease_max_s)

    def look(self, guest: str, now_ns: int, *, left: bool) -> list[Outcome]:
        """Settle what is leased of a guest; `left`: libvirt has told that it went to another host.

        Raises HypervisorError to be asked again, NotSettled among them.
        """
        held = [lease for lease in self._journal.leases() if lease.guest == guest]
        if guest == self._site.host:
            return self._look_at_host(held, now_ns)
        try:
            state = self._hypervisor.state(guest)
            if state in RUNNING:
                return self._settle(guest, held, now_ns)
        except GuestNotFound:
            return self.let_go(held, now_ns)
        if state in OFF:
            if left:
                return self.let_go(held, now_ns)
            return [
                outcome
                for lease in held
                if lease.state is LeaseState.HELD
                for outcome in self._knobs.end(lease, "the guest ended", now_ns)
            ]
        # A guest that comes is paused here while it still runs there.
        if held or read_note(guest, self._note(guest) or ""):
            raise NotSettled(f"guest {guest} is {state}")
        return []

    def _look_at_host(self, held: Sequence[Lease], now_ns: int) -> list[Outcome]:
        """Compare the host's own knobs, which go nowhere."""
        kept = [lease for lease in held if lease.state is LeaseState.HELD]
        return [outcome for lease in kept for outcome in self._compare(lease, None, now_ns)]

    def let_go(self, leases: Sequence[Lease], now_ns: int) -> list[Outcome]:
        """Drop the leases of a guest that is no longer here: they are where it is. A release under way fails."""
        outcomes = []
        for lease in leases:
            if self._journal.lease(*lease.key) != lease:
                continue  # settled before the guest was found gone
            # The outcome of an intended one is not told yet: it is taken back, which finds that the guest is gone.
            if lease.state is not LeaseState.INTENDED:
                self._site.reached(Point.BEFORE_LET_GO)
                outcomes += self._knobs.leave(lease, now_ns)
                self._site.reached(Point.AFTER_LET_GO)
        return outcomes

    def _settle(self, guest: str, held: Sequence[Lease], now_ns: int) -> list[Outcome]:
        if self._site.move_of(guest) is not None:
            return []  # its end has the guest looked at again
        note = self._note(guest)
        carried = read_note(guest, note) if note is not None else None
        outcomes = []
        for lease in held:
            if lease.state is LeaseState.HELD and not self._renewed(lease, carried, now_ns):
                outcomes += self._compare(lease, carried, now_ns)
        unknown = [lease.knob for lease in self._unheld(guest, carried) if not self._take_up(lease, now_ns)]
        if unknown:
            log.warning("a guest carries leases on knobs that are not known here", guest=guest, knobs=unknown)
        elif carried is not None and (self._differs(guest, carried) or read_journey(guest, note or "")):
            self._site.write_note(guest)
        return outcomes

    def _unheld(self, guest: str, carried: Mapping[str, Lease] | None) -> list[Lease]:
        return [lease for knob, lease in (carried or {}).items() if self._journal.lease(guest, knob) is None]

    def _renewed(self, lease: Lease, carried: Mapping[str, Lease] | None, now_ns: int) -> bool:
        """Take up what was leased elsewhere while nobody looked here: the note is never older than a held lease."""
        other = (carried or {}).get(lease.knob)
        return (
            other is not None
            and other.command != lease.command
            and self._take_up(other, now_ns)
            and self._journal.lease(*lease.key) != lease
        )

    def _differs(self, guest: str, carried: Mapping[str, Lease]) -> bool:
        held = {lease.knob: _told(lease) for lease in self._journal.leases() if lease.guest == guest}
        return held != {knob: _told(lease) for knob, lease in carried.items()}

    def came_by(self, guest: str) -> str:
        """Return the command by which a guest is brought here, empty where nobody says so of one of virtpilot's."""
        try:
            journey = read_journey(guest, self._note(guest) or "")
        except HypervisorError as error:
            log.debug("it is not told how a guest came", guest=guest, error=str(error))
            return ""
        return journey.command if journey is not None and journey.to == self._site.host else ""

    def _note(self, guest: str) -> str | None:
        """Return what the guest carries, None where the driver cannot have it carry anything."""
        if not isinstance(self._hypervisor, NoteKeeper):
            return None
        try:
            return self._hypervisor.read_note(guest)
        except KnobUnsupported:
            return None

    def _compare(self, lease: Lease, carried: Mapping[str, Lease] | None, now_ns: int) -> list[Outcome]:
        """End a lease whose value is not ours any more; the value stays as it is."""
        live = self._read(lease)
        if live is None or live in held_values(lease):
            return []
        # What was set live is gone with the process that had it, and so is the note.
        anew = carried is not None and lease.knob not in carried
        why = "the guest was started anew with" if anew else "somebody else changed it to"
        self._site.reached(Point.BEFORE_YIELD)
        made = self._knobs.over(lease, f"{why} {lease.knob} {live}", live, now_ns, foreign=not anew)
        self._site.reached(Point.AFTER_YIELD)
        return [made]

    def _take_up(self, lease: Lease, now_ns: int) -> bool:
        """Hold a lease that came with its guest, where the guest still has the value; False for an unknown knob.

        Whoever has written the note: what no guest's knob can be is no lease, and goes with the next note.
        """
        knob = find(lease.knob)
        if knob is not None and not _sound(lease, knob):
            log.warning("a guest carries a lease that cannot be one", guest=lease.guest, knob=lease.knob)
            return True
        live = self._read(lease)
        if live is None:
            return False
        if live not in held_values(lease) or live == lease.baseline:
            return True
        taken = replace(lease, prior=None, end_ns=min(lease.end_ns, now_ns + self._lease_max_ns))
        if lease.prior is not None and live == lease.prior.value:
            taken = replace(
                taken, value=live, end_ns=now_ns
            )  # the change was not made: what was before it is given back
        self._site.reached(Point.BEFORE_TAKE_UP)
        self._journal.note(LeaseKept(taken))
        self._site.tell(EventKind.LEASE_TAKEN, taken, "came with the guest, held here now", now_ns)
        self._site.reached(Point.AFTER_TAKE_UP)
        return True

    def _read(self, lease: Lease) -> int | None:
        try:
            return self._hypervisor.get_knob(lease.guest, lease.knob)
        except KnobUnsupported:
            return None


def _sound(lease: Lease, knob: Knob) -> bool:
    """Tell whether a lease can be one: on a guest's knob, with values that this may have."""
    values = [lease.value, lease.baseline, *([lease.prior.value] if lease.prior is not None else [])]
    return not knob.of_host and all(map(knob.allows, values))


def _told(lease: Lease) -> tuple[int, int, int, str]:
    return (lease.baseline, lease.value, lease.end_ns, lease.command)
