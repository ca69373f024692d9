"""Guard: where it failed again and again, nothing more is tried for a while.

closed ──failures in a row──▶ open ──its time is over──▶ half open: one try ──it helped──▶ closed
                               ▲                                   │
                               └────────it failed: twice as long───┘

There is one for each rule (a command that failed, an effect that did not come) and one for each host (a command that
failed there, or was never answered). What an agent refused is neither: nothing was done.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import structlog
from msgspec.structs import replace

from virtpilot.actuators.guards.memory import Circuit, InFlight, Memory, key
from virtpilot.actuators.guards.options import GuardOptions
from virtpilot.actuators.guards.request import GuardRequest, span
from virtpilot.clock import seconds
from virtpilot.model import Result

log = structlog.get_logger(__name__)

CLOSED: Final = 0
HALF_OPEN: Final = 1
OPEN: Final = 2
_HELPED: Final = frozenset({Result.DONE, Result.EFFECTIVE})


class Breakers:
    """The circuits that are not in order: one that is has no entry."""

    def __init__(self, memory: Memory, limits: GuardOptions) -> None:
        self._circuits = memory.circuits
        self._in_flight = memory.in_flight
        self._failures = limits.breaker_failures
        self._open_ns = seconds(limits.breaker_open_s)
        self._timeout_ns = seconds(limits.operation_timeout_s)
        self._most_ns = max(seconds(limits.breaker_open_max_s), self._open_ns)

    def __call__(self, request: GuardRequest, now_ns: int) -> str:
        """Refuse while one of them is open, or has its one try under way."""
        for name in _names(request.rule, request.host, request.target):
            circuit = self._circuits.get(name)
            if circuit is not None and (why := self._why(name, circuit, now_ns)):
                return why
        return ""

    def _why(self, name: str, circuit: Circuit, now_ns: int) -> str:
        if not circuit.opened:
            return ""
        # No further away than it can be: the clock was set back.
        left_ns = min(circuit.until_ns - now_ns, self._most_ns)
        if left_ns > 0:
            return f"the breaker of {name} is open: {circuit.failures} failures in a row, one try in {span(left_ns)}"
        if circuit.trial in self._in_flight or circuit.trial_until_ns > now_ns:
            return f"the breaker of {name} is half open, and {circuit.trial} is the one try"
        return ""

    def began(self, request: GuardRequest, command: str, now_ns: int) -> None:
        """Note that a command goes out: for a half-open circuit it is the one try, until its effect is known."""
        for name in _names(request.rule, request.host, request.target):
            circuit = self._circuits.get(name)
            if circuit is not None and circuit.opened:
                # A rule waits for the effect, a host for the outcome alone.
                awaited_ns = request.effect_ns if name.startswith("rule ") else 0
                until_ns = now_ns + self._timeout_ns + awaited_ns if awaited_ns else 0
                self._circuits[name] = replace(circuit, trial=command, trial_until_ns=until_ns)

    def outcome(self, flight: InFlight, result: Result, now_ns: int) -> None:
        """Take an agent's outcome; one that was done helps the rule only where no effect is to be measured."""
        hosts = _names("", flight.host, flight.target)[1:]
        if result is Result.FAILED:
            for name in (f"rule {flight.rule}", *hosts):
                self._failed(name, now_ns)
        elif result is Result.DONE:
            for name in hosts if flight.measured else (f"rule {flight.rule}", *hosts):
                self._helped(name)
        elif result is Result.REFUSED:
            self._untried(flight, now_ns)

    def effect(self, rule: str, result: Result, now_ns: int) -> None:
        """Take a measured effect."""
        if result is Result.INEFFECTIVE:
            self._failed(f"rule {rule}", now_ns)
        elif result in _HELPED:
            self._helped(f"rule {rule}")

    def _failed(self, name: str, now_ns: int) -> None:
        if not self._failures:
            return
        circuit = self._circuits.get(name) or Circuit()
        failed = replace(circuit, failures=circuit.failures + 1, last_ns=now_ns, trial="", trial_until_ns=0)
        # What was under way when it opened, and fails now, is no further try.
        if failed.failures >= self._failures and now_ns >= circuit.until_ns:
            lasts_ns = min(self._open_ns << min(circuit.opened, 20), self._most_ns)
            failed = replace(failed, opened=circuit.opened + 1, until_ns=now_ns + lasts_ns)
            log.error("breaker opens", breaker=name, failures=failed.failures, for_s=lasts_ns / 1e9)
        self._circuits[name] = failed

    def _helped(self, name: str) -> None:
        circuit = self._circuits.pop(name, None)
        if circuit is not None and circuit.opened:
            log.info("breaker closes", breaker=name)

    def _untried(self, flight: InFlight, now_ns: int) -> None:
        """Let another command be the one try: this one was refused."""
        for name in _names(flight.rule, flight.host, flight.target):
            circuit = self._circuits.get(name)
            if circuit is not None and circuit.opened and circuit.until_ns <= now_ns:
                self._circuits[name] = replace(circuit, trial="", trial_until_ns=0)

    def states(self, now_ns: int) -> Mapping[str, int]:
        """Return each circuit that is not in order: closed after failures (0), half open (1), open (2)."""
        known = ((name, self._circuits.get(name)) for name in list(self._circuits))
        return {name: _state(circuit, now_ns) for name, circuit in known if circuit is not None}

    def opened(self) -> Iterator[tuple[str, Circuit]]:
        """Yield the circuits that are open or half open."""
        return ((name, circuit) for name, circuit in self._circuits.items() if circuit.opened)

    def forget(self, now_ns: int) -> None:
        """Drop failures so old that they make no row with the next; a clock that was set back drops them too."""
        for name, circuit in list(self._circuits.items()):
            open_ns = max(circuit.until_ns - circuit.last_ns, 0)
            if not 0 <= now_ns - circuit.last_ns <= self._most_ns + open_ns:
                del self._circuits[name]


def _state(circuit: Circuit, now_ns: int) -> int:
    if not circuit.opened:
        return CLOSED
    return OPEN if circuit.until_ns > now_ns else HALF_OPEN


def _names(rule: str, host: str, target: str) -> tuple[str, ...]:
    """Return the circuits that an action goes through; a migration goes through its target's too."""
    return (key("rule", rule), key("host", host), *([key("host", target)] if target else []))
