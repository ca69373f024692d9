"""Samples as InfluxDB line protocol; the other direction and the rules of escaping are in lineprotocol.py."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Final

import structlog

from virtpilot.errors import LineProtocolError
from virtpilot.model import Sample

MAX_LINE_CHARS: Final = 64 * 1024
MAX_SHOWN_CHARS: Final = 200

_INT64_MIN: Final = -(2**63)
_INT64_MAX: Final = 2**63 - 1
_UINT64_MAX: Final = 2**64 - 1
_UNSAFE_IN_MEASUREMENT: Final = re.compile(r"[, ]")
_UNSAFE_IN_KEY: Final = re.compile(r"[,= ]")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_log = structlog.get_logger(__name__)


def encode(sample: Sample) -> str:
    """Return a sample as one line without its line feed, tags sorted by key; raises LineProtocolError.

    An empty tag value is left out: the store knows no difference between an empty tag and none.
    """
    if not sample.fields:
        raise LineProtocolError("a sample needs a field")
    if sample.measurement.startswith("#"):
        raise LineProtocolError(f"measurement {sample.measurement!r} would be a comment")
    tags = (f",{_key(key)}={_key(value)}" for key, value in sorted(sample.tags.items()) if value)
    fields = ",".join([f"{_key(key)}={_number(key, value)}" for key, value in sample.fields.items()])
    if not _INT64_MIN <= sample.time_ns <= _INT64_MAX:
        raise LineProtocolError(f"time {sample.time_ns} does not fit 64 bits")
    line = f"{_measurement(sample.measurement)}{''.join(tags)} {fields} {sample.time_ns}"
    if not line.isascii() and _SURROGATE.search(line):
        raise LineProtocolError(f"not Unicode text: {line[:MAX_SHOWN_CHARS]!r}")
    if len(line) > MAX_LINE_CHARS:
        raise LineProtocolError(f"a line of {len(line)} characters: {MAX_LINE_CHARS} at most")
    return line


def encode_lines(samples: Iterable[Sample]) -> bytes:
    """Return samples as UTF-8 lines; what cannot be written is left out, item by item, and logged."""
    lines: list[str] = []
    for sample in samples:
        try:
            lines.append(encode(sample))
        except LineProtocolError as error:
            _log.warning("left out what line protocol cannot hold", measurement=sample.measurement, reason=str(error))
            lines.extend(_what_can_be_encoded(sample))
    return "".join([f"{line}\n" for line in lines]).encode()


def _measurement(text: str) -> str:
    _check_name(text)
    return _UNSAFE_IN_MEASUREMENT.sub(r"\\\g<0>", text)


def _key(text: str) -> str:
    _check_name(text)
    return _UNSAFE_IN_KEY.sub(r"\\\g<0>", text)


def _check_name(text: str) -> None:
    if not text or text[-1] == "\\" or "\n" in text:
        raise LineProtocolError(f"{text[:MAX_SHOWN_CHARS]!r} is empty, ends in a backslash or holds a line feed")


def _number(key: str, value: int | float) -> str:
    if isinstance(value, float):
        if not math.isfinite(value):
            raise LineProtocolError(f"field {key!r} is {value}")
        return repr(float(value))
    if _INT64_MIN <= value <= _INT64_MAX:
        return f"{int(value)}i"
    if 0 <= value <= _UINT64_MAX:
        return f"{value}u"
    raise LineProtocolError(f"field {key!r}: {value} does not fit 64 bits")


def _what_can_be_encoded(sample: Sample) -> list[str]:
    """Return the line of what is left of a sample without the tags and fields that cannot be written."""
    tags = {key: value for key, value in sample.tags.items() if _encodes(Sample("m", {key: value}, {"f": 0}, 0))}
    fields = {key: value for key, value in sample.fields.items() if _encodes(Sample("m", {}, {key: value}, 0))}
    rest = Sample(sample.measurement, tags, fields, sample.time_ns)
    return [encode(rest)] if _encodes(rest) else []


def _encodes(sample: Sample) -> bool:
    try:
        encode(sample)
    except LineProtocolError:
        return False
    return True
