"""Whole messages as columns: what rules read of many lines, without a step of Python for each of them.

Lines of one measurement and one layout become a block. What is of no block (few lines, odd ones) is read sample by
sample; both tell what the full parser tells, numbers as floats.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from io import BytesIO
from itertools import islice
from operator import is_not, itemgetter
from struct import pack
from typing import Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from virtpilot.errors import LineProtocolError
from virtpilot.linecolumns import (
    MAX_LAYOUTS,
    Columns,
    Reader,
    Wanted,
    heads_of,
    is_plain,
    parse_wanted,
    to_times,
)
from virtpilot.linelayouts import Layout
from virtpilot.lineparsing import BadLine, Parsed
from virtpilot.model import Sample
from virtpilot.remembered import Remembered

# Fewer lines are read faster one by one, if there is not much beside them.
_FEW: Final = 8
_MANY: Final = 40
_UNSAFE: Final = frozenset(", \\\n")
# What is remembered of a line beside its head: places in lists.
_OF_ONE: Final = 64
_start: Final = re.compile(rb"[^, ]*[, ]?").match
_to_floats: Final = msgspec.json.Decoder(list[float]).decode


class Block(NamedTuple):
    """Lines with the same fields: `values` has a row a field and a column a line, all of them known."""

    measurement: str
    layout: Layout
    places: NDArray[np.int64]
    """Where its lines stand in the message, from 0."""
    heads: bytes
    """Measurement and tags as they stand in the lines, joined by line feeds: the same ones come with each tick."""
    values: NDArray[np.float64]
    times: NDArray[np.int64]

    @property
    def names(self) -> tuple[str, ...]:
        """The fields' names."""
        return self.layout.names

    def samples(self) -> list[Sample]:
        """Return its lines as samples."""
        rows = zip(heads_of(self.heads).tags, self.values.T.tolist(), self.times.tolist(), strict=True)
        return [Sample(self.measurement, one, dict(zip(self.names, row, strict=True)), at) for one, row, at in rows]


class _Text(NamedTuple):
    """A block whose numbers have not been read."""

    measurement: str
    layout: Layout
    places: NDArray[np.int64]
    heads: bytes
    values: Sequence[bytes]
    """Line after line."""
    times: Sequence[bytes]


class Part(NamedTuple):
    """Lines of a roster that were of one layout: a block, but for its numbers."""

    layout: Layout
    pick: Callable[[list[bytes]], Iterable[bytes]]
    places: NDArray[np.int64]
    heads: bytes

    @classmethod
    def of(cls, block: Block) -> Part:
        """Return what will find the lines of a block again."""
        return cls(block.layout, _picked(block.places.tolist()), block.places, block.heads)


class Group(NamedTuple):
    """A measurement's lines in a roster, and the parts that they were last; none where some line was of no block."""

    measurement: str
    places: list[int]
    parts: tuple[Part, ...] = ()

    def again(self, lines: list[bytes]) -> list[_Text]:
        """Return what its lines hold if they are about the same, in the same layouts; nothing where one is not."""
        found = []
        for layout, pick, places, heads in self.parts:
            parts = layout.parts(b"".join(pick(lines)), len(places))
            if parts is None or b"\n".join(parts.heads) != heads:
                return []
            found.append(_Text(self.measurement, layout, places, heads, parts.values, parts.times))
        return found


class Roster:
    """Of which measurements a message's lines are: a host's come again with each tick, in the same order.

    As long as they do nobody looks for the lines of a measurement, nor for whom they are about.
    """

    __slots__ = ("__weakref__", "_pick", "_some", "blank", "groups", "starts")

    def __init__(self, starts: list[bytes], groups: tuple[Group, ...], blank: list[int]) -> None:
        self.starts = starts
        """Each line's measurement with what follows behind."""
        self.groups = groups
        self.blank = blank
        """Where lines stand that begin with a space."""
        told = {place for group in groups for part in group.parts for place in part.places.tolist()}
        # Lines of parts are looked at closely, each time.
        left = [place for place in range(len(starts)) if place not in told]
        self._pick, self._some = _picked(left), [starts[place] for place in left]

    def may_be_of(self, lines: list[bytes]) -> bool:
        """Tell whether lines begin so, but for those of parts."""
        return len(lines) == len(self.starts) and all(map(bytes.startswith, self._pick(lines), self._some))

    def weight(self) -> int:
        """Return about how many bytes of memory it takes."""
        heads = sum(len(part.heads) for group in self.groups for part in group.parts)
        return heads + _OF_ONE * len(self.starts)


def _picked(places: list[int]) -> Callable[[list[bytes]], Iterable[bytes]]:
    """Return what gives the lines at some places."""
    return (
        itemgetter(*places) if len(places) > 1 else itemgetter(slice(places[0], places[0] + 1) if places else slice(0))
    )


