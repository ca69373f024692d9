"""Times as people write them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from virtpilot.clock import SECOND
from virtpilot.pipeline.moment import moment, shown, zoned

NOW_NS = int(datetime(2026, 3, 5, 18, 30, tzinfo=UTC).timestamp()) * SECOND
ZONE = timezone(timedelta(hours=2))


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("14:03", "2026-03-05 14:03:00"),
        ("4:03:20", "2026-03-05 04:03:20"),
        ("2026-03-01T14:03", "2026-03-01 14:03:00"),
        ("2026-03-01T14:03:00Z", "2026-03-01 16:03:00"),
        ("2026-03-01", "2026-03-01 00:00:00"),
    ],
)
def test_a_text_means_a_time_here(text: str, meant: str) -> None:
    assert shown(moment(text, NOW_NS, ZONE), ZONE) == meant


def test_a_time_is_told_with_its_zone() -> None:
    assert zoned(NOW_NS, ZONE) == "2026-03-05 20:30:00 UTC+02:00"


@pytest.mark.parametrize("text", ["", "25:00", "noon", "14:60", "2026-13-01", "9" * 50])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no time such as 14:03"):
        moment(text, NOW_NS, ZONE)
