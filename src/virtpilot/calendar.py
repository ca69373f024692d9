"""Times of the week and spans of dates as people write them: `Mon-Fri 08:00-18:00 Europe/Berlin`."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, tzinfo
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo

from virtpilot.clock import SECOND

_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_DAY: Final = "(?:" + "|".join(_DAYS) + ")"
_WEEK: Final = re.compile(rf"{_DAY}(?:-{_DAY})?(?:,{_DAY}(?:-{_DAY})?)*")
_DATES: Final = re.compile(r"(\d{4}-\d{2}-\d{2})(?:\.\.(\d{4}-\d{2}-\d{2}))?")
_HOURS: Final = re.compile(r"([01]\d|2[0-4]):([0-5]\d)-([01]\d|2[0-4]):([0-5]\d)")
_ZONE: Final = re.compile(r"[A-Za-z][A-Za-z0-9_+-]*(?:/[A-Za-z0-9_+-]+){0,2}")
_MINUTE: Final = 60 * SECOND
_MINUTES_A_DAY: Final = 24 * 60
MAX_CHARS: Final = 120
WRITTEN: Final = "times are written `Mon-Fri 08:00-18:00 Europe/Berlin` or `2026-12-24..2026-12-26 Europe/Berlin`"


class Calendar:
    """When a text of this kind holds: days of the week or dates, hours of the day, both in a time zone (UTC)."""

    def __init__(self, text: str) -> None:
        self.text = " ".join(text.split())
        words = self.text.split(" ") if 0 < len(self.text) <= MAX_CHARS else []
        self._days = frozenset(range(7))
        self._first, self._last = date.min, date.max
        self._start, self._end = 0, _MINUTES_A_DAY
        self._zone: tzinfo = UTC
        readers = (self._read_days, self._read_hours, self._read_zone)
        at = 0
        for word in words:
            at = next((n for n in range(at, len(readers)) if readers[n](word)), len(readers)) + 1
            if at > len(readers):
                raise ValueError(f"{word[:40]!r} is not understood here: {WRITTEN}")
        if not words:
            raise ValueError(WRITTEN)
        self._covers = lru_cache(maxsize=4096)(self._minute)

    def __repr__(self) -> str:
        return f"Calendar({self.text!r})"

    def covers(self, at_ns: int) -> bool:
        """Tell whether a time is within it."""
        return self._covers(at_ns // _MINUTE)

    def _read_days(self, word: str) -> bool:
        dates = _DATES.fullmatch(word)
        if dates is not None:
            self._first = _date(dates[1])
            self._last = _date(dates[2] or dates[1])
            if self._last < self._first:
                raise ValueError(f"{word!r} ends before it begins")
            return True
        if not _WEEK.fullmatch(word):
            return False
        found: set[int] = set()
        for part in word.split(","):
            first, _, last = part.partition("-")
            start, end = _DAYS.index(first), _DAYS.index(last or first)
            # Fri-Mon goes over the end of the week.
            found |= {(start + step) % 7 for step in range((end - start) % 7 + 1)}
        self._days = frozenset(found)
        return True

    def _read_hours(self, word: str) -> bool:
        hours = _HOURS.fullmatch(word)
        if hours is None:
            return False
        self._start = int(hours[1]) * 60 + int(hours[2])
        self._end = int(hours[3]) * 60 + int(hours[4])
        if max(self._start, self._end) > _MINUTES_A_DAY or self._start == self._end:
            raise ValueError(f"{word!r} is no part of a day")
        return True

    def _read_zone(self, word: str) -> bool:
        if not _ZONE.fullmatch(word):
            return False
        try:
            self._zone = ZoneInfo(word)
        except (OSError, ValueError, KeyError):
            if "/" not in word:
                return False
            raise ValueError(f"the time zone {word[:40]!r} is not known") from None
        return True

    def _minute(self, minute: int) -> bool:
        local = datetime.fromtimestamp(minute * 60, self._zone)
        now, today = local.hour * 60 + local.minute, local.date()
        if self._start < self._end:
            return self._start <= now < self._end and self._on(today)
        # 22:00-06:00 belongs to the day on which it begins.
        if now >= self._start:
            return self._on(today)
        return now < self._end and today > date.min and self._on(date.fromordinal(today.toordinal() - 1))

    def _on(self, day: date) -> bool:
        return day.weekday() in self._days and self._first <= day <= self._last


def _date(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a date") from None