class Lines(NamedTuple):
    """What a message holds: blocks, the samples of all other lines by their place, and the lines that are none.

    `roster` is the same one for messages whose blocks are about the same in the same places, none where lines are left.
    """

    blocks: list[Block]
    others: dict[int, Sample]
    bad: list[BadLine]
    roster: Roster | None = None

    @classmethod
    def of(cls, parsed: Parsed) -> Lines:
        """Return what was read sample by sample."""
        return cls([], dict(enumerate(parsed.samples)), parsed.bad)

    def hosts(self) -> frozenset[str]:
        """Return the hosts of which it tells, "" for lines that name none."""
        others = [sample.tags.get("host", "") for sample in self.others.values()]
        return frozenset(others).union(*[heads_of(block.heads).hosts for block in self.blocks])

    def __len__(self) -> int:
        return len(self.others) + sum(len(block.places) for block in self.blocks)

    def time_ns(self) -> int:
        """Return the time of one of its lines; an agent's have one time. There must be some."""
        return int(self.blocks[0].times[0]) if self.blocks else next(iter(self.others.values())).time_ns

    def samples(self) -> list[Sample]:
        """Return all as samples, in order."""
        found = dict(self.others)
        for block in self.blocks:
            found.update(zip(block.places.tolist(), block.samples(), strict=True))
        return [found[place] for place in sorted(found)]


class LineReader:
    """Reads messages for the same wanted fields."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = {name: frozenset(fields) for name, fields in wanted.items()}
        # A name that is written with escapes is in no plain message, and `#` begins a comment.
        self._names = [name for name in self._wanted if _UNSAFE.isdisjoint(name) and name[:1] not in {"", "#"}]
        heads = [b"(%b[, ])" % re.escape(name.encode(errors="surrogatepass")) for name in self._names]
        # The last group: what is written with spaces before it, as one may.
        self._latest: Columns | None = None
        self._start = b""
        self._which = re.compile(b"|".join([*heads, b"( )"])).match
        self._rosters: Remembered[Roster] = Remembered(weigh=Roster.weight)

    def read(self, payload: bytes) -> Lines:
        """Return the wanted fields of a message's lines."""
        if not is_plain(payload):
            return Lines.of(parse_wanted(payload, self._wanted))
        payload = payload if payload.endswith(b"\n") else payload + b"\n"
        block = self._single(payload)
        if block is not None:
            return Lines([block], {}, [])
        lines = BytesIO(payload).readlines()
        # Messages of a host mostly begin alike.
        key = b"%b %d" % (payload[: payload.find(b" ")], len(lines))
        known = self._rosters.get(key)
        found, roster = self._by_roster(known if known and known.may_be_of(lines) else self._roster(lines), lines)
        if roster is not known:
            self._rosters.put(key, roster)
        if len(found.blocks) == 1 and len(found) == len(lines):
            self._latest = Columns(found.blocks[0].measurement, self._wanted[found.blocks[0].measurement])
            self._start = found.blocks[0].measurement.encode()
        return found

    def _single(self, payload: bytes) -> Block | None:
        """Read lines that all have the layout that the last such message had."""
        columns = self._latest
        if columns is None or not payload.startswith(self._start):
            return None
        # A message of several measurements mostly ends with another one than it begins with.
        last = payload.rfind(b"\n", 0, -1) + 1
        if not last or not payload.startswith(self._start, last):
            return None
        # Several times as fast as `count`, which is made for what is rare.
        return _at_once(columns, range(len(BytesIO(payload).readlines())), payload)

    def _roster(self, lines: list[bytes]) -> Roster:
        """Return what lines there are; nobody knows yet of which layouts they are."""
        groups: list[list[int]] = [[] for _ in range(len(self._names) + 1)]
        starts, same = list[bytes](), dict[bytes, bytes]()
        for place, (line, name) in enumerate(zip(lines, map(self._which, lines), strict=True)):
            start = _start(line)[0]  # type: ignore[index]  # of what is empty, too
            starts.append(same.setdefault(start, start))
            if name is not None:
                groups[name.lastindex - 1].append(place)  # type: ignore[operator]  # one group of them matches
        *groups, blank = groups
        found = [Group(name, places, ()) for name, places in zip(self._names, groups, strict=True) if places]
        return Roster(starts, tuple(found), blank)

    def _by_roster(self, roster: Roster, lines: list[bytes]) -> tuple[Lines, Roster]:
        """Return what lines hold that begin as a roster says, and the roster as it is now."""
        blocks, groups, left = list[Block](), list[Group](), list(roster.blank)
        texts = [group.again(lines) for group in roster.groups]
        read = iter(_read([one for own in texts for one in own]) or ())
        for group, own in zip(roster.groups, texts, strict=True):
            found = list(islice(read, len(own)))
            groups.append(group if found else self._anew(group, lines, found, left))
            blocks += found
        if any(map(is_not, groups, roster.groups)):
            roster = Roster(roster.starts, tuple(groups), roster.blank)
        same = not roster.blank and all(group.parts for group in groups)
        return Lines(blocks, *self._others(lines, sorted(left)), roster if same else None), roster

    def _anew(self, group: Group, lines: list[bytes], blocks: list[Block], left: list[int]) -> Group:
        """Find the blocks of a group's lines and what is left; returns the group as it is now."""
        columns = Columns(group.measurement, self._wanted[group.measurement])
        left += _blocks(columns, lines, [*group.places], blocks)
        if sum(len(block.places) for block in blocks) == len(group.places):
            return Group(group.measurement, group.places, tuple(map(Part.of, blocks)))
        return Group(group.measurement, group.places) if group.parts else group

    def _others(self, lines: list[bytes], places: list[int]) -> tuple[dict[int, Sample], list[BadLine]]:
        """Read single lines."""
        if not places:
            return {}, []
        reader = Reader(b"".join([lines[place] for place in places]), self._wanted)
        reader.read_many()
        bad = [BadLine(places[one.number - 1] + 1, one.text, one.reason) for one in reader.bad]
        return {places[at]: sample for at, sample in reader.found.items()}, bad


