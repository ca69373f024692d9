"""The second stage's state on disk: whole, and what has changed since."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from virtpilot.errors import StateError
from virtpilot.rules.decisions.arbiter import Lease
from virtpilot.rules.decisions.flights import Flight
from virtpilot.rules.decisions.ladder import Ladder
from virtpilot.rules.decisions.want import Exhausted, Release

VERSION: Final = 2


class Saved(msgspec.Struct, forbid_unknown_fields=True):
    """The whole state; what has a key of two parts is kept by `text_of` it."""

    version: int
    rules: dict[str, tuple[str, str]]
    ladders: dict[str, Ladder]
    flights: dict[str, Flight]
    leases: dict[str, Lease]
    releases: list[Release]
    exhausted: list[Exhausted]


def checked(snapshot: Mapping[str, Any]) -> Saved:
    """Return a snapshot's state; raises StateError where it is another version's or damaged."""
    try:
        saved = msgspec.convert(snapshot, Saved)
    except msgspec.ValidationError as error:
        raise StateError(f"decisions: {error}") from error
    if saved.version != VERSION:
        raise StateError(f"decisions: version {saved.version} is not known")
    return saved


def text_of(key: Iterable[str]) -> str:
    """Return a key on disk."""
    return " ".join(key)


def slot_of(text: str) -> tuple[str, str]:
    """Return the guest and knob of a text on disk; knobs' names have no blanks."""
    guest, _, knob = text.rpartition(" ")
    return guest, knob
