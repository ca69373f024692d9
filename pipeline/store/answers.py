"""What a store's answers mean: try again and when, or which lines it will never take."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import Final

import msgspec

from virtpilot.clock import SECOND
from virtpilot.errors import StoreError, StoreRefused, StoreUnavailable

TAKEN: Final = 204
TOO_LARGE: Final = 413

_REFUSED: Final = frozenset({400, TOO_LARGE, 422})
_MAX_REASON_CHARS: Final = 300
_MAX_WAIT_S: Final = 3600.0
# InfluxDB quotes the line, or says which one it is, from 1.
_QUOTED: Final = re.compile(r"unable to parse '(.*?)': ([^\n]*)")
_NUMBERED: Final = re.compile(r"\bline (\d{1,9})\b")


class _Answer(msgspec.Struct):
    """What InfluxDB 2 says of an error: https://docs.influxdata.com/influxdb/v2/api/ (POST /api/v2/write)."""

    message: str = ""
    line: int | None = None


def error_from(status: int, answer: str, headers: Mapping[str, str] | None, lines: bytes, now_ns: int) -> StoreError:
    """Return the error that an answer to a write of `lines` stands for; `now_ns` is the wall clock's time."""
    said = _read(answer)
    reason = f"{status}: {(said.message or answer)[:_MAX_REASON_CHARS]}"
    if status in _REFUSED:
        return StoreRefused(reason, dict(_named(said, lines)))
    if status in {401, 403}:
        reason += " (is the token in token_file or token_env, and may it write to the bucket?)"
    if status == 404 or 200 <= status < 300:
        reason += " (are url, org and bucket right?)"
    return StoreUnavailable(reason, _wait_s(headers, now_ns))


def _read(answer: str) -> _Answer:
    try:
        return msgspec.json.decode(answer, type=_Answer)
    except (msgspec.DecodeError, UnicodeError):
        return _Answer(answer)


def _named(said: _Answer, lines: bytes) -> Iterator[tuple[bytes, str]]:
    """Yield the lines that an answer names, with the reason."""
    rows = lines.split(b"\n")
    known = set(rows)
    for text, reason in _QUOTED.findall(said.message):
        if (row := text.encode()) in known:
            yield row, reason[:_MAX_REASON_CHARS]
    numbers = {int(number) for number in _NUMBERED.findall(said.message)} | {said.line or 0}
    for number in sorted(numbers):
        if 1 <= number <= len(rows) and rows[number - 1].strip():
            yield rows[number - 1], said.message[:_MAX_REASON_CHARS]


def _wait_s(headers: Mapping[str, str] | None, now_ns: int) -> float:
    """Return what Retry-After asks for, in seconds or as a date, an hour at most; 0 where it asks for nothing."""
    given = (headers or {}).get("Retry-After", "").strip()
    if given.isascii() and given.isdigit():
        return min(float(given[:9]), _MAX_WAIT_S)
    try:
        at_s = parsedate_to_datetime(given).timestamp()
    except (ValueError, OverflowError):
        return 0.0
    return min(max(at_s - now_ns / SECOND, 0.0), _MAX_WAIT_S)
