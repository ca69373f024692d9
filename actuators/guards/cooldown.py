"""Guard: what has been acted on is left alone for a while."""

from __future__ import annotations

from virtpilot.actuators.guards.memory import Cooldown, InFlight, Memory, key
from virtpilot.actuators.guards.options import GuardOptions
from virtpilot.actuators.guards.request import DOWN, GuardRequest, span
from virtpilot.clock import seconds


class Cooldowns:
    """For each guest since any action, and for each rule and guest since the rule's."""

    def __init__(self, memory: Memory, limits: GuardOptions) -> None:
        self._rules = memory.rules
        self._guests = memory.guests
        self._up_ns = seconds(limits.guest_cooldown_s)
        self._down_ns = seconds(limits.guest_cooldown_down_s)

    def __call__(self, request: GuardRequest, now_ns: int) -> str:
        """Refuse while one lasts; later rungs follow their own rule's earlier ones at once: they are one remedy."""
        guest = self._guests.get(request.guest)
        follows = request.rung > 0 and guest is not None and guest.rule == request.rule
        rule = self._rules.get(key(request.rule, request.guest))
        if rule is not None and request.rung == 0 and rule.until_ns > now_ns:
            return f"rule {request.rule} helped this guest lately, {span(rule.until_ns - now_ns)} of cooldown left"
        if guest is not None and not follows and guest.until_ns > now_ns:
            left = span(guest.until_ns - now_ns)
            return f"something was done to this guest lately (rule {guest.rule}), {left} of cooldown left"
        return ""

    def begin(self, flight: InFlight, now_ns: int) -> None:
        """Begin them with the outcome of a command; after a knob went down they are others than after all else."""
        guest_ns = self._down_ns if flight.turn == DOWN else self._up_ns
        self._guests[flight.guest] = Cooldown(flight.rule, flight.guest, now_ns + guest_ns)
        rule = Cooldown(flight.rule, flight.guest, now_ns + flight.cooldown_ns)
        self._rules[key(flight.rule, flight.guest)] = rule

    def forget(self, now_ns: int) -> None:
        """Drop those that are over."""
        for table in (self._rules, self._guests):
            for entry in [entry for entry, one in table.items() if one.until_ns <= now_ns]:
                del table[entry]
