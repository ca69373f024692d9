"""Looks ahead in a rehearsal: what is measured while no signal changes and nothing is under way is taken at once.

The controller is run, as in production, for all the rest; what comes to be is the same to the letter.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from virtpilot.pipeline.rehearsal import Rehearsal
from virtpilot.pipeline.stage import Stage
from virtpilot.rules.signals.film.film import Film

# Of a film that ends early the rest was made in vain.
_MOST_FRAMES: Final = 64
_MOST_PLAYED: Final = 128


class Span(NamedTuple):
    """Frames of a film, the last included."""

    film: Film
    first: int
    last: int


class Foresight:
    """Leaves out what need not be stepped through; `stage` gives what is measured, up to the `last` tick.

    Where there is no `more` after that, nobody looks at what was measured then.
    """

    def __init__(
        self,
        rehearsal: Rehearsal,
        stage: Stage,
        last: int,
        *,
        more: bool = True,
    ) -> None:
        self._rehearsal = rehearsal
        self._stage = stage
        self._last = last
        self._more = more
        self._film: Film | None = None
        self._first = 0
        self._known: object = None

    def seen(self, tick: int) -> Span | None:
        """Return what is known of a tick that was just measured, None where it was not looked at before."""
        film, frame = self._film, tick - self._first
        if film is None or frame > film.frames or self._stage.state() != self._known or not film.renew():
            return None
        return Span(film, frame, frame)

    def begun(self, tick: int) -> Film | None:
        """Return the film that begins with what was just measured at a tick, None where there is no such."""
        film = self._filmed(tick) if self._rehearsal.idle() else None
        return film if self._first == tick else None

    def skip(self, tick: int) -> Span | None:
        """Take what follows on a tick that was measured, as long as nothing happens; None where that is nothing."""
        if not self._rehearsal.idle():
            self._film = None
            return None
        film = self._filmed(tick)
        if film is None:
            return None
        at = tick - self._first
        until = self._rehearsal.calm(film, at)
        due_ns = self._rehearsal.due_ns()
        while until > at and film.time_ns(until) >= due_ns:
            until -= 1
        if until == at:
            return None
        self._rehearsal.play(film, at, until)
        if self._first + until < self._last or self._more:
            self._rehearsal.put(film, at, until, self._stage.frame(self._first + until))
        return Span(film, at + 1, until)

    def _filmed(self, tick: int) -> Film | None:
        """Return a film in which there is something to come after a tick."""
        state, film = self._stage.state(), self._film
        if film is not None and state == self._known and tick < self._first + film.frames and film.renew():
            return film
        most = _MOST_FRAMES if self._rehearsal.heeded else _MOST_PLAYED
        self._first, self._known, self._film = tick, state, None
        if tick < self._last:
            self._film = self._rehearsal.film(self._stage.coming(tick + 1, min(tick + most, self._last)))
        return self._film
