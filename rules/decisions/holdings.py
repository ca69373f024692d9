"""Which rule holds which knob of which guest, and the knobs on their way back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping

from virtpilot.model import Command, Outcome
from virtpilot.rules.decisions.arbiter import Lease
from virtpilot.rules.decisions.ladder import Ladder, Phase
from virtpilot.rules.decisions.want import Release
from virtpilot.rules.language.records import AllocateRemedy, Remedy, SetRemedy
from virtpilot.tracked import Tracked

Slot = tuple[str, str]
"""A guest and a knob."""


class Holdings:
    """The leases as the controller knows them; the agents are who keeps them."""

    def __init__(self, leases: Mapping[Slot, Lease] | None = None, releases: Iterable[Release] = ()) -> None:
        self.leases: Tracked[Slot, Lease] = Tracked()
        self.releases: list[Release] = list(releases)
        self._soonest_ns = math.inf
        for slot, lease in (leases or {}).items():
            self._put(slot, lease)

    def _put(self, slot: Slot, lease: Lease) -> None:
        self.leases[slot] = lease
        self._soonest_ns = min(self._soonest_ns, lease.until_ns)

    def done(self, ladder: Ladder, remedy: Remedy, priority: int, at_ns: int) -> None:
        """Take a knob that was set."""
        if isinstance(remedy, SetRemedy):
            until_ns = at_ns + remedy.lease_ns
            lease = Lease(rule=ladder.rule, priority=priority, command=ladder.command, until_ns=until_ns)
            self._put((ladder.subject.id, remedy.knob), lease)

    def half_over(self, slot: Slot, rule: str, remedy: SetRemedy, now_ns: int) -> bool:
        """Tell whether a rule's own lease of a knob is to be renewed, where it still asks for the same."""
        lease = self.leases.get(slot)
        return lease is not None and lease.rule == rule and 2 * (lease.until_ns - now_ns) <= remedy.lease_ns

    def divided(self, ladder: Ladder, remedy: AllocateRemedy, priority: int, commands: Iterable[Command]) -> None:
        """Take the knobs that a division sets: all are told by the command that the ladder waits for."""
        for command in commands:
            lease = Lease(
                rule=ladder.rule,
                priority=priority,
                command=command.id,
                until_ns=command.issued_ns + remedy.lease_ns,
                division=ladder.command,
            )
            self._put((command.action.guest, remedy.knob), lease)

    def give_back(self, ladder: Ladder, remedy: Remedy, outcome: Outcome) -> Iterator[Release]:
        """Queue what a rung has set for its release, and yield it; not what is another rule's by now or has ended."""
        if isinstance(remedy, SetRemedy):
            slot = (ladder.subject.id, remedy.knob)
            owner = self.leases.get(slot)
            ended = owner is None and ladder.phase is Phase.MEASURING
            if not ended and (owner is None or owner.command == ladder.command):
                yield self._release(slot, ladder.command, ladder, outcome)
        elif isinstance(remedy, AllocateRemedy):
            for slot, lease in list(self.leases.items()):
                if lease.division == ladder.command:
                    yield self._release(slot, lease.command, ladder, outcome)

    def _release(self, slot: Slot, command: str, ladder: Ladder, outcome: Outcome) -> Release:
        self.leases.pop(slot, None)
        guest, knob = slot
        release = Release(cause=outcome.id, command=command, rule=ladder.rule, guest=guest, knob=knob, host=ladder.host)
        self.releases.append(release)
        return release

    def due(self) -> list[Release]:
        """Return the knobs to give back now, each once."""
        due, self.releases = self.releases, []
        return due

    def expire(self, now_ns: int) -> None:
        """Forget leases whose time is over."""
        if self._soonest_ns <= now_ns:
            self.end(lambda lease: lease.until_ns <= now_ns)
            self._soonest_ns = min((lease.until_ns for lease in self.leases.values()), default=math.inf)

    def end(self, over: Callable[[Lease], bool]) -> None:
        """Forget leases that are over."""
        for slot in [slot for slot, lease in self.leases.items() if over(lease)]:
            del self.leases[slot]
