"""The chain: the guards in their order, and what they have to be told.

mode → calendar → opt-out → freshness → warm-up → state → cooldown → budget → concurrency
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from virtpilot.actuators.guards.budget import Budgets
from virtpilot.actuators.guards.concurrency import Concurrency
from virtpilot.actuators.guards.cooldown import Cooldowns
from virtpilot.actuators.guards.freeze import Freezes
from virtpilot.actuators.guards.freshness import Freshness
from virtpilot.actuators.guards.memory import InFlight, Memory
from virtpilot.actuators.guards.mode import mode
from virtpilot.actuators.guards.opt_out import opt_out
from virtpilot.actuators.guards.options import GuardOptions
from virtpilot.actuators.guards.request import Check, GuardRequest, Refusal
from virtpilot.actuators.guards.state import state
from virtpilot.actuators.guards.warm_up import WarmUp
from virtpilot.clock import seconds
from virtpilot.model import Result

_FORGET_EVERY_NS: Final = seconds(1)


class Guards:
    """The chain of guards with their memory, which is a part of the controller's state."""

    def __init__(self, limits: GuardOptions) -> None:
        self._memory = memory = Memory()
        self._cooldowns = Cooldowns(memory, seconds(limits.guest_cooldown_s))
        self._budgets = Budgets(memory, limits)
        self._concurrency = Concurrency(memory, limits)
        self._forgot_ns = 0
        self._chain: Mapping[str, Check] = {
            "mode": mode,
            "calendar": Freezes(limits.freezes),
            "opt-out": opt_out,
            "freshness": Freshness(seconds(limits.max_sample_age_s)),
            "warm-up": WarmUp(seconds(limits.warm_up_s)),
            "state": state,
            "cooldown": self._cooldowns,
            "budget": self._budgets,
            "concurrency": self._concurrency,
        }

    def check(self, request: GuardRequest, now_ns: int) -> Refusal | None:
        """Return the first guard's refusal, None where all let it through."""
        self._forget(now_ns)
        for guard, reason_of in self._chain.items():
            if reason := reason_of(request, now_ns):
                return Refusal(guard, reason)
        return None

    def migrations(self) -> Mapping[str, int]:
        """Return for each host how many migrations to or from it are under way."""
        return self._concurrency.migrations()

    def incoming(self) -> list[tuple[str, str]]:
        """Return each guest on its way with the host that it goes to."""
        return self._concurrency.incoming()

    def started(self, request: GuardRequest, command: str, now_ns: int) -> None:
        """Note that a command is on its way, and what it costs."""
        flight = InFlight(
            rule=request.rule,
            guest=request.guest,
            host=request.host,
            target=request.target,
            cooldown_ns=request.cooldown_ns,
            started_ns=now_ns,
            spent=self._budgets.spend(request, now_ns),
        )
        self._concurrency.begin(command, flight)

    def finished(self, command: str, now_ns: int, result: Result = Result.DONE) -> None:
        """Note a command's outcome: its cooldowns begin, except when it was refused; an unknown one is ignored."""
        flight = self._concurrency.end(command)
        if flight is None:
            return
        if result is Result.REFUSED:
            self._budgets.give_back(flight, now_ns)
        else:
            self._cooldowns.begin(flight, now_ns)

    def _forget(self, now_ns: int) -> None:
        if 0 <= now_ns - self._forgot_ns < _FORGET_EVERY_NS:
            return  # many requests are checked at one moment, and what is over counts for nothing anyway
        self._forgot_ns = now_ns
        self._concurrency.forget(now_ns)
        self._cooldowns.forget(now_ns)
        self._budgets.forget(now_ns)

    def saved(self) -> dict[str, dict[str, Any]]:
        """Return what survives a restart, as msgspec writes it; `changes` counts from here."""
        return self._memory.saved()

    def changes(self) -> Iterator[tuple[tuple[str, str], object]]:
        """Return what has changed since the last call, by its place in what `saved` gives."""
        return self._memory.changes()

    def restore(self, document: object) -> None:
        """Take up where an earlier run ended; raises StateError for what was not saved here, and keeps what is."""
        self._memory.restore(document)
        self._concurrency.load()
