"""Metrics that others than agents publish: Telegraf, a script with mosquitto_pub."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from virtpilot.lineprotocol import Parsed, parse_wanted

_NO_TIME: Final = "expected a timestamp"


def read(payload: bytes, wanted: Mapping[str, frozenset[str]], now_ns: int) -> Parsed:
    """Return what rules read of a foreign message; a line without a time is of now, as it is for the stores."""
    parsed = parse_wanted(payload, wanted)
    untimed = [bad.number for bad in parsed.bad if bad.reason.endswith(_NO_TIME)]
    if not untimed:
        return parsed
    rows = payload.split(b"\n")
    stamped = parse_wanted(b"\n".join(b"%s %d" % (rows[number - 1].rstrip(), now_ns) for number in untimed), wanted)
    timed = [bad for bad in parsed.bad if bad.number not in set(untimed)]
    return Parsed(parsed.samples + stamped.samples, timed + stamped.bad)
