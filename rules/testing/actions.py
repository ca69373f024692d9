"""What tests may call an action: part of `set cpu_shares 2048`, `migrate to host-2`, `suspend` and so on."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from virtpilot.action import AllocationPolicy, Resource, Verb
from virtpilot.knobs import DEVICE_KNOBS, KNOBS, find
from virtpilot.rules.language.nearest import nearest

_NUMBER: Final = re.compile(r"-?[0-9]+")


class _Word(NamedTuple):
    """One word of an action: one of these names, or any number, or (`others`) whatever else fits."""

    names: tuple[str, ...]
    number: bool = False
    others: bool = False

    def fits(self, text: str, *, first: bool, last: bool) -> bool:
        """Tell whether a text is such a word, or its end (the first word), its beginning (the last), its middle."""
        if self.number:
            return _NUMBER.fullmatch(text) is not None
        if self.names == _KNOB.names and find(text) is not None:
            return True
        # What stands before the point is a device.
        part = text.rpartition(".")[2] if self.names == _KNOB.names and last else text
        return (self.others and not (first and last)) or any(
            text == name
            or (first and last and part in name)
            or (first and name.endswith(text))
            or (last and name.startswith(part))
            for name in self.names
        )


_KNOB: Final = _Word((*KNOBS, *DEVICE_KNOBS))


def wrong_action(text: str, hosts: Sequence[str] | None) -> str:
    """Return what is wrong with an action's name, "" where it may be part of one; without `hosts` any may be a target.

    Only a single word may be a hook's name, and is wrong where it is nearly another.
    """
    words, shapes = text.split(), list(_shapes(hosts))
    if not words or any(_within(words, shape) for shape in shapes):
        return ""
    begun = [shape for shape in shapes if words[0] in shape[0].names]
    known = sorted({name for shape in begun or shapes for word in shape for name in word.names})
    others = [word for word in words if word not in known and not _NUMBER.fullmatch(word)]
    near = next((found for word in others if (found := nearest(word, known))), "")
    if len(words) == 1 and not near:
        return ""
    told = f"; did you mean `{near}`?" if near else ""
    return f"{text[:80]!r} is no action, nor part of one such as `set cpu_shares 2048` or `migrate to HOST`{told}"


def _within(words: Sequence[str], shape: Sequence[_Word]) -> bool:
    """Tell whether words are part of an action of this shape."""
    ends = len(words) - 1
    return any(
        all(shape[start + at].fits(word, first=at == 0, last=at == ends) for at, word in enumerate(words))
        for start in range(len(shape) - ends)
    )


def _shapes(hosts: Sequence[str] | None) -> Iterator[tuple[_Word, ...]]:
    yield _Word(("set",)), _KNOB, _Word((), number=True)
    yield _Word(("release",)), _KNOB
    yield _Word(("migrate",)), _Word(("to",)), _Word(tuple(hosts or ()), others=hosts is None)
    yield _Word(("abort",)), _Word(("migration",))
    yield (_Word(tuple(Verb)),)
    yield _Word(("run",)), _Word((), others=True)
    yield _Word(("divide",)), _Word(tuple(Resource)), _Word(("by",)), _Word(tuple(AllocationPolicy))
