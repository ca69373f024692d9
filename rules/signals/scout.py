"""Where a rule's condition can hold at all, told for little, so that only those rows are looked at closely.

Comparisons are made of fields; what is dear is looked at where they leave it open: of a window only how far it reaches
at most, of devices only whether some device is one of those that are meant. What is told is never too little.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, cast

import numpy as np
from numpy.typing import NDArray

from virtpilot.rules.language.devices import Device
from virtpilot.rules.language.records import NoData, Rule
from virtpilot.rules.language.typed import COMPARE, Aggregate, Part, Window
from virtpilot.rules.signals.columns import RowColumns

Mask = NDArray[np.bool_]
Scout = Callable[[RowColumns], Mask]
"""Returns a mask of rows, or of one row that stands for all."""

_TURNED: Final = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "==": "==", "!=": "!="}
_UPWARDS: Final = frozenset({">", ">="})
_DOWNWARDS: Final = frozenset({"<", "<="})


def scout(rule: Rule) -> Scout:
    """Return what tells where a rule may fire, for want of data too where it says so."""
    if rule.no_data is not NoData.FIRE:
        return scout_of(rule.when.part)
    truth = rule.when.part.truth
    return lambda columns: ~truth(columns)[1]


def asked(rule: Rule) -> Iterator[tuple[Window, bool]]:
    """Yield the windows of which a bound is asked, from above (True) or below."""
    return iter(()) if rule.no_data is NoData.FIRE else asked_of(rule.when.part)


def asked_of(part: Part) -> Iterator[tuple[Window, bool]]:
    """Yield the windows of which `scout_of` asks a bound."""
    parts = [part]
    while parts:
        part = parts.pop()
        if part.sign in {"and", "or"}:
            parts += part.parts
        found = against_number(part)
        if found is not None and (chosen := meant(*found)) is not None:
            parts.append(chosen)
        if found is not None and isinstance(found[0], Window) and found[1] in _UPWARDS | _DOWNWARDS:
            yield found[0], found[1] in _UPWARDS


def scout_of(part: Part) -> Scout:
    """Return what tells where a truth may hold."""
    if part.sign == "and":
        return _all([scout_of(one) for one in sorted(part.parts, key=_cost)])
    if part.sign == "or":
        return _some([scout_of(one) for one in part.parts])
    found = against_number(part)
    if found is not None:
        return _compared(part, *found)
    if part.sign in COMPARE and part.parts[0].kind == "number":
        compare, (left, right) = COMPARE[part.sign], part.parts
        return lambda columns: np.atleast_1d(compare(left.value(columns, np.nan), right.value(columns, np.nan)))
    return lambda columns: part.truth(columns)[0]


def against_number(part: Part) -> tuple[tuple[str, str] | Window | Aggregate, str, float] | None:
    """Return what is compared with a number, and how; None where it is something else."""
    if part.sign not in COMPARE or part.parts[0].kind != "number":
        return None
    left, right = part.parts
    if left.source is not None and right.literal is not None:
        return left.source, part.sign, right.literal.value
    if right.source is not None and left.literal is not None:
        return right.source, _TURNED[part.sign], left.literal.value
    return None


def _compared(part: Part, source: tuple[str, str] | Window | Aggregate, sign: str, number: float) -> Scout:
    compare = COMPARE[sign]
    if isinstance(source, Window):
        if sign in _UPWARDS | _DOWNWARDS:
            upper = sign in _UPWARDS
            return lambda columns: compare(columns.bound(source, upper=upper), number)
        return lambda columns: compare(columns.window(source), number)
    if isinstance(source, Aggregate):
        chosen = meant(source, sign, number)
        if chosen is not None:
            return _of_devices(cast(Device, source.members), scout_of(chosen))
        return lambda columns: part.truth(columns)[0]
    measurement, field = source
    return lambda columns: compare(columns.field(measurement, field), number)


def meant(source: object, sign: str, number: float) -> Part | None:
    """Return what some device must be that is counted, where it is asked whether there is any."""
    if isinstance(source, Aggregate) and isinstance(source.members, Device) and sign == ">" and number == 0:
        return source.chosen
    return None


def _of_devices(device: Device, chosen: Scout) -> Scout:
    """Return where a subject has a device that may be one of those that are meant."""

    def found(columns: RowColumns) -> Mask:
        members = columns.devices(device)
        if not len(members.groups):
            return _NOWHERE
        meant = chosen(cast(RowColumns, members.columns))
        if not np.count_nonzero(meant):
            return _NOWHERE
        mask = np.zeros(members.count, np.bool_)
        mask[members.groups[np.broadcast_to(meant, len(members.groups))]] = True
        return mask

    return found


def _all(scouts: list[Scout]) -> Scout:
    first, *others = scouts

    def found(columns: RowColumns) -> Mask:
        mask = first(columns)
        for one in others:
            if not np.count_nonzero(mask):
                break
            mask = mask & one(columns)
        return mask

    return found


def _some(scouts: list[Scout]) -> Scout:
    first, *others = scouts

    def found(columns: RowColumns) -> Mask:
        mask = first(columns)
        for one in others:
            mask = mask | one(columns)
        return mask

    return found


def _cost(part: Part) -> int:
    """Return how dear a part is: of fields alone, with a bound or devices, with what is worked out for each row."""
    found = against_number(part)
    if found is not None:
        return 0 if isinstance(found[0], tuple) else 1
    if part.sign in COMPARE and part.kind == "truth" and part.parts[0].kind == "number":
        return max(map(_reading, part.parts))
    return max(map(_cost, part.parts), default=2) if part.sign in {"and", "or"} else 2


def _reading(part: Part) -> int:
    if isinstance(part.source, Window | Aggregate):
        return 2
    return max(map(_reading, part.parts), default=0)


_NOWHERE: Final[Mask] = np.zeros(1, np.bool_)
