"""Quantities as people write them: 30s, 2m, 2GiB, 80%."""

from __future__ import annotations

import re
from typing import Final

import msgspec

from virtpilot.clock import seconds
from virtpilot.fields import Unit

_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES: Final = {
    "B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12,
    "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30, "TiB": 2.0**40,
}  # fmt: skip
QUANTITY: Final = (
    r"[0-9]+(?:\.[0-9]+)?(?:%|(?:ms|s|m|h|d|B|kB|MB|GB|TB|KiB|MiB|GiB|TiB)(?:\/s)?\b|\/s\b)?(?![A-Za-z0-9_.%])"
)
_QUANTITY: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([^0-9\s].*)?")
_DURATION: Final = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?(?:ms|s|m|h|d))+")
_PART: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")
MAX_DURATION_S: Final = 366 * 86400.0
MAX_DURATION_CHARS: Final = 64
MAX_NUMBER: Final = 1e18


class Quantity(msgspec.Struct, frozen=True):
    """A number in base units; a plain number has no unit and goes with any."""

    value: float
    unit: Unit | None


def quantity(text: str) -> Quantity:
    """Read a quantity; raises ValueError."""
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a quantity")
    number, suffix = float(match[1]), match[2] or ""
    if number > MAX_NUMBER:
        raise ValueError(f"a number is {MAX_NUMBER:g} at most")
    rate = suffix.endswith("/s")
    suffix = suffix.removesuffix("/s")
    if suffix == "":
        return Quantity(number, Unit.PER_SECOND if rate else None)
    if suffix == "%" and not rate:
        return Quantity(number / 100, Unit.RATIO)
    if suffix in _SECONDS and not rate:
        return Quantity(number * _SECONDS[suffix], Unit.SECONDS)
    if suffix in _BYTES:
        return Quantity(number * _BYTES[suffix], Unit.BYTES_PER_SECOND if rate else Unit.BYTES)
    raise ValueError(f"{text!r} has a unit that is not known")


def duration_ns(text: str) -> int:
    """Read a duration such as 30s, 1m30s or 2h into ns; raises ValueError."""
    if len(text) > MAX_DURATION_CHARS or not _DURATION.fullmatch(text):
        raise ValueError(f"{text[:MAX_DURATION_CHARS]!r} is not a duration such as 30s, 2m or 1h30m")
    total = sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text))
    if total > MAX_DURATION_S:
        raise ValueError(f"{text!r} is longer than a year")
    return seconds(total)


def added(sign: str, left: Unit | None, right: Unit | None) -> Unit | None:
    """Return the unit of a sum or difference; raises ValueError where it has no meaning."""
    if left is right or right is None:
        return left
    if left is None:
        return right
    raise ValueError(f"{left} {sign} {right} has no meaning")


_PRODUCTS: Final[dict[frozenset[Unit | None], Unit]] = {
    frozenset({Unit.BYTES_PER_SECOND, Unit.SECONDS}): Unit.BYTES,
    frozenset({Unit.PER_SECOND, Unit.SECONDS}): Unit.COUNT,
}
_QUOTIENTS: Final[dict[tuple[Unit | None, Unit], Unit]] = {
    (None, Unit.SECONDS): Unit.PER_SECOND,
    (None, Unit.PER_SECOND): Unit.SECONDS,
    (Unit.COUNT, Unit.SECONDS): Unit.PER_SECOND,
    (Unit.COUNT, Unit.PER_SECOND): Unit.SECONDS,
    (Unit.BYTES, Unit.SECONDS): Unit.BYTES_PER_SECOND,
    (Unit.BYTES, Unit.BYTES_PER_SECOND): Unit.SECONDS,
}


def multiplied(sign: str, left: Unit | None, right: Unit | None) -> Unit | None:
    """Return the unit of a product or quotient; plain numbers, ratios and counts scale it. Raises ValueError."""
    if sign == "*":
        for scale in (None, Unit.RATIO, Unit.COUNT):
            if right is scale:
                return left if left is not None else right
            if left is scale:
                return right
        found = _PRODUCTS.get(frozenset({left, right}))
    else:
        if right is None:
            return left
        if left is right:
            return Unit.RATIO
        if right in {Unit.RATIO, Unit.COUNT}:
            return left
        found = _QUOTIENTS.get((left, right))
    if found is None:
        raise ValueError(f"{left or 'a number'} {sign} {right} has no meaning")
    return found
