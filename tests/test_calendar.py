"""Times as people write them, in their zones, over changes of the clocks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.thoroughness import examples
from virtpilot.calendar import Calendar
from virtpilot.clock import SECOND

BERLIN = ZoneInfo("Europe/Berlin")


def covers(text: str, local: str, zone: str = "UTC") -> bool:
    moment = datetime.fromisoformat(local).replace(tzinfo=ZoneInfo(zone))
    return Calendar(text).covers(int(moment.timestamp()) * SECOND)


@pytest.mark.parametrize(
    ("text", "local", "zone", "inside"),
    [
        ("Mon-Fri 08:00-18:00 Europe/Berlin", "2026-11-25T08:00", "Europe/Berlin", True),
        ("Mon-Fri 08:00-18:00 Europe/Berlin", "2026-11-25T07:59:59", "Europe/Berlin", False),
        ("Mon-Fri 08:00-18:00 Europe/Berlin", "2026-11-25T18:00", "Europe/Berlin", False),
        ("Mon-Fri 08:00-18:00 Europe/Berlin", "2026-11-25T07:30", "UTC", True),
        ("Mon-Fri 08:00-18:00 Europe/Berlin", "2026-07-25T06:30", "UTC", False),
        ("Mon-Fri 08:00-18:00 Europe/Berlin", "2026-07-24T06:30", "UTC", True),
        ("Mon-Fri 08:00-18:00", "2026-11-28T12:00", "UTC", False),
        ("Fri-Mon", "2026-11-29T12:00", "UTC", True),
        ("Fri-Mon", "2026-11-25T12:00", "UTC", False),
        ("Mon,Wed-Thu", "2026-11-24T12:00", "UTC", False),
        ("Sat 22:00-06:00", "2026-11-28T23:00", "UTC", True),
        ("Sat 22:00-06:00", "2026-11-29T05:59", "UTC", True),
        ("Sat 22:00-06:00", "2026-11-28T05:59", "UTC", False),
        ("Sat 22:00-06:00", "2026-11-29T23:00", "UTC", False),
        ("00:00-24:00", "2026-11-29T23:59", "UTC", True),
        ("2026-12-24..2026-12-26", "2026-12-26T23:59", "UTC", True),
        ("2026-12-24..2026-12-26", "2026-12-27T00:00", "UTC", False),
        ("2026-12-24 12:00-24:00 Europe/Berlin", "2026-12-24T11:30", "UTC", True),
        ("Europe/Berlin", "2026-12-24T11:30", "UTC", True),
    ],
)
def test_when_it_holds(text: str, local: str, zone: str, inside: bool) -> None:
    assert covers(text, local, zone) is inside


@settings(derandomize=True, deadline=None, max_examples=examples(200))
@given(
    st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1)),  # noqa: DTZ001 - made aware below
    st.integers(0, 1439),
    st.integers(0, 1439),
)
def test_hours_follow_the_wall_clock_whatever_its_changes(moment: datetime, start: int, end: int) -> None:
    if start == end:
        end = 1440
    text = f"{start // 60:02}:{start % 60:02}-{end // 60:02}:{end % 60:02} Europe/Berlin"
    instant = moment.replace(tzinfo=UTC, microsecond=0)
    local = instant.astimezone(BERLIN)
    minute = local.hour * 60 + local.minute
    inside = start <= minute < end if start < end else minute >= start or minute < end
    assert Calendar(text).covers(int(instant.timestamp()) * SECOND) is inside


def test_an_hour_that_comes_twice_counts_twice_and_one_that_is_left_out_never() -> None:
    night = Calendar("02:00-03:00 Europe/Berlin")
    for first, minutes in ((datetime(2026, 10, 24, 22, tzinfo=UTC), 120), (datetime(2026, 3, 28, 22, tzinfo=UTC), 0)):
        found = sum(
            night.covers(int((first + timedelta(minutes=step)).timestamp()) * SECOND) for step in range(12 * 60)
        )
        assert found == minutes
