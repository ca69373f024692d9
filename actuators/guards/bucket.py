"""Token buckets: how often something may be done, and how often it still may be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec

from virtpilot.clock import SECOND
from virtpilot.tracked import Tracked

Scope = Literal["rule", "guest", "host", "cluster"]


class Budget(msgspec.Struct, frozen=True):
    """`count` actions in `span_ns`, by whom or what `scope` names; a rule's own, or ("") of all rules together."""

    scope: Scope
    count: Annotated[int, msgspec.Meta(ge=1)]
    span_ns: Annotated[int, msgspec.Meta(ge=1)]
    rule: str = ""


class Bucket(msgspec.Struct, frozen=True):
    """How many actions a budget had left for someone, when that was, and when it is full again."""

    scope: str
    rule: str
    who: str
    left: Annotated[float, msgspec.Meta(ge=0)]
    at_ns: int
    full_ns: int


class Buckets:
    """Buckets that are full at first and fill up steadily; a full one is forgotten. They are kept in `table`."""

    def __init__(self, table: Tracked[str, Bucket]) -> None:
        self._buckets = table

    def refusal(self, budget: Budget, who: str, now_ns: int) -> str:
        """Return why a budget does not allow an action now, "" where it does."""
        left = self._left(budget, who, now_ns)
        if left >= 1:
            return ""
        wait_ns = (1 - left) * budget.span_ns / budget.count
        whose = f"rule {budget.rule}'s budget" if budget.rule else "the budget"
        for_whom = {"rule": "", "cluster": " for the cluster"}.get(budget.scope, f" for {budget.scope} {who}")
        allowed = f"{budget.count} in {budget.span_ns / SECOND:.0f} s"
        return f"{whose}{for_whom} is used up ({allowed}), the next in {wait_ns / SECOND:.0f} s"

    def _left(self, budget: Budget, who: str, now_ns: int) -> float:
        bucket = self._buckets.get(_key(budget, who))
        if bucket is None:
            return budget.count
        # A clock that was set back fills nothing.
        passed_ns = max(now_ns - bucket.at_ns, 0)
        return min(bucket.left + passed_ns * budget.count / budget.span_ns, budget.count)

    def spend(self, budget: Budget, who: str, now_ns: int) -> None:
        """Take one action off a budget."""
        self._put(budget, who, max(self._left(budget, who, now_ns) - 1, 0), now_ns)

    def give_back(self, budget: Budget, who: str, now_ns: int) -> None:
        """Put one action back that was not done after all."""
        self._put(budget, who, min(self._left(budget, who, now_ns) + 1, budget.count), now_ns)

    def _put(self, budget: Budget, who: str, left: float, now_ns: int) -> None:
        key = _key(budget, who)
        if left >= budget.count:
            self._buckets.pop(key, None)
        else:
            full_ns = now_ns + round((budget.count - left) * budget.span_ns / budget.count)
            self._buckets[key] = Bucket(budget.scope, budget.rule, who, left, now_ns, full_ns)

    def states(self) -> Mapping[str, float]:
        """Return how many actions each budget that is not full had left at its last use; any thread may ask."""
        known = [one for key in list(self._buckets) if (one := self._buckets.get(key)) is not None]
        return {" ".join(filter(None, (one.scope, one.rule, one.who))): one.left for one in known}

    def forget(self, now_ns: int) -> None:
        """Drop buckets that are full by now."""
        for key in [key for key, one in self._buckets.items() if one.full_ns <= now_ns]:
            del self._buckets[key]


def _key(budget: Budget, who: str) -> str:
    """Return a bucket's key; none of its parts has a blank."""
    return f"{budget.scope} {budget.rule} {who}"
