"""The full parser of line protocol: every line of a payload, with what is wrong where it is none."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from virtpilot.errors import LineProtocolError
from virtpilot.lineencoding import MAX_LINE_CHARS, MAX_SHOWN_CHARS
from virtpilot.model import Sample

MAX_ITEMS: Final = 1000

_INT64_MIN: Final = -(2**63)
_INT64_MAX: Final = 2**63 - 1
_UINT64_MAX: Final = 2**64 - 1
_INT_CHARS: Final = 19
_DIGITS: Final = frozenset("0123456789")
_LEADS: Final = frozenset("+-.0123456789")
_SIGNS: Final = frozenset("+-")

# Atomic groups: once a backslash was taken as an escape, nothing takes it back.
_MEASUREMENT: Final = re.compile(r"(?>\\[, ]|[^, \n])++")
_KEY: Final = re.compile(r"(?>\\[,= ]|[^,= \n])++")
_STRING: Final = re.compile(r'"((?>\\.|[^"\\])*+)"', re.DOTALL)
_BARE: Final = re.compile(r'[^, "\n]++')
_NUMBER: Final = re.compile(r"[-+]?(?:[0-9]++\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
_ESCAPED_IN_MEASUREMENT: Final = re.compile(r"\\([, ])")
_ESCAPED_IN_KEY: Final = re.compile(r"\\([,= ])")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_BOOLEANS: Final = {
    **dict.fromkeys(("t", "T", "true", "True", "TRUE"), 1),
    **dict.fromkeys(("f", "F", "false", "False", "FALSE"), 0),
}


class BadLine(msgspec.Struct, frozen=True):
    """A malformed line: its number from 1, its text cut to 200 characters, and what is wrong with it."""

    number: int
    text: str
    reason: str


class Parsed(msgspec.Struct, frozen=True):
    """What a payload holds: the samples in order, and the lines that are none."""

    samples: list[Sample]
    bad: list[BadLine]


def parse_line(text: str) -> Sample:
    """Return the sample of one line; raises LineProtocolError also where it holds no numeric field."""
    sample = parse_whole(text.strip(" \r"))
    if sample is None:
        raise LineProtocolError("no numeric field")
    return sample


def parse(payload: bytes) -> Parsed:
    """Return all samples of a payload; strings are left out, booleans are 1 and 0, comments are skipped."""
    return parse_lines(payload, parse_whole)


def parse_lines(payload: bytes, scan: Callable[[str], Sample | None]) -> Parsed:
    """Return what `scan` makes of each line, trimmed; LineProtocolError from it costs that line only."""
    text = payload.decode(errors="surrogateescape")
    dirty = not text.isascii() and _SURROGATE.search(text) is not None
    samples: list[Sample] = []
    bad: list[BadLine] = []
    for number, line in _logical_lines(text):
        if not line or line[0] == "#" or not (trimmed := line.strip(" \r")) or trimmed[0] == "#":
            continue
        try:
            if dirty and _SURROGATE.search(line):
                raise LineProtocolError("not UTF-8")
            if (sample := scan(trimmed)) is not None:
                samples.append(sample)
        except LineProtocolError as error:
            bad.append(bad_line(number, line, error))
    return Parsed(samples, bad)


def bad_line(number: int, line: str, error: LineProtocolError) -> BadLine:
    """Return a line that is none, cut to what can be shown of it."""
    shown = line[:MAX_SHOWN_CHARS].encode(errors="surrogateescape").decode(errors="replace")
    return BadLine(number, shown, str(error))


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield lines with their numbers; a line feed inside a string value does not end a line.

    A string that is never closed ends with its line, so that it cannot swallow the rest.
    """
    if '"' not in text:
        yield from enumerate(text.split("\n"), 1)
        return
    at, number = 0, 1
    while at < len(text):
        end = text.find("\n", at)
        end = len(text) if end < 0 else end
        if text.find('"', at, end) >= 0:
            end = _end_with_strings(text, at, end)
        yield number, text[at:end]
        number += text.count("\n", at, end) + 1
        at = end + 1


def _end_with_strings(text: str, at: int, end: int) -> int:
    start = at
    while start < end and text[start] == " ":
        start += 1
    if text.startswith("#", start):
        return end
    try:
        return _scan(text, start, start + MAX_LINE_CHARS)[1]
    except LineProtocolError:
        return end


def parse_whole(line: str) -> Sample | None:
    """Return the sample of one line, None where all its fields are strings."""
    if len(line) > MAX_LINE_CHARS:
        raise LineProtocolError(f"a line of {len(line)} characters: {MAX_LINE_CHARS} at most")
    sample, end = _scan(line, 0, len(line))
    if end != len(line):
        raise LineProtocolError(f"column {end + 1}: a line feed outside a string")
    return sample


def _scan(text: str, at: int, stop: int) -> tuple[Sample | None, int]:
    """Return the sample that begins at `at`, and where its line ends."""
    measurement, tags, at = _scan_head(text, at, stop)
    at = _skip_spaces(text, at, stop, "fields")
    fields, at = _scan_fields(text, at, stop)
    at = _skip_spaces(text, at, stop, "a timestamp")
    end = text.find("\n", at, stop)
    end = min(stop, len(text)) if end < 0 else end
    time_ns = _time(text[at:end].strip(" \r"))
    return (Sample(measurement, tags, fields, time_ns) if fields else None), end


