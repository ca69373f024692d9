"""The evaluator's state as JSON text, piece by piece: with 10,000 guests all of it in one go would take too long."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import msgspec

from virtpilot.rules.language.devices import Of
from virtpilot.rules.signals.bank import Bank
from virtpilot.rules.signals.saved import VERSION
from virtpilot.rules.signals.table import Table

_KNOBS_AT_ONCE: Final = 1000


def fragments(
    tables: Mapping[Of, Table], knobs: Iterable[tuple[str, str, float, int]], bank: Bank, cluster: str
) -> Iterator[bytes]:
    """Yield the text of what `Saved` holds, but for the windows."""
    rules, name = msgspec.json.encode(bank.dump()), msgspec.json.encode(cluster)
    yield b'{"version":%d,"rules":%b,"cluster":%b,"tables":{' % (VERSION, rules, name)
    for place, (kind, table) in enumerate(tables.items()):
        yield b'%b"%b":' % (b"," if place else b"", kind.value.encode())
        yield from _listed(table.texts())
    yield b'},"knobs":'
    rows = list(knobs)
    portions = (rows[first : first + _KNOBS_AT_ONCE] for first in range(0, len(rows), _KNOBS_AT_ONCE))
    yield from _listed(msgspec.json.encode(portion)[1:-1] for portion in portions)
    yield b"}"


def _listed(portions: Iterable[bytes]) -> Iterator[bytes]:
    """Yield one list of all that portions of it hold."""
    opening = b"["
    for portion in portions:
        yield opening + portion
        opening = b","
    yield b"[]" if opening == b"[" else b"]"
