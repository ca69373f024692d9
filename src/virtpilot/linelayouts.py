"""Layouts of lines: the same fields in the same order, and what jumps in them from one wanted field to the next."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from keyword import iskeyword
from typing import Annotated, Any, Final, NamedTuple

import msgspec

MAX_HEAD_BYTES: Final = 512
# How long values are that are passed over, at most: together, and one alone. Others go to the full parser.
_SKIPPED_CHARS: Final = 19
_SKIPPED_MORE: Final = 6
# A time of this century. Whether all of it are digits is seen for all times at once, which is much faster.
_TIME: Final = rb"([1-4].{18})\n"
_OF_NUMBERS: Final = b"0123456789.+-eEi"
# So many names are looked for one by one.
_FEW_NAMES: Final = 3
_INT64: Final = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class Parts(NamedTuple):
    """Lines' heads, the values of their wanted fields, line after line, and their times."""

    heads: list[bytes]
    values: list[bytes]
    times: list[bytes]


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

    def parts(self, payload: bytes, lines: int) -> Parts | None:
        """Return what lines hold that all have the layout, None where one has not.

        What is between two matches is nothing, and there are as many of them as `lines`, or line feeds: so each is one.
        """
        parts = self.split(payload)
        each = len(self.names) + 3
        if len(parts) != each * lines + 1 or any(parts[::each]):
            return None
        heads, times = parts[1::each], parts[each - 1 :: each]
        # What is left are the values.
        del parts[::each]
        del parts[:: each - 1]
        del parts[each - 3 :: each - 2]
        return Parts(heads, parts, times) if self._is_all(payload, heads) else None

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
NO_LAYOUT: Final = Layout(_NOTHING.match, _NOTHING.split, msgspec.json.Decoder(list[Any]).decode, dict, (), ())


def shape_of(piece: bytes, wanted: frozenset[str]) -> bytes:
    """Return what makes a field part of a layout: its name, and for a wanted one what kind of number it has."""
    name, equals, value = piece.partition(b"=")
    if name.decode(errors="replace") not in wanted:
        return name
    return name + (b"=i" if equals and value.endswith(b"i") else b"=")


@lru_cache(maxsize=256)
def layout_of(measurement: str, shape: tuple[bytes, ...], wanted: frozenset[str]) -> Layout:
    """Return the layout of a shape; none where a field comes twice."""
    names = [piece.partition(b"=")[0] for piece in shape]
    fields = [
        (name, None if piece == name else _INT64 if piece.endswith(b"=i") else float)
        for piece, name in zip(shape, names, strict=True)
    ]
    kept = [(name.decode(), kind) for name, kind in fields if kind is not None]
    if len(set(names)) < len(names):
        return NO_LAYOUT
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
    pattern = rb"(%b(?>,[^ ]{1,%d}+)?) " % (re.escape(measurement.encode(errors="surrogatepass")), MAX_HEAD_BYTES)
    skipped: list[bytes] = []
    for number, (name, kind) in enumerate(fields, 1):
        if kind is None:
            skipped.append(name)
            continue
        # Passing over one character's others is faster than over two's; a space in a value is noticed afterwards.
        value, end = (b"([^,]++)", b",") if number < len(fields) else (b"([^, ]++)", b" ")
        if kind is _INT64:
            # Longer ones may not fit 64 bits: the full parser knows.
            value = rb"([-0-9][0-9]{0,17}+)i"
        # Atomic: a line that holds a name many times must not be tried in many ways.
        pattern += (b"(?>%b%b=)%b%b" if skipped else b"%b%b=%b%b") % (_jump(skipped), re.escape(name), value, end)
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
