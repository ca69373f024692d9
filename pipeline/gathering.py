"""Messages of which nothing can begin wait for one another, for what many of them say costs little more than one's.

A message that may let a signal fire is never among them. Each waits for a span at most, and until something is asked
of the rules: at a tick, by a person, about its host. None is acknowledged before it is evaluated, all in the order in
which they came.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

from virtpilot.clock import Clock
from virtpilot.lineblocks import Lines
from virtpilot.model import Delivery

_AT_MOST: Final = 16


class Heard(NamedTuple):
    """A message of measurements that has been read; `id` is the message's."""

    delivery: Delivery
    lines: Lines
    id: str
    host: str


class Gathering:
    """Holds messages for `span_ns` at most; where they come less often than that none is held."""

    def __init__(self, span_ns: int, clock: Clock) -> None:
        self._span_ns, self._clock = span_ns, clock
        self._waiting: dict[str, Heard] = {}
        self._since_ns = 0
        self._last_ns: int | None = None
        self._came: deque[Delivery] = deque()
        self._done: set[int] = set()

    def sift(self, heard: Iterable[Heard], haste: Callable[[Lines], bool | None]) -> Iterator[list[Heard]]:
        """Yield the messages that are to be evaluated now, together with which others; the rest waits.

        `haste` tells of lines whether something may begin with them, None where they are not simple.
        """
        now_ns, last_ns = self._clock.monotonic_ns(), self._last_ns
        self._last_ns = now_ns
        often = last_ns is not None and now_ns - last_ns <= self._span_ns
        for one in heard:
            # Of what is not simple the order counts, and of one host.
            hurries = haste(one.lines) if often and one.host not in self._waiting else None
            if hurries is None:
                yield from self.take()
            if hurries is not False:
                yield [one]
                continue
            if not self._waiting:
                self._since_ns = now_ns
            self._waiting[one.host] = one
            if len(self._waiting) >= _AT_MOST:
                yield from self.take()

    def take(self) -> Iterator[list[Heard]]:
        """Yield what waits, if something does."""
        if self._waiting:
            waiting, self._waiting = list(self._waiting.values()), {}
            yield waiting

    def has(self, host: str) -> bool:
        """Tell whether a host's message waits."""
        return host in self._waiting

    def left_ns(self) -> int | None:
        """Return how much longer what waits may wait, None where nothing does."""
        return max(0, self._since_ns + self._span_ns - self._clock.monotonic_ns()) if self._waiting else None

    def came(self, deliveries: Iterable[Delivery]) -> None:
        """Note that messages came, of whatever kind."""
        self._came.extend(deliveries)

    def done(self, deliveries: Iterable[Delivery]) -> Iterator[Delivery]:
        """Take it that messages are dealt with; yield those that may be acknowledged now."""
        self._done.update(map(id, deliveries))
        while self._came and id(self._came[0]) in self._done:
            self._done.remove(id(self._came[0]))
            yield self._came.popleft()
