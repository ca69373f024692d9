"""The second stage's state on disk: whole, and what has changed since."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import msgspec

from virtpilot.errors import StateError
from virtpilot.rules.decisions.arbiter import Lease
from virtpilot.rules.decisions.flights import Flight, Flights
from virtpilot.rules.decisions.holdings import Holdings
from virtpilot.rules.decisions.ladder import Ladder
from virtpilot.rules.decisions.shelf import Shelf
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


def document(
    shelf: Shelf,
    flights: Flights,
    holdings: Holdings,
    signatures: Mapping[str, tuple[str, str]],
    exhausted: list[Exhausted],
) -> dict[str, object]:
    """Return the whole state, as msgspec writes it."""
    return {
        "version": VERSION,
        "ladders": {text_of(key): ladder for key, ladder in shelf.items()},
        "flights": {text_of((flight.command, str(flight.release))): flight for flight in flights},
        "leases": {text_of(slot): lease for slot, lease in holdings.leases.items()},
        "rules": signatures,
        "releases": holdings.releases,
        "exhausted": exhausted,
    }


def changed(shelf: Shelf, flights: Flights, holdings: Holdings) -> Iterator[tuple[tuple[str, ...], object]]:
    """Yield what has changed since the last call, as (path in the state, new value or None)."""
    for name, changes in (
        ("ladders", shelf.changes()),
        ("flights", flights.changes()),
        ("leases", holdings.leases.changes().items()),
    ):
        for key, value in changes:
            yield (name, text_of(key)), value


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
