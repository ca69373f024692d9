"""Guard: a rule, a guest, a host and the cluster each bear so many actions in a span."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from virtpilot.actuators.guards.bucket import Buckets, Budget, Scope
from virtpilot.actuators.guards.memory import InFlight, Memory
from virtpilot.actuators.guards.options import GuardOptions
from virtpilot.actuators.guards.request import GuardRequest
from virtpilot.clock import SECOND

_SCOPES: Final[tuple[Scope, ...]] = ("guest", "host", "cluster")


class Budgets:
    """The rules' own budgets, and those of all rules together."""

    def __init__(self, memory: Memory, limits: GuardOptions) -> None:
        self._buckets = Buckets(memory.buckets)
        per_hour = (limits.guest_actions_per_hour, limits.host_actions_per_hour, limits.cluster_actions_per_hour)
        self._common = [
            Budget(scope, count, 3600 * SECOND) for scope, count in zip(_SCOPES, per_hour, strict=True) if count
        ]

    def __call__(self, request: GuardRequest, now_ns: int) -> str:
        """Refuse where a budget is used up."""
        reasons = (self._buckets.refusal(budget, who, now_ns) for budget, who in self._costs(request))
        return next((reason for reason in reasons if reason), "")

    def _costs(self, request: GuardRequest) -> list[tuple[Budget, str]]:
        """Return whose budgets an action is on: a migration's on both of its hosts."""
        hosts = [request.host, *([request.target] if request.target else [])]
        whose = {"rule": [""], "cluster": [""], "guest": [request.guest], "host": hosts}
        return [(budget, who) for budget in (*request.budgets, *self._common) for who in whose[budget.scope]]

    def spend(self, request: GuardRequest, now_ns: int) -> list[tuple[Budget, str]]:
        """Take an action off its budgets, and return them."""
        spent = self._costs(request)
        for budget, who in spent:
            self._buckets.spend(budget, who, now_ns)
        return spent

    def give_back(self, flight: InFlight, now_ns: int) -> None:
        """Put back what was not done after all."""
        for budget, who in flight.spent:
            self._buckets.give_back(budget, who, now_ns)

    def states(self) -> Mapping[str, float]:
        """Return how many actions each budget that is not full had left at its last use."""
        return self._buckets.states()

    def forget(self, now_ns: int) -> None:
        """Drop buckets that are full by now."""
        self._buckets.forget(now_ns)
