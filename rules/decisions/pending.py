"""Consequences that are true and not yet told; both matchers keep theirs here, so both forget and sort alike."""

from __future__ import annotations

from collections import defaultdict

from virtpilot.rules.decisions.matcher import Consequence, Fact


class Pending:
    """What became true since it was last drained, without what stopped being true meanwhile."""

    def __init__(self) -> None:
        self._by_fact: defaultdict[Fact, set[Consequence]] = defaultdict(set)
        self._all: set[Consequence] = set()

    def add(self, consequence: Consequence) -> None:
        """Keep a consequence until it is drained or one of its facts goes."""
        self._all.add(consequence)
        for known in consequence.facts:
            self._by_fact[known].add(consequence)

    def drop(self, gone: Fact) -> None:
        """Forget what was concluded from a fact."""
        for consequence in self._by_fact.pop(gone, set()):
            self._all.discard(consequence)
            for known in consequence.facts:
                if known != gone:
                    self._by_fact[known].discard(consequence)

    def drain(self) -> list[Consequence]:
        """Return all, sorted by rank, and forget them."""
        told = sorted(self._all, key=lambda consequence: consequence.rank)
        self.clear()
        return told

    def clear(self) -> None:
        """Forget all."""
        self._all.clear()
        self._by_fact.clear()
