"""What is in flight on each subject: commands without an outcome yet, and knobs on their way back."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from virtpilot.model import Outcome, Result
from virtpilot.tracked import Tracked


class Flight(msgspec.Struct, frozen=True, kw_only=True):
    """An operation on a subject: the command it belongs to; after `until_ns` nobody waits for its end any longer."""

    subject: str
    command: str
    since_ns: int
    until_ns: int
    release: bool = False


class Flights:
    """The operations whose end is awaited; while a subject has one, nothing is begun there."""

    def __init__(self) -> None:
        self._flights: Tracked[tuple[str, bool], Flight] = Tracked()
        self._returning: dict[str, set[tuple[str, bool]]] = {}
        self._count: dict[str, int] = {}

    def busy(self, subject: str) -> bool:
        """Tell whether anything is in flight on a subject."""
        return subject in self._count

    def add(self, flight: Flight) -> None:
        """Begin to wait for an operation's end."""
        key = (flight.command, flight.release)
        if key not in self._flights:
            self._count[flight.subject] = self._count.get(flight.subject, 0) + 1
        self._flights[key] = flight
        if flight.release:
            self._returning.setdefault(flight.subject, set()).add(key)

    def landed(self, outcome: Outcome) -> set[str]:
        """Take an agent's outcome and return the subjects concerned.

        It ends its command, and a release when it is not older and says so or is of another command.

        The decider does not know a release's own command; that a knob is back, or that nothing could be given back, is
        told of the same guest.
        """
        if outcome.result not in {Result.DONE, Result.REFUSED, Result.FAILED, Result.REVERTED}:
            return set()
        ended = {self._end((outcome.command, False))}
        for key in list(self._returning.get(outcome.guest, ())):
            flight = self._flights[key]
            returned = outcome.result is Result.REVERTED or outcome.command != flight.command
            if returned and outcome.at_ns >= flight.since_ns:
                ended.add(self._end(key))
        return ended - {""}

    def expire(self, now_ns: int) -> list[str]:
        """Stop waiting for what is overdue and return the subjects concerned."""
        overdue = [key for key, flight in self._flights.items() if now_ns > flight.until_ns]
        return [self._end(key) for key in overdue]

    def end(self, command: str) -> None:
        """Stop waiting for a command."""
        self._end((command, False))

    def changes(self) -> Iterator[tuple[tuple[str, str], Flight | None]]:
        """Return what has changed since the last call."""
        for (command, release), flight in self._flights.changes().items():
            yield (command, str(release)), flight

    def __iter__(self) -> Iterator[Flight]:
        return iter(self._flights.values())

    def _end(self, key: tuple[str, bool]) -> str:
        flight = self._flights.pop(key, None)
        if flight is None:
            return ""
        if flight.release:
            self._returning[flight.subject].discard(key)
            if not self._returning[flight.subject]:
                del self._returning[flight.subject]
        self._count[flight.subject] -= 1
        if not self._count[flight.subject]:
            del self._count[flight.subject]
        return flight.subject
