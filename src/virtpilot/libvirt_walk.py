"""Calls to one guest after the other, where one that hangs holds up none of the others.

A guest that does not answer in time is left behind with its connection and passed over for a while, each time for
longer; the walk goes on with the next guest on another connection.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Generic, NamedTuple, TypeVar

import structlog

from virtpilot.clock import SECOND, seconds
from virtpilot.errors import HypervisorTimeout
from virtpilot.libvirt_link import Lane, LibvirtLink

log = structlog.get_logger(__name__)

T = TypeVar("T")

_FIRST_BACK_OFF_S: Final = 10.0
_LONGEST_BACK_OFF_S: Final = 600.0


class _Left(NamedTuple):
    """A guest that was left behind: how often in a row, and until when it is not asked again."""

    times: int
    until_ns: int


class Walked(NamedTuple, Generic[T]):
    """What was found; `gone` guests were not there to be asked, `hung` ones do not answer, others were not asked."""

    found: dict[str, T]
    gone: frozenset[str]
    hung: frozenset[str]


class _Round(Generic[T]):
    """One call's way over its guests; once left behind it asks no more of them."""

    def __init__(self, binding: Any, guests: Sequence[str], ask: Callable[[Any, str], T], late: Callable[[], bool]):
        self.guests = guests
        self.answers: list[tuple[str, T | None]] = []
        self.begun = False
        self.left = threading.Event()
        self._binding = binding
        self._ask = ask
        self._late = late

    def steps(self) -> int:
        """Return how many guests have answered."""
        return len(self.answers)

    def __call__(self, connection: Any) -> None:
        """Ask guest by guest; one that is gone has None for an answer; raises where the connection is lost."""
        self.begun = True
        self.answers.clear()
        for guest in self.guests:
            if self.left.is_set() or (self.answers and self._late()):
                return
            try:
                answer: T | None = self._ask(connection, guest)
            except self._binding.libvirtError as error:
                if connection.isAlive() != 1:
                    raise
                log.debug("guest left out", guest=guest, error=str(error))
                answer = None
            self.answers.append((guest, answer))


class Walk:
    """Walks over guests in one lane, at most `patience_s` seconds with each and `budget_s` with all of them."""

    def __init__(
        self, link: LibvirtLink, lane: Lane, *, patience_s: float = math.inf, budget_s: float = math.inf
    ) -> None:
        self._link = link
        self._lane = lane
        self._patience_s = patience_s
        self._budget_s = budget_s
        self._left: dict[str, _Left] = {}

    def over(self, guests: Iterable[str], ask: Callable[[Any, str], T]) -> Walked[T]:
        """Ask each guest by its UUID in turn; raises HypervisorError, never for one guest."""
        clock = self._link.clock
        began_ns = clock.monotonic_ns()

        def late() -> bool:
            return (clock.monotonic_ns() - began_ns) / SECOND > self._budget_s

        wanted = list(guests)
        waiting = [guest for guest in wanted if guest not in self._left or self._left[guest].until_ns <= began_ns]
        answers: dict[str, T | None] = {}
        while waiting and not (answers and late()):
            one: _Round[T] = _Round(self._link.binding, waiting, ask, late)
            try:
                self._link.call(self._lane, one, patience_s=self._patience_s, steps=one.steps)
            except HypervisorTimeout:
                one.left.set()
                told = tuple(one.answers)
                answers |= dict(told)
                if not one.begun or len(told) == len(waiting):
                    break  # no connection, or too many calls hang: no guest's fault
                self._leave(waiting[len(told)])
                waiting = waiting[len(told) + 1 :]
            else:
                answers |= dict(one.answers)
                break
        return self._walked(wanted, answers)

    def _leave(self, guest: str) -> None:
        times = self._left[guest].times + 1 if guest in self._left else 1
        wait_s = min(_FIRST_BACK_OFF_S * 2 ** min(times - 1, 16), _LONGEST_BACK_OFF_S)
        self._left[guest] = _Left(times, self._link.clock.monotonic_ns() + seconds(wait_s))
        if times == 1:
            log.warning("a guest does not answer and is passed over", guest=guest, lane=self._lane)

    def _walked(self, wanted: list[str], answers: dict[str, T | None]) -> Walked[T]:
        for guest in answers.keys() & self._left.keys():
            del self._left[guest]
            log.info("a guest answers again", guest=guest, lane=self._lane)
        return Walked(
            {guest: answer for guest, answer in answers.items() if answer is not None},
            frozenset(guest for guest, answer in answers.items() if answer is None),
            frozenset(guest for guest in wanted if guest in self._left),
        )

    def keep(self, guests: Iterable[str]) -> None:
        """Forget what is known of all guests but these."""
        self._left = {guest: self._left[guest] for guest in guests if guest in self._left}
