"""How a figure is measured: ours and the yardstick in turn, for a busy machine is busy for both; then a median."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

MIN_RUNS: Final = 5


class Unmeasured(Exception):
    """What is needed for a figure is not there, in words."""


class Figure(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One benchmark's result: `value` is the median of `each`; what it is measured against, and what is asked of it."""

    value: float
    unit: str
    yardstick: str
    runs: int
    each: list[float]
    ok: bool
    at_least: float | None = None
    at_most: float | None = None
    measured: dict[str, float] = {}


def figure(
    each: Sequence[float],
    unit: str,
    yardstick: str,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    measured: dict[str, float] | None = None,
) -> Figure:
    """Return the figure of several runs' values."""
    value = statistics.median(each)
    ok = (at_least is None or value >= at_least) and (at_most is None or value <= at_most)
    return Figure(
        value=_short(value),
        unit=unit,
        yardstick=yardstick,
        runs=len(each),
        each=[_short(run) for run in each],
        ok=ok,
        at_least=at_least,
        at_most=at_most,
        measured={name: _short(number) for name, number in (measured or {}).items()},
    )


def interleaved(runs: int, **parts: Callable[[], float]) -> dict[str, list[float]]:
    """Return what each part gives in each run: A B A B, after one round that does not count."""
    found: dict[str, list[float]] = {name: [] for name in parts}
    for run in range(runs + 1):
        for name, part in parts.items():
            value = part()
            if run:
                found[name].append(value)
    return found


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Return run by run how many times `under` goes into `over`."""
    return [a / b for a, b in zip(over, under, strict=True)]


def say(text: str) -> None:
    """Tell a person how far it is; standard output is for the document."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def _short(value: float) -> float:
    return float(f"{value:.4g}")
