"""Waits between tries: each twice as long as the one before, up to a limit, with jitter so that a herd spreads."""

from __future__ import annotations

import random


class Backoff:
    """Gives the seconds to wait before each next try; `reset` after a success."""

    def __init__(self, min_s: float, max_s: float, chance: random.Random | None = None) -> None:
        self._min_s = min_s
        self._max_s = max_s
        self._next_s = min_s
        self._chance = chance or random.Random()  # noqa: S311 # jitter, no secret

    def next_s(self) -> float:
        """Return how long to wait now: between half of the step and all of it."""
        step_s, self._next_s = self._next_s, min(self._next_s * 2, self._max_s)
        return step_s * self._chance.uniform(0.5, 1.0)

    def reset(self) -> None:
        """Begin with the shortest wait again."""
        self._next_s = self._min_s
