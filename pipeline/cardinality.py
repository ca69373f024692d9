"""How many series a host may fill the store with: what is known goes on, what is new beyond the limit is put aside.

A series is a line's head: measurement and tags. Only hashes of heads are kept, for a day or two after they were seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Final

import msgspec
import structlog
from msgspec import Meta

from virtpilot.clock import Clock, seconds
from virtpilot.topics import is_name

_FORGET_NS: Final = seconds(24 * 3600)
_MAX_HOSTS: Final = 10_000
_OTHERS: Final = "(others)"
_BACKSLASH: Final = ord("\\")
log = structlog.get_logger(__name__)

Bad = list[tuple[bytes, str]]


class LimitOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a writer lets a single host do to the store."""

    series_per_host: Annotated[
        int,
        Meta(
            description="Series (a measurement with its tags) that the messages of one host may have; lines of more go "
            "to the dead letters. A series that is not seen for a day counts no more; 0: no limit.",
            ge=0,
            le=10_000_000,
        ),
    ] = 20_000


class _Host:
    """The series of one host: those of the current day, those of the day before, how many they are together."""

    __slots__ = ("count", "former", "recent", "refused", "told")

    def __init__(self) -> None:
        self.recent: set[int] = set()
        self.former: set[int] = set()
        self.count = 0
        self.refused = 0
        self.told = False

    def turn(self) -> None:
        """Begin another day."""
        self.former, self.recent = self.recent, set()
        self.count = len(self.former)
        self.told = False


class SeriesGuard:
    """Parts the lines of series that a host may have from those that are too many."""

    def __init__(self, options: LimitOptions, clock: Clock) -> None:
        self._limit = options.series_per_host
        self._clock = clock
        self._hosts: dict[str, _Host] = {}
        self._turn_ns = clock.monotonic_ns() + _FORGET_NS

    def admit(self, host: str, lines: bytes) -> tuple[bytes, Bad]:
        """Return the lines that may be stored, and those of series beyond the limit with the reason."""
        if not self._limit:
            return lines, []
        self._turn()
        known = self._known(host)
        hashes = set(map(hash, heads(lines)))
        unseen = hashes - known.recent
        if not unseen:
            return lines, []
        new = unseen - known.former
        if known.count + len(new) > self._limit:
            return self._part(host, known, lines)
        known.recent |= unseen
        known.count += len(new)
        return lines, []

    def counts(self) -> dict[str, int]:
        """Return how many series each host has."""
        return {host: known.count for host, known in self._hosts.copy().items()}

    def refused(self) -> dict[str, int]:
        """Return how many lines of each host were too many, where any were."""
        return {host: known.refused for host, known in self._hosts.copy().items() if known.refused}

    def _known(self, host: str) -> _Host:
        if host not in self._hosts and (len(self._hosts) >= _MAX_HOSTS or not is_name(host)):
            host = _OTHERS
        return self._hosts.setdefault(host, _Host())

    def _turn(self) -> None:
        now_ns = self._clock.monotonic_ns()
        if now_ns < self._turn_ns:
            return
        # More than a day without any message: nothing of the day before counts either.
        turns = 1 if now_ns < self._turn_ns + _FORGET_NS else 2
        self._turn_ns = now_ns + _FORGET_NS
        for known in self._hosts.values():
            for _ in range(turns):
                known.turn()

    def _part(self, host: str, known: _Host, lines: bytes) -> tuple[bytes, Bad]:
        reason = f"over the host's limit of {self._limit} series"
        good: list[bytes] = []
        bad: Bad = []
        for row in _rows(lines):
            series = hash(_head(row, 0, len(row)))
            if series not in known.recent:
                if series not in known.former:
                    if known.count >= self._limit:
                        bad.append((row, reason))
                        continue
                    known.count += 1
                known.recent.add(series)
            good.append(row + b"\n")
        known.refused += len(bad)
        if bad and not known.told:
            known.told = True
            log.error("host has too many series: new ones are put aside", host=host, limit=self._limit)
        return b"".join(good), bad


def heads(lines: bytes) -> Iterator[bytes]:
    """Yield the head of each line: what comes before its first space."""
    at, size = 0, len(lines)
    while at < size:
        end = lines.find(b"\n", at)
        if end < 0:
            end = size
        if end > at:
            yield _head(lines, at, end)
        at = end + 1


def _head(lines: bytes, at: int, end: int) -> bytes:
    space = lines.find(b" ", at, end)
    while space > at and lines[space - 1] == _BACKSLASH:
        space = lines.find(b" ", space + 1, end)
    return lines[at : space if space >= 0 else end]


def _rows(lines: bytes) -> Iterator[bytes]:
    """Yield whole lines: a line feed within a string value ends none."""
    row = b""
    for part in lines.split(b"\n"):
        row = row + b"\n" + part if row else part
        if row and (row.count(b'"') - row.count(b'\\"')) % 2 == 0:
            yield row
            row = b""
    if row:
        yield row
