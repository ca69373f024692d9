"""Whom samples are about, remembered: a series' samples share their tags, so that most are looked up, not read."""

from __future__ import annotations

from typing import Final

from virtpilot.model import Kind, Sample, Subject

_KINDS: Final = {"host": Kind.HOST, "vm": Kind.VM}
_OWN_TAGS: Final = frozenset({"cluster", "host", "vm", "name"})
_REMEMBERED: Final = 65_536


class Subjects:
    """Tells the subject of a sample; the same tags give the same subject."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[dict[str, str], str, Subject | None]] = {}

    def of(self, sample: Sample) -> Subject | None:
        """Return whom a sample is about, None where it is no host and no guest."""
        known = self._known.get(id(sample.tags))
        # Kept with the tags themselves, so that no others can have this place in memory.
        if known is not None and known[0] is sample.tags and known[1] == sample.measurement:
            return known[2]
        subject = _subject(sample)
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        self._known[id(sample.tags)] = (sample.tags, sample.measurement, subject)
        return subject


def _subject(sample: Sample) -> Subject | None:
    kind = _KINDS.get(sample.measurement)
    tags = sample.tags
    host = tags.get("host", "")
    if kind is None or not host:
        return None
    others = {name: value for name, value in tags.items() if name not in _OWN_TAGS}
    if kind is Kind.HOST:
        return Subject(kind, host, host, host, others)
    guest = tags.get("vm", "")
    return Subject(kind, guest, tags.get("name", guest), host, others) if guest else None
