"""The chain: the guards in their order, and what they have to be told.

stopped → mode → calendar → opt-out → own machine → freshness → warm-up → state → bounds → cooldown → budget →
breaker → foreign change → oscillation → target → concurrency → approval

What `concurrency` holds back may wait in line for its turn: nothing else but a person is against it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

from virtpilot.actuators.guards.approval import approval
from virtpilot.actuators.guards.bounds import Limits
from virtpilot.actuators.guards.breaker import Breakers
from virtpilot.actuators.guards.budget import Budgets
from virtpilot.actuators.guards.concurrency import Concurrency
from virtpilot.actuators.guards.cooldown import Cooldowns
from virtpilot.actuators.guards.foreign import ForeignChanges
from virtpilot.actuators.guards.freeze import Freezes
from virtpilot.actuators.guards.freshness import Freshness
from virtpilot.actuators.guards.memory import InFlight, Memory
from virtpilot.actuators.guards.mode import mode
from virtpilot.actuators.guards.opt_out import opt_out
from virtpilot.actuators.guards.options import GuardOptions
from virtpilot.actuators.guards.oscillation import Oscillations
from virtpilot.actuators.guards.own_machine import own_machine
from virtpilot.actuators.guards.request import Check, GuardRequest, Refusal
from virtpilot.actuators.guards.state import state
from virtpilot.actuators.guards.stopped import Stopped
from virtpilot.actuators.guards.target import Targets
from virtpilot.actuators.guards.warm_up import WarmUp
from virtpilot.clock import seconds
from virtpilot.model import Result

_FORGET_EVERY_NS: Final = seconds(1)


class Guards:
    """The chain of guards with their memory, which is a part of the controller's state."""

    def __init__(self, limits: GuardOptions) -> None:
        self._memory = memory = Memory()
        fresh_ns = seconds(limits.max_sample_age_s)
        self._cooldowns = Cooldowns(memory, limits)
        self.budgets = Budgets(memory, limits)
        self._concurrency = Concurrency(memory, limits)
        self.stopped = Stopped()
        self.breakers = Breakers(memory, limits)
        self.foreign = ForeignChanges(memory, seconds(limits.foreign_backoff_s))
        self.oscillations = Oscillations(memory, limits)
        self.targets = Targets(memory, fresh_ns)
        self._forgot_ns = 0
        self._chain: Mapping[str, Check] = {
            "stopped": self.stopped,
            "mode": mode,
            "calendar": Freezes(limits.freezes),
            "opt-out": opt_out,
            "own-machine": own_machine,
            "freshness": Freshness(fresh_ns),
            "warm-up": WarmUp(seconds(limits.warm_up_s)),
            "state": state,
            "bounds": Limits(limits.bounds),
            "cooldown": self._cooldowns,
            "budget": self.budgets,
            "breaker": self.breakers,
            "foreign-change": self.foreign,
            "oscillation": self.oscillations,
            "target": self.targets,
            "concurrency": self._concurrency,
            "approval": approval,
        }

    @property
    def names(self) -> tuple[str, ...]:
        """The guards in their order."""
        return tuple(self._chain)

    def check(self, request: GuardRequest, now_ns: int) -> Refusal | None:
        """Return the first guard's refusal, None where all let it through."""
        self._forget(now_ns)
        for guard, reason_of in self._chain.items():
            if reason := reason_of(request, now_ns):
                return Refusal(guard, reason)
        return None

    def flying(self) -> Collection[str]:
        """Return the commands whose outcomes have not come."""
        return self._concurrency.flying()

    def flight(self, command: str) -> InFlight | None:
        """Return a command whose outcome has not come, None where there is no such."""
        return self._concurrency.flight(command)

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
            spent=self.budgets.spend(request, now_ns),
            what=request.what,
            turn=request.turn,
            measured=request.effect_ns > 0,
        )
        self._concurrency.begin(command, flight)
        self.breakers.began(request, command, now_ns)

    def finished(self, command: str, now_ns: int, result: Result = Result.DONE) -> None:
        """Note a command's outcome: its cooldowns begin, except when it was refused; an unknown one is ignored."""
        flight = self._concurrency.end(command)
        if flight is None:
            return
        self.breakers.outcome(flight, result, now_ns)
        if result is Result.REFUSED:
            self.budgets.give_back(flight, now_ns)
        else:
            self._cooldowns.begin(flight, now_ns)
        if result is Result.DONE:
            self.oscillations.done(flight, now_ns)

    def _forget(self, now_ns: int) -> None:
        if 0 <= now_ns - self._forgot_ns < _FORGET_EVERY_NS:
            return  # many requests are checked at one moment, and what is over counts for nothing anyway
        self._forgot_ns = now_ns
        self._concurrency.forget(now_ns)
        self._cooldowns.forget(now_ns)
        self.budgets.forget(now_ns)
        self.breakers.forget(now_ns)
        self.foreign.forget(now_ns)
        self.oscillations.forget(now_ns)
        self.targets.forget(now_ns)

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
