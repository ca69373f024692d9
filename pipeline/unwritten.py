"""Samples that are heard without having been written: the same as if they had gone over the bus as line protocol."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from math import isfinite

from virtpilot.lineblocks import Lines
from virtpilot.model import Sample
from virtpilot.pipeline.lines import is_subject


class Unwritten:
    """Leaves out what rules do not read, and what line protocol cannot hold; samples of one series share their tags."""

    def __init__(self, wanted: Mapping[str, Set[str]]) -> None:
        self._wanted = wanted
        self._tags: dict[tuple[tuple[str, str], ...], dict[str, str]] = {}

    def lines(self, samples: Iterable[Sample]) -> Lines:
        """Return what is heard of one message's samples, hosts and guests last."""
        found = {}
        for place, sample in enumerate(sorted(samples, key=is_subject)):
            wanted = self._wanted.get(sample.measurement)
            if wanted is None:
                continue
            told = sample.fields.items()
            fields = {name: float(value) for name, value in told if name in wanted and isfinite(value)}
            if fields:
                found[place] = Sample(sample.measurement, self._tags_of(sample), fields, sample.time_ns)
        return Lines([], found, [])

    def _tags_of(self, sample: Sample) -> dict[str, str]:
        key = tuple(sample.tags.items())
        known = self._tags.get(key)
        if known is None:
            known = self._tags[key] = {name: text for name, text in sorted(key) if _holds(name) and _holds(text)}
        return known


def _holds(text: str) -> bool:
    """Tell whether line protocol holds a tag's name or value."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return bool(text) and text[-1] != "\\" and "\n" not in text