def _blocks(columns: Columns, lines: list[bytes], places: list[int], blocks: list[Block]) -> list[int]:
    """Read lines of one measurement layout by layout; return the places of those that are of no block."""
    odd: list[int] = []
    tried: set[int] = set()
    for _ in range(MAX_LAYOUTS):
        if not places or (len(places) < _FEW and len(lines) < _MANY):
            break
        mine = [lines[place] for place in places]
        middle = len(mine) // 2
        if columns.match(mine[middle]) is None:
            try:
                columns.learn(mine[middle])
            except LineProtocolError:
                odd.append(places.pop(middle))
                continue
        block = _at_once(columns, places, b"".join(mine))
        if block is not None:
            blocks += [block] if block.names else []
            return odd
        found = columns.matches(mine)
        rest = [place for place, match in zip(places, found, strict=True) if match is None]
        places = [place for place, match in zip(places, found, strict=True) if match is not None]
        block = _of_matches(columns, places, [one.groups() for one in found if one is not None])
        if block is not None:
            blocks += [block] if block.names else []
        else:
            if _other_layout(columns, lines[places[len(places) // 2]], tried):
                places = sorted([*places, *rest])
                continue
            odd += places
        places = rest
    return odd + places


def _at_once(columns: Columns, places: Sequence[int] | NDArray[np.int64], payload: bytes) -> Block | None:
    """Read lines that all have the layout that such lines had last, None where one has not."""
    parts = columns.layout.parts(payload, len(places))
    return None if parts is None else _of_parts(columns, places, *parts)


def _of_matches(columns: Columns, places: list[int], matches: list[tuple[bytes, ...]]) -> Block | None:
    """Read what the layout found in each line, None where a number is none."""
    heads, times = [one[0] for one in matches], [one[-1] for one in matches]
    return _of_parts(columns, places, heads, [value for one in matches for value in one[1:-1]], times)


def _of_parts(
    columns: Columns,
    places: Sequence[int] | NDArray[np.int64],
    heads: Sequence[bytes],
    values: Sequence[bytes],
    times: Sequence[bytes],
) -> Block | None:
    joined, where = b"\n".join(heads), np.array(places, np.int64)
    found = _read([_Text(columns.measurement, columns.layout, where, joined, values, times)])
    return found[0] if found else None


def _other_layout(columns: Columns, line: bytes, tried: set[int]) -> bool:
    """Tell whether a line's own layout is another one than those tried: with integers where others are none."""
    tried.add(id(columns.layout))
    try:
        columns.learn(line)
    except LineProtocolError:
        return False
    return id(columns.layout) not in tried


def _read(texts: Sequence[_Text]) -> list[Block] | None:
    """Read the numbers of blocks at once; None where one is none, or a head."""
    values, times = list[bytes](), list[bytes]()
    for one in texts:
        values += one.values
        times += one.times
    text = b",".join(values)
    if not texts or b" " in text:
        return None
    try:
        floats = _to_floats(b"[%b]" % text)
        moments = to_times(times)
        for one in texts:
            heads_of(one.heads)
    except (LineProtocolError, ValueError, msgspec.DecodeError):
        return None
    # Several times as fast as an array made of the list.
    numbers, value = np.frombuffer(pack(f"{len(floats)}d", *floats), np.float64), 0
    all_times, line = np.full(len(times), moments, np.int64), 0
    blocks = []
    for measurement, layout, places, heads, own, _times in texts:
        columns, until = numbers[value : value + len(own)].reshape(len(places), -1).T, line + len(places)
        blocks.append(Block(measurement, layout, places, heads, columns, all_times[line:until]))
        value, line = value + len(own), until
    return blocks
