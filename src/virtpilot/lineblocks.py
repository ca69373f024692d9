"""Whole messages as columns: what rules read of many lines, without a step of Python for each of them.

Lines of one measurement and one layout become a block. What is of no block (few lines, odd ones) is read sample by
sample; both tell what the full parser tells, numbers as floats.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from io import BytesIO
from struct import pack
from typing import Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from virtpilot.errors import LineProtocolError
from virtpilot.linecolumns import MAX_LAYOUTS, Columns, Reader, Wanted, heads_of, is_plain, parse_wanted, to_times
from virtpilot.lineparsing import BadLine, Parsed
from virtpilot.model import Sample

# Fewer lines are read faster one by one, if there is not much beside them.
_FEW: Final = 8
_MANY: Final = 40
_UNSAFE: Final = frozenset(", \\\n")
_to_floats: Final = msgspec.json.Decoder(list[float]).decode


class Block(NamedTuple):
    """Lines with the same fields: `values` has a row a field and a column a line, all of them known."""

    measurement: str
    names: tuple[str, ...]
    places: Sequence[int]
    """Where its lines stand in the message, from 0."""
    heads: bytes
    """Measurement and tags as they stand in the lines, joined by line feeds: the same ones come with each tick."""
    values: NDArray[np.float64]
    times: NDArray[np.int64]

    def samples(self) -> list[Sample]:
        """Return its lines as samples."""
        rows = zip(heads_of(self.heads).tags, self.values.T.tolist(), self.times.tolist(), strict=True)
        return [Sample(self.measurement, one, dict(zip(self.names, row, strict=True)), at) for one, row, at in rows]


class Lines(NamedTuple):
    """What a message holds: blocks, the samples of all other lines by their place, and the lines that are none."""

    blocks: list[Block]
    others: dict[int, Sample]
    bad: list[BadLine]

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
            found.update(zip(block.places, block.samples(), strict=True))
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

    def read(self, payload: bytes) -> Lines:
        """Return the wanted fields of a message's lines."""
        if not is_plain(payload):
            return Lines.of(parse_wanted(payload, self._wanted))
        payload = payload if payload.endswith(b"\n") else payload + b"\n"
        block = self._single(payload)
        if block is not None:
            return Lines([block], {}, [])
        lines = BytesIO(payload).readlines()
        groups: list[list[int]] = [[] for _ in range(len(self._names) + 1)]
        for place, head in enumerate(map(self._which, lines)):
            if head is not None:
                groups[head.lastindex - 1].append(place)  # type: ignore[operator]  # one group of them matches
        *groups, left = groups
        blocks: list[Block] = []
        for name, places in zip(self._names, groups, strict=True):
            left += _blocks(Columns(name, self._wanted[name]), lines, places, blocks)
        if len(blocks) == 1 and len(blocks[0].places) == len(lines):
            self._latest = Columns(blocks[0].measurement, self._wanted[blocks[0].measurement])
            self._start = blocks[0].measurement.encode()
        return Lines(blocks, *self._others(lines, sorted(left)))

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
        mine = [lines[place] for place in places]
        if _too_few(columns, mine, len(lines)):
            break
        block = _at_once(columns, places, b"".join(mine))
        if block is not None:
            blocks += [block] if block.names else []
            return odd
        matches = columns.matches(mine)
        if not any(matches):
            try:
                columns.learn(mine[len(mine) // 2])
            except LineProtocolError:
                odd.append(places.pop(len(mine) // 2))
            continue
        rest = []
        if None in matches:
            rest = [place for place, match in zip(places, matches, strict=True) if match is None]
            places = [place for place, match in zip(places, matches, strict=True) if match is not None]
        try:
            heads, *values, times = zip(*map(re.Match.groups, filter(None, matches)), strict=True)
            block = _block(columns, places, heads, values, times)
        except (LineProtocolError, ValueError, msgspec.DecodeError):
            if _other_layout(columns, lines[places[len(places) // 2]], tried):
                places = sorted([*places, *rest])
                continue
            odd += places
        else:
            blocks += [block] if block.names else []
        places = rest
    return odd + places


def _too_few(columns: Columns, mine: list[bytes], beside: int) -> bool:
    """Tell whether lines are so few that they are read one by one: they are not of the layout that such had last."""
    return not mine or (len(mine) < _FEW and (beside < _MANY or columns.match(mine[0]) is None))


def _at_once(columns: Columns, places: Sequence[int], payload: bytes) -> Block | None:
    """Read lines that all have the layout that such lines had last, None where one has not."""
    parts = columns.parts(payload, len(places))
    if parts is None:
        return None
    heads, *values, times = parts
    try:
        return _block(columns, places, heads, values, times)
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
    columns: Columns,
    places: Sequence[int],
    heads: tuple[bytes, ...],
    values: list[tuple[bytes, ...]],
    times: tuple[bytes, ...],
) -> Block:
    """Return lines of one layout; raises what the decoder raises where a value is no number."""
    text = b",".join(map(b",".join, values))
    if b" " in text:
        raise LineProtocolError("a space in a number")
    joined = b"\n".join(heads)
    heads_of(joined)
    floats = _to_floats(b"[%b]" % text)
    # Several times as fast as an array made of the list.
    numbers = np.frombuffer(pack(f"{len(floats)}d", *floats), np.float64)
    return Block(
        columns.measurement,
        columns.layout.names,
        places,
        joined,
        numbers.reshape(len(values), len(heads)),
        np.full(len(heads), to_times(times), np.int64),
    )
