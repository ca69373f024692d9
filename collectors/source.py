"""What a source of a host's measurements is given and what it gives: sources are callables, listed in sources.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from virtpilot.collectors.rates import Rates
from virtpilot.collectors.tree import Tree

Fields = dict[str, int | float]


class Look(NamedTuple):
    """One look at a host: where to read, the counters of the looks before, and the moment."""

    tree: Tree
    rates: Rates
    cpus: frozenset[int]
    now_ns: int
    page_bytes: int = 4096


class Device(NamedTuple):
    """One of a host's devices: the measurement and the tag that tells it from the others of its kind."""

    measurement: str
    tag: str
    name: str
    fields: Fields


class Found(NamedTuple):
    """What one source found: fields of the host itself, and its devices."""

    fields: Fields
    devices: Sequence[Device] = ()


Collect = Callable[[Look], Found]


class Source(NamedTuple):
    """One source; `make` gives what collects, once for each collector.

    One with `every_s` hardly changes: it is read that seldom, its host fields are told again in between, and it gives
    way when a tick is late.
    """

    make: Callable[[], Collect]
    every_s: float = 0.0
