"""Times as people write and read them: `14:03` today here, or ISO 8601."""

from __future__ import annotations

import re
from datetime import datetime, time, tzinfo
from typing import Final

from virtpilot.clock import SECOND

_TIME: Final = re.compile(r"([0-9]{1,2}):([0-9]{2})(?::([0-9]{2}))?")
_SECONDS: Final = re.compile(r":[0-9]{2}:[0-9]{2}")


def moment(text: str, now_ns: int, zone: tzinfo | None = None) -> int:
    """Return the ns since the epoch that a text means; without a zone the machine's own. Raises ValueError."""
    now = datetime.fromtimestamp(now_ns / SECOND).astimezone(zone)
    found = _TIME.fullmatch(text)
    try:
        if found is not None:
            at = time(int(found[1]), int(found[2]), int(found[3] or 0))
            then = datetime.combine(now.date(), at)
        else:
            then = datetime.fromisoformat(text)
        if then.tzinfo is None:
            then = then.replace(tzinfo=zone) if zone is not None else then.astimezone()
        return round(then.timestamp() * SECOND)
    except (ValueError, OverflowError, OSError):
        raise ValueError(f"{text[:40]!r} is no time such as 14:03, 14:03:20 or 2026-01-05T14:03:00+01:00") from None


def moment_meant(text: str, now_ns: int, zone: tzinfo | None = None) -> int:
    """Return the last moment that a text means: a minute that is named is meant whole. Raises ValueError."""
    found = moment(text, now_ns, zone)
    return found if _SECONDS.search(text) else found + 60 * SECOND - 1


def shown(at_ns: int, zone: tzinfo | None = None) -> str:
    """Return a time for a person, to the second."""
    return datetime.fromtimestamp(at_ns // SECOND).astimezone(zone).strftime("%Y-%m-%d %H:%M:%S")


def zoned(at_ns: int, zone: tzinfo | None = None) -> str:
    """Return a time for a person, with its zone."""
    return f"{shown(at_ns, zone)} {datetime.fromtimestamp(at_ns // SECOND).astimezone(zone).tzname()}"