def _skip_spaces(text: str, at: int, stop: int, expected: str) -> int:
    start = at
    while at < stop and text.startswith(" ", at):
        at += 1
    if at == start or at >= min(stop, len(text)) or text[at] == "\n":
        raise LineProtocolError(f"column {at + 1}: expected {expected}")
    return at


def _scan_head(text: str, at: int, stop: int) -> tuple[str, dict[str, str], int]:
    name = _MEASUREMENT.match(text, at, stop)
    if name is None:
        raise LineProtocolError(f"column {at + 1}: expected a measurement")
    at = name.end()
    tags: dict[str, str] = {}
    while text.startswith(",", at, stop):
        key, value, at = _scan_tag(text, at + 1, stop)
        if key in tags:
            raise LineProtocolError(f"tag {key!r} twice")
        tags[key] = value
        if len(tags) > MAX_ITEMS:
            raise LineProtocolError(f"more than {MAX_ITEMS} tags")
    return _ESCAPED_IN_MEASUREMENT.sub(r"\1", name[0]), tags, at


def _scan_tag(text: str, at: int, stop: int) -> tuple[str, str, int]:
    key, at = _scan_key(text, at, stop, "a tag key")
    value = _KEY.match(text, at, stop)
    if value is None:
        raise LineProtocolError(f"column {at + 1}: expected a value for tag {key!r}")
    return key, _unescaped(value[0]), value.end()


def _scan_fields(text: str, at: int, stop: int) -> tuple[dict[str, int | float], int]:
    fields: dict[str, int | float] = {}
    seen: set[str] = set()
    while True:
        key, at = _scan_key(text, at, stop, "a field key")
        if key in seen:
            raise LineProtocolError(f"field {key!r} twice")
        seen.add(key)
        if len(seen) > MAX_ITEMS:
            raise LineProtocolError(f"more than {MAX_ITEMS} fields")
        if text.startswith('"', at, stop):
            at = _skip_string(text, at, stop, key)
        elif (value := _BARE.match(text, at, stop)) is not None:
            fields[key] = _value(value[0])
            at = value.end()
        else:
            raise LineProtocolError(f"column {at + 1}: expected a value for field {key!r}")
        if not text.startswith(",", at, stop):
            return fields, at
        at += 1


def _scan_key(text: str, at: int, stop: int, expected: str) -> tuple[str, int]:
    key = _KEY.match(text, at, stop)
    if key is None:
        raise LineProtocolError(f"column {at + 1}: expected {expected}")
    if not text.startswith("=", key.end(), stop):
        raise LineProtocolError(f"column {key.end() + 1}: expected = after {key[0][:40]!r}")
    return _unescaped(key[0]), key.end() + 1


def _skip_string(text: str, at: int, stop: int, key: str) -> int:
    string = _STRING.match(text, at, stop)
    if string is None:
        raise LineProtocolError(f"column {at + 1}: the string of field {key!r} is not closed")
    return string.end()


def _unescaped(key: str) -> str:
    return _ESCAPED_IN_KEY.sub(r"\1", key) if "\\" in key else key


def parse_head(text: str) -> tuple[str, dict[str, str]]:
    """Return measurement and tags of a line's part before its fields; raises LineProtocolError."""
    measurement, tags, end = _scan_head(text, 0, len(text))
    if end != len(text):
        raise LineProtocolError(f"column {end + 1}: expected a comma or a space")
    return measurement, tags


def _value(text: str) -> int | float:
    """Return a field's number; booleans are 1 and 0."""
    last = text[-1:]
    if last == "i":
        digits = text[:-1]
        # Below the limit of 64 bits, whatever the digits are.
        if len(digits) < _INT_CHARS and digits.isdigit() and digits.isascii():
            return int(digits)
        return _integer(digits)
    if last in _DIGITS and text[0] in _LEADS and text.isascii() and "_" not in text:
        # `float` takes all that the protocol takes; what it takes beyond it does not come here.
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if math.isfinite(number):
            return number
    return _rare_value(text)


def _rare_value(text: str) -> int | float:
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if text[-1:] == "u" and text[:-1].isascii() and text[:-1].isdigit() and len(text) <= _INT_CHARS + 2:
        number = int(text[:-1])
        if number <= _UINT64_MAX:
            return number
    elif _NUMBER.fullmatch(text) and math.isfinite(real := float(text)):
        return real
    raise LineProtocolError(f"{text[:40]!r} is no number, boolean or string")


def _integer(text: str) -> int:
    digits = text[1:] if text[:1] in _SIGNS else text
    if digits.isdigit() and digits.isascii() and len(digits) <= _INT_CHARS:
        number = int(text)
        if _INT64_MIN <= number <= _INT64_MAX:
            return number
    raise LineProtocolError(f"{text[:40]!r} is no integer of 64 bits")


def _time(text: str) -> int:
    # A time of this century: 19 digits, the first of them 1 to 4.
    if len(text) == _INT_CHARS and text < "5" and text.isdigit() and text.isascii():
        return int(text)
    try:
        return _integer(text)
    except LineProtocolError as error:
        raise LineProtocolError(f"timestamp {error}") from None
