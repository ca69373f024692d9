"""Samples as InfluxDB line protocol; the other direction and the rules of escaping are in lineprotocol.py."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Final, NamedTuple

import msgspec
import structlog

from virtpilot.errors import LineProtocolError
from virtpilot.model import Sample

MAX_LINE_CHARS: Final = 64 * 1024
MAX_SHOWN_CHARS: Final = 200

_MAX_HEADS: Final = 16_384
_INT64_MIN: Final = -(2**63)
_INT64_MAX: Final = 2**63 - 1
_UINT64_MAX: Final = 2**64 - 1
_UNSAFE_IN_MEASUREMENT: Final = re.compile(r"[, ]")
_UNSAFE_IN_KEY: Final = re.compile(r"[,= ]")
_SUFFIXES: Final[dict[type, str]] = {int: "i", float: ""}
_ARRAY: Final = b"[],"
_OF_NULL: Final = b"u"  # with it JSON tells of a number that is not finite, and of nothing else here
_STAND_INS: Final = b"\x01\x02"
_AWAY: Final = bytes.maketrans(b",u", _STAND_INS)
_BACK: Final = bytes.maketrans(_STAND_INS, b",u")
_TAKEN: Final = frozenset(b"[]" + _STAND_INS)
_to_json: Final = msgspec.json.Encoder().encode
_log = structlog.get_logger(__name__)


class _Layout(NamedTuple):
    """What the field sets of many samples have in common.

    A line is written as a JSON array of raw texts and numbers, from which the array's own characters are then taken
    away: so one call writes all numbers, as the shortest texts that read back as the same. `pieces` is that array with
    room for head, numbers and time, empty where it cannot be done so. Packing checks that integers fit 64 bits.
    """

    names: tuple[str, ...]
    types: tuple[type, ...]
    pieces: list[object]
    pack: Callable[..., bytes]


def encode(sample: Sample) -> str:
    """Return a sample as one line without its line feed, tags sorted by key; raises LineProtocolError.

    An empty tag value is left out: the store knows no difference between an empty tag and none.
    """
    return _line(sample, {}).decode()


def encode_lines(samples: Iterable[Sample]) -> bytes:
    """Return samples as UTF-8 lines; what cannot be written is left out, item by item, and logged."""
    written = bytearray()
    latest: dict[str, _Layout] = {}
    for sample in samples:
        try:
            written += _line(sample, latest)
            written += b"\n"
        except LineProtocolError as error:
            _log.warning("left out what line protocol cannot hold", measurement=sample.measurement, reason=str(error))
            for line in _what_can_be_encoded(sample):
                written += line
                written += b"\n"
    return bytes(written)


def _line(sample: Sample, latest: dict[str, _Layout]) -> bytes:
    """Return a sample's line; `latest` holds the layout that each measurement had last."""
    fields = sample.fields
    names, values = tuple(fields), tuple(fields.values())
    types = tuple(map(type, values))
    layout = latest.get(sample.measurement)
    if layout is None or layout.names != names or layout.types != types:
        layout = latest[sample.measurement] = _layout(names, types)
    head = _raw_head(sample)
    pieces = layout.pieces.copy()
    if head is None or not pieces or not _INT64_MIN <= sample.time_ns <= _INT64_MAX:
        return _line_of_any(sample)
    try:
        layout.pack(*values)
    except struct.error:
        return _line_of_any(sample)
    pieces[0] = head
    pieces[2:-1:2] = values
    pieces[-1] = sample.time_ns
    written = _to_json(pieces)
    if len(written) > MAX_LINE_CHARS or _OF_NULL in written:
        return _line_of_any(sample)
    return written.translate(_BACK, _ARRAY)


@lru_cache(maxsize=1024)
def _layout(names: tuple[str, ...], types: tuple[type, ...]) -> _Layout:
    texts = []
    ended = ""
    for name, kind in zip(names, types, strict=True):
        texts.append(_raw(f"{ended}{_key(name)}="))
        ended = f"{_SUFFIXES.get(kind)},"
    if not names or None in texts or not _SUFFIXES.keys() >= set(types):
        return _Layout(names, types, [], bytes)
    texts.append(_raw(f"{ended[:-1]} "))
    pieces: list[object] = [None] * (2 * len(texts) + 1)
    pieces[1::2] = texts
    packer = struct.Struct("".join(["d" if kind is float else "q" for kind in types]))
    return _Layout(names, types, pieces, packer.pack)


def _raw_head(sample: Sample) -> msgspec.Raw | None:
    """Return a line up to its fields: the same few come with each tick."""
    tags = sample.tags
    heads, values = _heads(sample.measurement, tuple(tags)), tuple(tags.values())
    if values not in heads:
        if len(heads) >= _MAX_HEADS:
            heads.clear()
        heads[values] = _raw(_head(sample.measurement, tags.items()))
    return heads[values]


@lru_cache(maxsize=64)
def _heads(_measurement: str, _keys: tuple[str, ...]) -> dict[tuple[str, ...], msgspec.Raw | None]:
    """Return the place of the heads of samples that have these tags, by the tags' values."""
    return {}


def _raw(text: str) -> msgspec.Raw | None:
    """Return a text for the array; None where it would not come back the same."""
    written = _utf8(text)
    return msgspec.Raw(written.translate(_AWAY)) if set(written).isdisjoint(_TAKEN) else None


def _head(measurement: str, tags: Iterable[tuple[str, str]]) -> str:
    if measurement.startswith("#"):
        raise LineProtocolError(f"measurement {measurement!r} would be a comment")
    written = "".join([f",{_key(key)}={_key(value)}" for key, value in sorted(tags) if value])
    return f"{_measurement(measurement)}{written} "


def _line_of_any(sample: Sample) -> bytes:
    """Return a sample's line, number by number."""
    if not sample.fields:
        raise LineProtocolError("a sample needs a field")
    fields = ",".join([f"{_key(key)}={_number(key, value)}" for key, value in sample.fields.items()])
    if not _INT64_MIN <= sample.time_ns <= _INT64_MAX:
        raise LineProtocolError(f"time {sample.time_ns} does not fit 64 bits")
    line = f"{_head(sample.measurement, sample.tags.items())}{fields} {sample.time_ns}"
    if len(line) > MAX_LINE_CHARS:
        raise LineProtocolError(f"a line of {len(line)} characters: {MAX_LINE_CHARS} at most")
    return _utf8(line)


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise LineProtocolError(f"not Unicode text: {text[:MAX_SHOWN_CHARS]!r}") from None


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
        return _to_json(float(value)).decode()
    if _INT64_MIN <= value <= _INT64_MAX:
        return f"{int(value)}i"
    if 0 <= value <= _UINT64_MAX:
        return f"{value}u"
    raise LineProtocolError(f"field {key!r}: {value} does not fit 64 bits")


def _what_can_be_encoded(sample: Sample) -> list[bytes]:
    """Return the line of what is left of a sample without the tags and fields that cannot be written."""
    tags = {key: value for key, value in sample.tags.items() if _encodes(Sample("m", {key: value}, {"f": 0}, 0))}
    fields = {key: value for key, value in sample.fields.items() if _encodes(Sample("m", {}, {key: value}, 0))}
    rest = Sample(sample.measurement, tags, fields, sample.time_ns)
    return [_line(rest, {})] if _encodes(rest) else []


def _encodes(sample: Sample) -> bool:
    try:
        encode(sample)
    except LineProtocolError:
        return False
    return True
