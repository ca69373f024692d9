"""Whom samples are about, remembered: a series' samples share their tags, so that most are looked up, not read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from virtpilot.model import Kind, Sample, Subject
from virtpilot.rules.language.devices import DECLARED
from virtpilot.rules.signals.devices import device_id

_KINDS: Final = {"host": Kind.HOST, "vm": Kind.VM}
_DEVICES: Final = {device.value: declared for device, declared in DECLARED.items()}
_OWN_TAGS: Final = frozenset({"cluster", "host", "vm", "name"})
_REMEMBERED: Final = 262_144
_MOST_CHARS: Final = 64_000_000


class Subjects:
    """Tells the subject of a sample; the same tags give the same subject.

    A device's is of its owner's kind, with an id and the tags of its own.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[dict[str, str], str, Subject | None]] = {}
        self._alike: dict[tuple[object, ...], tuple[dict[str, str], Subject | None]] = {}
        self._chars = 0

    def of(self, sample: Sample) -> Subject | None:
        """Return whom a sample is about, None where it is no host and no guest."""
        return self._of(sample, _subject)

    def named(self, measurement: str, tags: dict[str, str]) -> Subject | None:
        """Return whom a sample with such tags is about."""
        return self.of(Sample(measurement, tags, {}, 0))

    def device(self, sample: Sample) -> Subject | None:
        """Return the device that a sample is about, None where it does not say whose or which."""
        return self._of(sample, _device)

    def _of(self, sample: Sample, read: Callable[[Sample], Subject | None]) -> Subject | None:
        known = self._known.get(id(sample.tags))
        # Kept with the tags themselves, so that no others can have this place in memory.
        if known is not None and known[0] is sample.tags and known[1] == sample.measurement:
            return known[2]
        return self._other(sample, read)

    def _other(self, sample: Sample, read: Callable[[Sample], Subject | None]) -> Subject | None:
        """Return whom a sample is about whose tags are others, or the same in another dictionary: each time, maybe."""
        tags, text = sample.tags, (sample.measurement, *sample.tags.items())
        alike = self._alike.get(text)
        if alike is not None:
            former, subject = alike
            self._known.pop(id(former), None)
        else:
            subject = read(sample)
            self._chars += sum(map(len, tags.values())) + sum(map(len, tags))
            if len(self._alike) >= _REMEMBERED or self._chars > _MOST_CHARS:
                self._known.clear()
                self._alike.clear()
                self._chars = 0
        self._alike[text] = (tags, subject)
        self._known[id(tags)] = (tags, sample.measurement, subject)
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


def _device(sample: Sample) -> Subject | None:
    declared, tags = _DEVICES[sample.measurement], sample.tags
    host = tags.get("host", "")
    owner = host if declared.owner is Kind.HOST else tags.get("vm", "")
    name = tags.get(declared.tag, "") if declared.tag else ""
    if not host or not owner or (declared.tag and not name):
        return None
    others = {tag: value for tag, value in tags.items() if tag not in {"cluster", "host", "name"}}
    return Subject(declared.owner, device_id(owner, name), tags.get("name", owner), host, others)
