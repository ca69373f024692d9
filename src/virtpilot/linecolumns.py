"""Reads a few wanted fields of line protocol, fast: lines that hold the same fields in the same order are one layout.

A layout is learned from a line and read by a regular expression that jumps from one wanted field to the next. What is
not of a known layout, and any payload with strings or escapes, goes to the full parser: both tell the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from keyword import iskeyword
from typing import Annotated, Any, Final, NamedTuple

import msgspec

from virtpilot.errors import LineProtocolError
from virtpilot.lineparsing import BadLine, Parsed, bad_line, parse_head, parse_lines, parse_whole
from virtpilot.model import Sample

Wanted = Mapping[str, Collection[str]]

_MAX_HEAD_BYTES: Final = 512
_MAX_LAYOUT_BYTES: Final = 8192
# A payload of ever new layouts must not cost a regular expression for each of its lines.
_MAX_LAYOUTS: Final = 16
# How long values are that are passed over, at most: together, and one alone. Others go to the full parser.
_SKIPPED_CHARS: Final = 19
_SKIPPED_MORE: Final = 6
_NOT_PLAIN: Final = (b'"', b"\\", b"\t", b"\r")
_TIME: Final = re.compile(rb" [1-4][0-9]{18}")
_TIME_BYTES: Final = 20
_INT64: Final = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class _Layout(NamedTuple):
    """How to read the wanted fields of lines of one shape; `absent` is what those begin with that it has not."""

    match: Callable[..., re.Match[bytes] | None]
    row: bytes
    decode: Callable[[bytes], Any]
    fields: Callable[[Any], dict[str, Any]]
    absent: tuple[bytes, ...]


_NO_LAYOUT: Final = _Layout(re.compile(rb"(?!)").match, b"", msgspec.json.Decoder().decode, dict, ())


def parse_wanted(payload: bytes, wanted: Wanted) -> Parsed:
    """Return the samples of the wanted measurements with their wanted fields only.

    Made for speed: of what it does not read it does not notice mistakes, and samples of one series share their tags.
    """
    if any(char in payload for char in _NOT_PLAIN) or not _is_utf8(payload):
        return parse_lines(payload, lambda line: _only(parse_whole(line), wanted))
    reader = _Reader(wanted)
    reader.read(payload if payload.endswith(b"\n") else payload + b"\n")
    return Parsed(reader.samples, reader.bad)


class _Reader:
    """Reads a payload without quotes, backslashes, tabs and carriage returns."""

    def __init__(self, wanted: Wanted) -> None:
        self.samples: list[Sample] = []
        self.bad: list[BadLine] = []
        self._wanted = {name: fields for name, fields in wanted.items() if not name.startswith("#")}
        self._columns = {name: _Columns(name, frozenset(fields)) for name, fields in self._wanted.items()}

    def read(self, payload: bytes) -> None:
        """Read line by line; whatever is odd about a line leaves it to the full parser.

        One loop without calls of ours: they would take as long as the work.
        """
        find, columns_of, keep = payload.find, self._columns.get, self.samples.append
        at, number, size = 0, 1, len(payload)
        time_text: bytes | None = None
        time_ns = 0
        while at < size:
            end = find(b"\n", at)
            try:
                head_end = payload.index(b" ", at, at + _MAX_HEAD_BYTES)
                measurement, tags = _head(payload[at:head_end])
                columns = columns_of(measurement)
                if columns is not None:
                    found = columns.match(payload, head_end + 1, end)
                    if found is None or columns.absent:
                        found = columns.learn(found, payload[head_end + 1 : end])
                    if payload[end - _TIME_BYTES : end] != time_text:
                        # The lines of a message mostly have one time.
                        time_ns = _time(payload[end - _TIME_BYTES : end])
                        time_text = payload[end - _TIME_BYTES : end]
                    row = columns.row % found.groups()
                    fields = columns.fields(columns.decode(row))
                    if b" " in row:
                        raise LineProtocolError("a space in a number")
                    if fields:
                        keep(Sample(measurement, tags, fields, time_ns))
            except (LineProtocolError, ValueError, msgspec.DecodeError):
                self._read_carefully(number, payload[at:end].decode())
            at = end + 1
            number += 1

    def _read_carefully(self, number: int, line: str) -> None:
        text = line.strip(" ")
        if not text or text[0] == "#":
            return
        try:
            sample = _only(parse_whole(text), self._wanted)
        except LineProtocolError as error:
            self.bad.append(bad_line(number, line, error))
        else:
            if sample is not None:
                self.samples.append(sample)


class _Columns:
    """The wanted fields of one measurement, in the layout that its lines had last."""

    __slots__ = ("_latest", "_names", "_shapes", "absent", "decode", "fields", "match", "row")

    def __init__(self, measurement: str, names: frozenset[str]) -> None:
        self._names = names
        self._shapes: set[tuple[bytes, ...]] = set()
        self._latest = _latest(measurement, names)
        self.match, self.row, self.decode, self.fields, self.absent = self._latest[0]

    def learn(self, found: re.Match[bytes] | None, rest: bytes) -> re.Match[bytes]:
        """Return the match of a line after its head with its own layout; raises LineProtocolError where it has none.

        What was found with the former layout holds unless the line has a wanted field that this layout has not.
        """
        if found is not None and not any(b"," + needle in rest or rest.startswith(needle) for needle in self.absent):
            return found
        fields, space, _ = rest.partition(b" ")
        if not space or not 0 < len(fields) <= _MAX_LAYOUT_BYTES:
            raise LineProtocolError("no layout")
        shape = tuple([_shape(piece, self._names) for piece in fields.split(b",")])
        if shape not in self._shapes and len(self._shapes) >= _MAX_LAYOUTS:
            raise LineProtocolError("too many layouts")
        self._shapes.add(shape)
        self._latest[0] = layout = _layout(shape, self._names)
        self.match, self.row, self.decode, self.fields, self.absent = layout
        found = self.match(rest)
        if found is None:
            raise LineProtocolError("not of its layout")
        return found


@lru_cache(maxsize=65_536)
def _head(head: bytes) -> tuple[str, dict[str, str]]:
    """Return measurement and tags of a short head: the same few come with each tick."""
    return parse_head(head.decode())


def _time(text: bytes) -> int:
    """Return a time as most are, after its space."""
    if not _TIME.fullmatch(text):
        raise LineProtocolError("another time")
    return int(text)


def _shape(piece: bytes, wanted: frozenset[str]) -> bytes:
    """Return what makes a field part of a layout: its name, and for a wanted one what kind of number it has."""
    name, equals, value = piece.partition(b"=")
    if name.decode(errors="replace") not in wanted:
        return name
    return name + (b"=i" if equals and value.endswith(b"i") else b"=")


@lru_cache(maxsize=256)
def _latest(_measurement: str, _names: frozenset[str]) -> list[_Layout]:
    """Return the one place of the layout that a measurement's lines had last: the next payload's mostly have it too."""
    return [_NO_LAYOUT]


@lru_cache(maxsize=256)
def _layout(shape: tuple[bytes, ...], wanted: frozenset[str]) -> _Layout:
    """Return the layout of a shape; none where a field comes twice."""
    names = [piece.partition(b"=")[0] for piece in shape]
    if len(set(names)) < len(names):
        return _NO_LAYOUT
    fields = [
        (name, None if piece == name else _INT64 if piece.endswith(b"=i") else float)
        for piece, name in zip(shape, names, strict=True)
    ]
    kept = [(name.decode(), kind) for name, kind in fields if kind is not None]
    row, as_fields = _row(kept)
    template = b"[%b]" % b",".join([b"%b"] * len(kept))
    missing = sorted(wanted - {name for name, _ in kept})
    absent = tuple([f"{name}=".encode(errors="surrogatepass") for name in missing])
    matcher = re.compile(_pattern(fields), re.DOTALL)
    return _Layout(matcher.match, template, msgspec.json.Decoder(row).decode, as_fields, absent)


def _pattern(fields: Sequence[tuple[bytes, Any]]) -> bytes:
    pattern = b""
    skipped: list[bytes] = []
    for number, (name, kind) in enumerate(fields, 1):
        if kind is None:
            skipped.append(name)
            continue
        end = b"," if number < len(fields) else b" "
        value = rb"(-?[0-9]++)i" if kind is _INT64 else b"([^, ]++)"
        # Atomic: a line that holds a name many times must not be tried in many ways.
        pattern += b"(?>%b%b=)%b%b" % (_jump(skipped), re.escape(name), value, end)
        skipped = []
    return pattern


def _jump(skipped: Sequence[bytes]) -> bytes:
    """Return what passes over fields: as far as they may reach, then back to a comma."""
    if not skipped:
        return b""
    least = sum(len(name) + len("=0,") for name in skipped) - 1
    return b".{%d,%d}," % (least, least + (_SKIPPED_CHARS - 1) * len(skipped) + _SKIPPED_MORE)


def _row(kept: list[tuple[str, Any]]) -> tuple[Any, Callable[[Any], dict[str, Any]]]:
    """Return the type of the kept fields' values, and what makes fields of them."""
    names = [name for name, _ in kept]
    if all(name.isidentifier() and not iskeyword(name) and not name.startswith("__") for name in names):
        # Twice as fast as a dict of pairs.
        return msgspec.defstruct(
            "Row", kept, array_like=True, gc=False, forbid_unknown_fields=True
        ), msgspec.structs.asdict
    return tuple.__class_getitem__(tuple(kind for _, kind in kept)), lambda row: dict(zip(names, row, strict=True))


def _is_utf8(payload: bytes) -> bool:
    if payload.isascii():
        return True
    try:
        payload.decode()
    except UnicodeDecodeError:
        return False
    return True


def _only(sample: Sample | None, wanted: Wanted) -> Sample | None:
    if sample is None or (names := wanted.get(sample.measurement)) is None:
        return None
    fields = {name: sample.fields[name] for name in names if name in sample.fields}
    return Sample(sample.measurement, sample.tags, fields, sample.time_ns) if fields else None
