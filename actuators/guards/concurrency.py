"""Guard: one operation a guest, and so many migrations out of a host, to a host and in the cluster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

from virtpilot.actuators.guards.memory import InFlight, Memory
from virtpilot.actuators.guards.options import GuardOptions
from virtpilot.actuators.guards.request import GuardRequest, span
from virtpilot.clock import seconds


class Concurrency:
    """The commands on their way; one whose outcome does not come holds its place for so long and no longer."""

    def __init__(self, memory: Memory, limits: GuardOptions) -> None:
        self._in_flight = memory.in_flight
        self._limits = limits
        self._timeout_ns = seconds(limits.operation_timeout_s)
        self._by_guest: dict[str, str] = {}

    def load(self) -> None:
        """Take up what the memory holds after a restart."""
        self._by_guest = {flight.guest: command for command, flight in self._in_flight.items()}

    def __call__(self, request: GuardRequest, now_ns: int) -> str:
        """Refuse where the guest or a host has enough under way."""
        command = self._by_guest.get(request.guest)
        if command is not None:
            started_ns = self._in_flight[command].started_ns
            return f"{command} on this guest is under way since {span(now_ns - started_ns)}"
        return self._room(request) if request.target else ""

    def _room(self, request: GuardRequest) -> str:
        moves, limits = self._moves(), self._limits
        for count, limit, where in (
            (sum(move.host == request.host for move in moves), limits.migrations_out, f"out of {request.host}"),
            (sum(move.target == request.target for move in moves), limits.migrations_in, f"to {request.target}"),
            (len(moves), limits.migrations_cluster, "in the cluster"),
        ):
            if count >= limit:
                return f"{count} migrations {where} are under way, {limit} at most"
        return ""

    def _moves(self) -> list[InFlight]:
        return [flight for flight in self._in_flight.values() if flight.target]

    def flying(self) -> Collection[str]:
        """Return the commands under way."""
        return self._in_flight.keys()

    def flight(self, command: str) -> InFlight | None:
        """Return a command under way."""
        return self._in_flight.get(command)

    def migrations(self) -> Mapping[str, int]:
        """Return for each host how many migrations to or from it are under way."""
        return Counter(host for move in self._moves() for host in (move.host, move.target))

    def incoming(self) -> list[tuple[str, str]]:
        """Return each guest on its way with the host that it goes to."""
        return [(flight.guest, flight.target) for flight in self._moves()]

    def begin(self, command: str, flight: InFlight) -> None:
        """Note a command that goes out."""
        self._in_flight[command] = flight
        self._by_guest[flight.guest] = command

    def end(self, command: str) -> InFlight | None:
        """Note that a command has ended, and return it; None where it was not under way."""
        flight = self._in_flight.pop(command, None)
        if flight is not None and self._by_guest.get(flight.guest) == command:
            del self._by_guest[flight.guest]
        return flight

    def forget(self, now_ns: int) -> None:
        """Drop what is overdue; a start in the future too: the clock was set back, and this would never end."""
        for command, flight in list(self._in_flight.items()):
            if not -self._timeout_ns <= now_ns - flight.started_ns <= self._timeout_ns:
                self.end(command)
