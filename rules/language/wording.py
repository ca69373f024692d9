"""Texts for people with values in them: `{{ name }} waits {{ cpu_steal_ratio }}`. Names only, no code."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from virtpilot.fields import FIELDS, Unit
from virtpilot.model import Subject
from virtpilot.rules.language.devices import WORDS, Device, named, names_in
from virtpilot.rules.language.expression import Aggregate, Condition, Window
from virtpilot.rules.language.nearest import hint
from virtpilot.rules.language.typed import Part

_MARK: Final = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_TAG: Final = re.compile(r"tags\.[A-Za-z_][A-Za-z0-9_.-]{0,63}")
_ABOUT_SUBJECT: Final = ("name", "id", "host", "kind")
_ABOUT_RULE: Final = ("rule", "severity", "value")
_BINARY: Final = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


class Wording(msgspec.Struct, frozen=True):
    """A text with marks: texts and names in turn, beginning with a text; `units` has those of measured names."""

    parts: tuple[str, ...]
    units: dict[str, str]
    first: str

    def text(self, subject: Subject, rule: str, severity: str, inputs: Mapping[str, float]) -> str:
        """Return the text about a subject; what is not known reads `unknown`."""
        known = {name: str(getattr(subject, name)) for name in _ABOUT_SUBJECT} | {"rule": rule, "severity": severity}
        return "".join(
            part if number % 2 == 0 else self._told(part, subject, known, inputs)
            for number, part in enumerate(self.parts)
        )

    def _told(self, name: str, subject: Subject, known: Mapping[str, str], inputs: Mapping[str, float]) -> str:
        if name in known:
            return known[name]
        if name.startswith("tags."):
            return subject.tags.get(name.removeprefix("tags."), "unknown")
        if name in WORDS:
            return ", ".join(names_in(inputs, name)) or "none"
        measured = self.first if name == "value" else name
        value = inputs.get(measured)
        return "unknown" if value is None else shown(value, self.units.get(measured, ""))


def wording(text: str, when: Condition) -> Wording:
    """Return a text's parts; raises ValueError (with the place in the text) for a name that cannot be told."""
    units = dict(_measured(when.part))
    words = sorted({one.word for one in when.reads.aggregates.values() if isinstance(one.members, Device)})
    pieces = _MARK.split(text)
    for number, piece in enumerate(pieces):
        if number % 2 == 0:
            if "{{" in piece or "}}" in piece:
                raise ValueError("`{{` and `}}` come in pairs")
            continue
        name = " ".join(piece.split())
        if name not in {*_ABOUT_SUBJECT, *_ABOUT_RULE, *units, *words} and not _TAG.fullmatch(name):
            names = [*_ABOUT_SUBJECT, *_ABOUT_RULE, *words, *sorted(units)]
            instead = hint(name, names) or f": there are {', '.join(names)} and tags.<name>"
            raise ValueError(f"`{{{{ {name[:60]} }}}}` cannot be told here{instead}")
        pieces[number] = name
    return Wording(tuple(pieces), {name: str(unit or "") for name, unit in units.items()}, next(iter(units), ""))


def _measured(part: Part) -> Iterator[tuple[str, Unit | None]]:
    """Yield what a condition reads, in order of its text, by the names that a signal's inputs have."""
    match part.source:
        case Window() | Aggregate():
            yield part.source.text, part.unit
        case (measurement, field):
            yield named(measurement, field, part.owner), FIELDS[measurement, field].unit
    for inner in part.parts:
        yield from _measured(inner)


def shown(value: float, unit: str) -> str:
    """Return a value for people: 12.5 %, 1.5 GiB, 250 ms."""
    match unit:
        case Unit.RATIO:
            return f"{100 * value:.3g} %"
        case Unit.BYTES | Unit.BYTES_PER_SECOND:
            scale, name = next(((size, name) for size, name in _BINARY if abs(value) >= size), (1, "B"))
            return f"{value / scale:.3g} {name}{'/s' if unit == Unit.BYTES_PER_SECOND else ''}"
        case Unit.SECONDS:
            return f"{1000 * value:.3g} ms" if abs(value) < 1 else f"{value:.3g} s"
        case Unit.PER_SECOND:
            return f"{value:.3g} /s"
    return f"{value:.6g}"
