"""Whole messages as columns: what rules read of many lines, without a step of Python for each of them.

Lines of one measurement and one layout become a block. What is of no block (few lines, odd ones) is read sample by
sample; both tell what the full parser tells, numbers as floats.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from io import BytesIO
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
    Layout,
    Reader,
    Wanted,
    heads_of,
    is_plain,
    parse_wanted,
    to_times,
)
from virtpilot.lineparsing import BadLine, Parsed
from virtpilot.model import Sample
from virtpilot.remembered import Remembered

# Fewer lines are read faster one by one, if there is not much beside them.
_FEW: Final = 8
_MANY: Final = 40
_UNSAFE: Final = frozenset(", \\\n")
# What Python adds to a text, and the place of it in a list.
_OF_ONE: Final = 48
_until: Final = re.compile(rb"[^, ]*[, ]?").match
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


class Part(NamedTuple):
    """Lines of a roster that were of one layout: a block, but for its numbers."""

    layout: Layout
    pick: Callable[[list[bytes]], Iterable[bytes]]
    places: NDArray[np.int64]
    heads: bytes

    @classmethod
    def of(cls, block: Block) -> Part:
        """Return what will find the lines of a block again."""
        first, *more = block.places.tolist()
        pick = itemgetter(first, *more) if more else itemgetter(slice(first, first + 1))
        return cls(block.layout, pick, block.places, block.heads)


class Group(NamedTuple):
    """A measurement's lines in a roster, and the parts that they were last; none where some line was of no block."""

    measurement: str
    places: list[int]
    parts: tuple[Part, ...] = ()

    def again(self, lines: list[bytes]) -> list[Block]:
        """Return the blocks that its lines are once more, none where some are not what they were last."""
        found = []
        for layout, pick, places, heads in self.parts:
            block = _at_once(self.measurement, layout, places, b"".join(pick(lines)), heads)
            if block is None:
                return []
            found.append(block)
        return found


class Roster:
    """How a message's lines begin: a host's come again with each tick, in the same order.

    As long as they do nobody looks for the lines of a measurement, nor for whom they are about.
    """

    __slots__ = ("__weakref__", "blank", "groups", "heads")

    def __init__(self, heads: list[bytes], groups: tuple[Group, ...], blank: list[int]) -> None:
        self.heads = heads
        """Measurement and tags of each line, of unwanted ones the measurement, with what follows behind."""
        self.groups = groups
        self.blank = blank
        """Where lines stand that begin with a space."""

    def is_of(self, lines: list[bytes]) -> bool:
        """Tell whether these lines begin so."""
        return len(lines) == len(self.heads) and all(map(bytes.startswith, lines, self.heads))

    def weight(self) -> int:
        """Return how long the heads are, with what Python adds."""
        return sum(map(len, self.heads)) + _OF_ONE * len(self.heads)


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
        found, roster = self._by_roster(known if known and known.is_of(lines) else self._roster(lines), lines)
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
        places = np.arange(len(BytesIO(payload).readlines()))
        return _at_once(columns.measurement, columns.layout, places, payload)

    def _roster(self, lines: list[bytes]) -> Roster:
        """Return how lines begin; nobody knows yet of which layouts they are."""
        groups: list[list[int]] = [[] for _ in range(len(self._names) + 1)]
        heads, starts = list[bytes](), dict[bytes, bytes]()
        for place, (line, name) in enumerate(zip(lines, map(self._which, lines), strict=True)):
            if name is None:
                # Many are of one measurement, and share it.
                start = line[: _until(line).end()]  # type: ignore[union-attr]  # of what is empty, too
                heads.append(starts.setdefault(start, start))
                continue
            groups[name.lastindex - 1].append(place)  # type: ignore[operator]  # one group of them matches
            heads.append(line[: line.find(b" ") + 1] or line)
        *groups, blank = groups
        found = [Group(name, places, ()) for name, places in zip(self._names, groups, strict=True) if places]
        return Roster(heads, tuple(found), blank)

    def _by_roster(self, roster: Roster, lines: list[bytes]) -> tuple[Lines, Roster]:
        """Return what lines hold that begin as a roster says, and the roster as it is now."""
        blocks, groups, left = list[Block](), list[Group](), list(roster.blank)
        for group in roster.groups:
            found = group.again(lines)
            groups.append(group if found else self._anew(group, lines, found, left))
            blocks += found
        if any(map(is_not, groups, roster.groups)):
            roster = Roster(roster.heads, tuple(groups), roster.blank)
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
        block = _at_once(columns.measurement, columns.layout, np.array(places), b"".join(mine))
        if block is not None:
            blocks += [block] if block.names else []
            return odd
        found = columns.matches(mine)
        rest = [place for place, match in zip(places, found, strict=True) if match is None]
        places = [place for place, match in zip(places, found, strict=True) if match is not None]
        try:
            heads, *values, times = zip(*map(re.Match.groups, filter(None, found)), strict=True)
            joined = b"\n".join(heads)
            block = _block(columns.measurement, columns.layout, np.array(places), joined, values, times)
        except (LineProtocolError, ValueError, msgspec.DecodeError):
            if _other_layout(columns, lines[places[len(places) // 2]], tried):
                places = sorted([*places, *rest])
                continue
            odd += places
        else:
            blocks += [block] if block.names else []
        places = rest
    return odd + places


def _at_once(
    measurement: str, layout: Layout, places: NDArray[np.int64], payload: bytes, heads: bytes | None = None
) -> Block | None:
    """Read lines that are said to have one layout, None where one has not; `heads` are theirs, if they are known."""
    parts = layout.parts(payload, len(places))
    if parts is None:
        return None
    own, *values, times = parts
    try:
        return _block(measurement, layout, places, b"\n".join(own) if heads is None else heads, values, times)
    except (LineProtocolError, ValueError, msgspec.DecodeError):
        return None


def _other_layout(columns: Columns, line: bytes, tried: set[int]) -> bool:
    """Tell whether a line's own layout is another one than those tried: with integers where others are none."""
    tried.add(id(columns.layout))
    try:
        columns.learn(line)
    except LineProtocolError:
        return False
    return id(columns.layout) not in tried


def _block(
    measurement: str,
    layout: Layout,
    places: NDArray[np.int64],
    heads: bytes,
    values: Sequence[Sequence[bytes]],
    times: Sequence[bytes],
) -> Block:
    """Return lines of one layout; raises what the decoder raises where a value is no number."""
    text = b",".join(map(b",".join, values))
    if b" " in text:
        raise LineProtocolError("a space in a number")
    heads_of(heads)
    floats = _to_floats(b"[%b]" % text)
    # Several times as fast as an array made of the list.
    numbers = np.frombuffer(pack(f"{len(floats)}d", *floats), np.float64).reshape(len(values), len(places))
    return Block(measurement, layout, places, heads, numbers, np.full(len(places), to_times(times), np.int64))
