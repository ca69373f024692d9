"""Reads a few wanted fields of line protocol, fast: lines that hold the same fields in the same order are one layout.

A layout is learned from a line. A regular expression of it jumps from one wanted field to the next, and all numbers of
all lines are then read at once. What is of no layout, and any payload with strings or escapes, goes to the full parser:
both tell the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from io import BytesIO
from itertools import repeat
from keyword import iskeyword
from sys import intern
from typing import Annotated, Any, Final, NamedTuple, cast

import msgspec

from virtpilot.errors import LineProtocolError
from virtpilot.lineparsing import BadLine, Parsed, bad_line, parse_head, parse_lines, parse_whole
from virtpilot.model import Sample
from virtpilot.remembered import Remembered

Wanted = Mapping[str, Collection[str]]

_MAX_HEAD_BYTES: Final = 512
_MAX_LAYOUT_BYTES: Final = 8192
# A payload of ever new layouts must not cost a regular expression for each of its lines.
MAX_LAYOUTS: Final = 16
# How long values are that are passed over, at most: together, and one alone. Others go to the full parser.
_SKIPPED_CHARS: Final = 19
_SKIPPED_MORE: Final = 6
NOT_PLAIN: Final = (b'"', b"\\", b"\t", b"\r")
# A time of this century. Whether all of it are digits is seen for all times at once, which is much faster.
_TIME: Final = rb"([1-4].{18})\n"
_to_ints: Final = msgspec.json.Decoder(list[int]).decode
_OF_NUMBERS: Final = b"0123456789.+-eEi"
# So many names are looked for one by one.
_FEW_NAMES: Final = 3
_INT64: Final = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class Layout(NamedTuple):
    """How to read lines of one shape: a match tells head, the wanted fields' values, time; `split` of many at once.

    `absent` are the wanted fields that it has not, as they would stand in a line; `names` are those that it has.
    """

    match: Callable[[bytes], re.Match[bytes] | None]
    split: Callable[[bytes], list[bytes | Any]]
    decode: Callable[[bytes], list[Any]]
    fields: Callable[[Any], dict[str, Any]]
    absent: tuple[bytes, ...]
    names: tuple[str, ...]
    bare: tuple[bytes, ...] = ()
    """What follows the head, and the absent fields, without what numbers are made of; where these are many."""

    def parts(self, payload: bytes, lines: int) -> list[list[bytes]] | None:
        """Return heads, wanted fields' values and times of lines that all have the layout, None where one has not.

        What is between two matches is nothing, and there are as many of them as `lines`, or line feeds: so each is one.
        """
        parts = self.split(payload)
        each = len(self.names) + 3
        if len(parts) != each * lines + 1 or any(parts[::each]):
            return None
        heads = parts[1::each]
        return [heads, *(parts[at::each] for at in range(2, each))] if self._is_all(payload, heads) else None

    def _is_all(self, payload: bytes, heads: list[bytes]) -> bool:
        """Tell whether lines of the layout have no wanted fields beside those that it has.

        Mostly none of the names is there, whatever stands before it. Without what numbers are made of, lines of the
        layout look alike: so it is seen at once that none of many names is there.
        """
        if not self.bare:
            return not any(needle[1:] in payload for needle in self.absent[::2])
        rest, *absent = self.bare
        own = b"\n".join(heads).translate(None, _OF_NUMBERS).replace(b"\n", rest)
        text = payload.translate(None, _OF_NUMBERS)
        return text == own + rest or not any(needle in text for needle in absent)


_NOTHING: Final = re.compile(rb"(?!)")
_NO_LAYOUT: Final = Layout(_NOTHING.match, _NOTHING.split, msgspec.json.Decoder(list[Any]).decode, dict, (), ())


def parse_wanted(payload: bytes, wanted: Wanted) -> Parsed:
    """Return the samples of the wanted measurements with their wanted fields only.

    Made for speed: of what it does not read it does not notice mistakes, and samples of one series share their tags.
    """
    if not is_plain(payload):
        return parse_lines(payload, lambda line: _only(parse_whole(line), wanted))
    reader = Reader(payload if payload.endswith(b"\n") else payload + b"\n", wanted)
    if not reader.read_one_layout():
        reader.read_many()
    return Parsed(reader.samples, reader.bad)


def is_plain(payload: bytes) -> bool:
    """Tell whether a payload is text without quotes, backslashes, tabs and carriage returns."""
    return not any(char in payload for char in NOT_PLAIN) and _is_utf8(payload)


class Reader:
    """Reads a payload without quotes, backslashes, tabs and carriage returns."""

    def __init__(self, payload: bytes, wanted: Wanted) -> None:
        self.samples: list[Sample] = []
        self.found: dict[int, Sample] = {}
        """What `read_many` found, by the place of its line."""
        self.bad: list[BadLine] = []
        self._payload = payload
        # The fastest way to lines: four times as fast as `split`.
        self._lines = BytesIO(payload).readlines()
        self._wanted = {name: fields for name, fields in wanted.items() if not name.startswith("#")}
        self._columns = {name: Columns(name, frozenset(fields)) for name, fields in self._wanted.items()}

    def read_one_layout(self) -> bool:
        """Read all lines at once if they have the layout of the one in the middle, as a message's mostly have."""
        line = self._lines[len(self._lines) // 2]
        try:
            columns = self._columns[_measurement(line)]
            if columns.match(line) is None:
                columns.learn(line)
            layout = columns.layout
            if layout.match(self._lines[0]) is None or any(needle in self._payload for needle in layout.absent):
                return False
            found = list(map(layout.match, self._lines))
            if None in found:
                return False
            self.samples = columns.samples(cast(list[re.Match[bytes]], found))
        except (LineProtocolError, KeyError, ValueError, msgspec.DecodeError):
            return False
        return True

    def read_many(self) -> None:
        """Read lines of several measurements and layouts, each layout's at once; the full parser reads what is odd."""
        samples, odd = self.found, list[int]()
        groups: dict[str, list[int]] = {name: [] for name in self._columns}
        for place, line in enumerate(self._lines):
            try:
                group = groups.get(_measurement(line))
            except (LineProtocolError, ValueError):
                group = odd
            if group is not None:
                group.append(place)
        for name, places in groups.items():
            odd += self._read_group(self._columns[name], places, samples)
        for place in sorted(odd):
            self._read_carefully(place, samples)
        self.samples = [samples[place] for place in sorted(samples)]

    def _read_group(self, columns: Columns, places: list[int], samples: dict[int, Sample]) -> list[int]:
        """Read lines of one measurement, layout by layout; return those that are of none."""
        odd = []
        while places:
            line = self._lines[places[-1]]
            try:
                if columns.match(line) is None:
                    columns.learn(line)
            except LineProtocolError:
                odd.append(places.pop())
                continue
            found = [(place, columns.match(self._lines[place])) for place in places]
            odd += _read_found(columns, [(place, match) for place, match in found if match is not None], samples)
            places = [place for place, match in found if match is None]
        return odd

    def _read_carefully(self, place: int, samples: dict[int, Sample]) -> None:
        line = self._lines[place].decode().removesuffix("\n")
        text = line.strip(" ")
        if not text or text[0] == "#":
            return
        try:
            sample = _only(parse_whole(text), self._wanted)
        except LineProtocolError as error:
            self.bad.append(bad_line(place + 1, line, error))
        else:
            if sample is not None:
                samples[place] = sample


class Columns:
    """The wanted fields of one measurement, in the layout that its lines had last."""

    __slots__ = ("_latest", "_names", "_shapes", "layout", "measurement")

    def __init__(self, measurement: str, names: frozenset[str]) -> None:
        self.measurement = measurement
        self._names = names
        self._shapes: set[tuple[bytes, ...]] = set()
        self._latest = _latest(measurement, names)
        self.layout = self._latest[0]

    def match(self, line: bytes) -> re.Match[bytes] | None:
        """Return what the layout finds in a line, None where that has a wanted field that the layout has not."""
        found = self.layout.match(line)
        if found is not None and self.layout.absent:
            fields = line[found.end(1) :]
            if any(needle in fields for needle in self.layout.absent):
                return None
        return found

    def matches(self, lines: Sequence[bytes]) -> list[re.Match[bytes] | None]:
        """Return what `match` finds in each line."""
        found = list(map(self.layout.match, lines))
        if self.layout.absent and any(found):
            text = b"".join(lines)
            # Mostly none of the names is there, whatever stands before it.
            if any(needle[1:] in text for needle in self.layout.absent[::2]):
                return list(map(self.match, lines))
        return found

    def learn(self, line: bytes) -> None:
        """Take a line's own layout; raises LineProtocolError where it has none."""
        fields = line.partition(b" ")[2].partition(b" ")[0]
        if not 0 < len(fields) <= _MAX_LAYOUT_BYTES:
            raise LineProtocolError("no layout")
        shape = tuple([_shape(piece, self._names) for piece in fields.split(b",")])
        if shape not in self._shapes and len(self._shapes) >= MAX_LAYOUTS:
            raise LineProtocolError("too many layouts")
        self._shapes.add(shape)
        self._latest[0] = self.layout = _layout(self.measurement, shape, self._names)
        if self.match(line) is None:
            raise LineProtocolError("not of its layout")

    def samples(self, found: Sequence[re.Match[bytes]]) -> list[Sample]:
        """Return the samples of lines, all numbers read at once; raises what the decoder raises for what is none."""
        heads, *values, times = zip(*map(re.Match.groups, found), strict=True)
        if not values:
            return []
        text = b"[[%b]]" % b"],[".join(map(b",".join, zip(*values, strict=True)))
        if b" " in text:
            raise LineProtocolError("a space in a number")
        rows = self.layout.decode(text)
        times_ns = to_times(times)
        moments = repeat(times_ns) if isinstance(times_ns, int) else times_ns
        if len(rows) != len(found):
            raise LineProtocolError("not a row a line")
        tags = [head[1] for head in map(_head, heads)]
        return list(map(Sample, repeat(self.measurement), tags, map(self.layout.fields, rows), moments))


def to_times(times: Sequence[bytes]) -> int | list[int]:
    """Return what a layout has found as times, one number if all are the same; raises LineProtocolError where not."""
    alike = times.count(times[0]) == len(times)
    if not (times[0] if alike else b"".join(times)).isdigit():
        raise LineProtocolError("no time")
    return int(times[0]) if alike else _to_ints(b"[%b]" % b",".join(times))


def _read_found(
    columns: Columns, found: Sequence[tuple[int, re.Match[bytes]]], samples: dict[int, Sample]
) -> list[int]:
    """Read lines of one layout, by halves where they cannot be read at once; return those that cannot be read."""
    try:
        # A layout without a wanted field gives no samples.
        read = columns.samples([match for _, match in found])
        samples.update(zip([place for place, _ in found], read, strict=False))
    except (LineProtocolError, ValueError, msgspec.DecodeError):
        if len(found) == 1:
            return [found[0][0]]
        half = len(found) // 2
        return _read_found(columns, found[:half], samples) + _read_found(columns, found[half:], samples)
    return []


def _measurement(line: bytes) -> str:
    """Return a line's measurement; raises ValueError for a long head or none, LineProtocolError for a wrong one."""
    return _head(line[: line.index(b" ", 0, _MAX_HEAD_BYTES)])[0]


class Heads(NamedTuple):
    """What several heads tell, a line each: the tags of each, and the hosts, "" for those that name none."""

    tags: tuple[dict[str, str], ...]
    hosts: frozenset[str]


def heads_of(heads: bytes) -> Heads:
    """Return what heads tell; raises LineProtocolError."""
    known = _known_heads.get(heads)
    if known is None:
        tags = tuple([_head(head)[1] for head in heads.split(b"\n")])
        known = Heads(tags, frozenset([one.get("host", "") for one in tags]))
        _known_heads.put(heads, known)
    return known


_known_heads: Final[Remembered[Heads]] = Remembered()


@lru_cache(maxsize=65_536)
def _head(head: bytes) -> tuple[str, dict[str, str]]:
    """Return measurement and tags of a short head: the same few come with each tick, and the same texts in many."""
    measurement, tags = parse_head(head.decode())
    return intern(measurement), {intern(key): intern(value) for key, value in tags.items()}


def _shape(piece: bytes, wanted: frozenset[str]) -> bytes:
    """Return what makes a field part of a layout: its name, and for a wanted one what kind of number it has."""
    name, equals, value = piece.partition(b"=")
    if name.decode(errors="replace") not in wanted:
        return name
    return name + (b"=i" if equals and value.endswith(b"i") else b"=")


@lru_cache(maxsize=256)
def _latest(_measurement: str, _names: frozenset[str]) -> list[Layout]:
    """Return the one place of the layout that a measurement's lines had last: the next payload's mostly have it too."""
    return [_NO_LAYOUT]


@lru_cache(maxsize=256)
def _layout(measurement: str, shape: tuple[bytes, ...], wanted: frozenset[str]) -> Layout:
    """Return the layout of a shape; none where a field comes twice."""
    names = [piece.partition(b"=")[0] for piece in shape]
    fields = [
        (name, None if piece == name else _INT64 if piece.endswith(b"=i") else float)
        for piece, name in zip(shape, names, strict=True)
    ]
    kept = [(name.decode(), kind) for name, kind in fields if kind is not None]
    if len(set(names)) < len(names):
        return _NO_LAYOUT
    row, as_fields = _row(kept)
    missing = sorted(wanted - {name for name, _ in kept})
    absent = tuple([f"{before}{name}=".encode(errors="surrogatepass") for name in missing for before in ", "])
    matcher = re.compile(_pattern(measurement, fields), re.DOTALL)
    decode = msgspec.json.Decoder(list[row]).decode  # type: ignore[valid-type]
    bare = _bare(names, [needle[1:-1] for needle in absent[::2]])
    return Layout(matcher.match, matcher.split, decode, as_fields, absent, tuple(name for name, _ in kept), bare)


def _bare(names: Sequence[bytes], absent: Sequence[bytes]) -> tuple[bytes, ...]:
    """Return `Layout.bare`; none where an absent field in place of another one would not make it another text."""
    left, others = ([name.translate(None, _OF_NUMBERS) for name in some] for some in (names, absent))
    if len(others) <= _FEW_NAMES or not set(left).isdisjoint(others):
        return ()
    return b" %b= \n" % b"=,".join(left), *(b"%b=" % name for name in others)


def _pattern(measurement: str, fields: Sequence[tuple[bytes, Any]]) -> bytes:
    pattern = rb"(%b(?>,[^ ]{1,%d}+)?) " % (re.escape(measurement.encode(errors="surrogatepass")), _MAX_HEAD_BYTES)
    skipped: list[bytes] = []
    for number, (name, kind) in enumerate(fields, 1):
        if kind is None:
            skipped.append(name)
            continue
        # Passing over one character's others is faster than over two's; a space in a value is noticed afterwards.
        value, end = (b"([^,]++)", b",") if number < len(fields) else (b"([^, ]++)", b" ")
        if kind is _INT64:
            # Longer ones may not fit 64 bits: the full parser knows.
            value = rb"(-?[0-9]{1,18}+)i"
        # Atomic: a line that holds a name many times must not be tried in many ways.
        pattern += b"(?>%b%b=)%b%b" % (_jump(skipped), re.escape(name), value, end)
        skipped = []
    # As far as the fields behind the last wanted one must reach, then on to the space.
    return pattern + (b".{%d}[^ ]*+ " % _least(skipped) if skipped else b"") + _TIME


def _jump(skipped: Sequence[bytes]) -> bytes:
    """Return what passes over fields: as far as they may reach, then back to a comma."""
    if not skipped:
        return b""
    least = _least(skipped)
    return b".{%d,%d}," % (least, least + (_SKIPPED_CHARS - 1) * len(skipped) + _SKIPPED_MORE)


def _least(skipped: Sequence[bytes]) -> int:
    """Return how long fields are at least, but for the comma behind the last."""
    return sum(len(name) + len("=0,") for name in skipped) - 1


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
    try:
        return payload.isascii() or isinstance(payload.decode(), str)
    except UnicodeDecodeError:
        return False


def _only(sample: Sample | None, wanted: Wanted) -> Sample | None:
    if sample is None or (names := wanted.get(sample.measurement)) is None:
        return None
    fields = {name: sample.fields[name] for name in names if name in sample.fields}
    return Sample(sample.measurement, sample.tags, fields, sample.time_ns) if fields else None
