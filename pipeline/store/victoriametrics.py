"""What VictoriaMetrics tells of itself on /metrics: when it was started, how many lines it dropped without a word.

It answers 204 to lines that it drops: malformed ones (before version 1.112), times beyond its retention or more than
two days ahead. Reading every line before it is sent would cost more than writing it. So what was written is kept until
the counters of dropped lines, which lag by a second, tell that all of it was taken; only where they moved is it read.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from typing import Final

import msgspec
import structlog

from virtpilot.clock import SECOND, seconds
from virtpilot.lineprotocol import parse
from virtpilot.pipeline.store.batch import Refused

# The page is made once a second at most.
SETTLED_NS: Final = seconds(1.1)

_STARTED: Final = re.compile(
    rb"^(?:vm_app_start_timestamp|process_start_time_seconds)(?:\{[^}]*\})? (\S+)$", re.MULTILINE
)
_DROPPED: Final = re.compile(
    rb'^(?:vm_rows_invalid_total\{type="influx"\}|vm_rows_ignored_total\{reason="[^"]*"\}) (\d+)$', re.MULTILINE
)
_RETENTION: Final = re.compile(rb'^flag\{name="retentionPeriod", ?value="(\d+(?:\.\d+)?)([hdwy]?)"', re.MULTILINE)
_HOURS: Final = {b"h": 1, b"d": 24, b"w": 24 * 7, b"y": 24 * 365, b"": 24 * 31}
_AHEAD_NS: Final = seconds(2 * 24 * 3600)
_MAX_KEPT_BYTES: Final = 64 << 20
_NO_TIME: Final = "expected a timestamp"
log = structlog.get_logger(__name__)


class Page(msgspec.Struct, frozen=True):
    """What one page tells; a retention of 0 is not known."""

    started: bytes
    dropped: tuple[int, ...]
    retention_ns: int


def read_page(text: bytes) -> Page | None:
    """Return what a page tells, None where it is not VictoriaMetrics'."""
    started = _STARTED.findall(text)
    if not started:
        return None
    found = _RETENTION.search(text)
    hours = float(found[1]) * _HOURS[found[2]] if found else 0.0
    return Page(b" ".join(started), tuple(map(int, _DROPPED.findall(text))), seconds(hours * 3600))


class Watch:
    """What was written and may have been dropped, and what is known to have been."""

    def __init__(self) -> None:
        self._written: deque[tuple[int, str, bytes]] = deque()
        self._bytes = 0
        self._dropped: tuple[int, ...] = ()
        self._refused: list[Refused] = []

    def begin(self, page: Page) -> None:
        """Count from here."""
        self._dropped = page.dropped

    def written(self, message_id: str, lines: bytes, at_ns: int) -> None:
        """Keep what the store has answered 204 to, at a monotonic time; beyond 64 MiB the oldest goes unexamined."""
        self._written.append((at_ns, message_id, lines))
        self._bytes += len(lines)
        while self._bytes > _MAX_KEPT_BYTES:
            self._forget()

    def look(self, page: Page, asked_ns: int, now_ns: int) -> None:
        """Examine what was written where lines were dropped since the page before; `asked_ns` is monotonic."""
        moved, self._dropped = page.dropped != self._dropped, page.dropped
        if moved:
            before = len(self._refused)
            for _, message_id, lines in self._written:
                self._refused += (Refused(message_id, line, why) for line, why in bad_lines(lines, page, now_ns))
            log.warning("store has dropped lines", ours=len(self._refused) - before, counters=page.dropped)
        while self._written and (moved or self._written[0][0] <= asked_ns - SETTLED_NS):
            self._forget()

    def refused(self) -> list[Refused]:
        """Return what was found since the last call."""
        found, self._refused = self._refused, []
        return found

    def _forget(self) -> None:
        self._bytes -= len(self._written.popleft()[2])


def bad_lines(lines: bytes, page: Page, now_ns: int) -> Iterator[tuple[bytes, str]]:
    """Yield the lines that a store with such a page drops, with the reason."""
    rows = lines.split(b"\n")
    malformed = dict(_malformed(lines, rows))
    oldest_ns = now_ns - page.retention_ns if page.retention_ns else None
    for number, row in enumerate(rows, 1):
        if number in malformed:
            yield row, malformed[number]
        elif row and (why := _out_of_time(row.rpartition(b" ")[2], oldest_ns, now_ns)):
            yield row, why


def _malformed(lines: bytes, rows: list[bytes]) -> Iterator[tuple[int, str]]:
    """Yield number and reason of what is no line to the store, for which each line feed ends one, in a string too."""
    # With strings each row is read by itself; without, all at once is cheaper.
    read = [(number, parse(row)) for number, row in enumerate(rows)] if b'"' in lines else [(0, parse(lines))]
    for before, parsed in read:
        for bad in parsed.bad:
            if not bad.reason.endswith(_NO_TIME):
                yield before + bad.number, bad.reason


def _out_of_time(time: bytes, oldest_ns: int | None, now_ns: int) -> str:
    if not time.removeprefix(b"-").isdigit() or len(time) > 20:
        return ""
    at_ns = int(time)
    if oldest_ns is not None and at_ns < oldest_ns:
        return f"{(now_ns - at_ns) / SECOND / 86400:.1f} days old: beyond the store's retention"
    if at_ns > now_ns + _AHEAD_NS:
        return f"{(at_ns - now_ns) / SECOND / 86400:.1f} days ahead: the store takes two at most"
    return ""
