"""Which guests belong together, apart, or on certain hosts: the words of ProxLB in a guest's tags.

`plb_affinity_<group>`: those of a group stay together: none leaves the others, and one that is apart joins them first.
`plb_anti_affinity_<group>`: those of a group stay apart, as far as there are hosts enough. `plb_pin_<host>`: on one of
the hosts that are named so, and on no other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

TOGETHER: Final = "plb_affinity"
APART: Final = "plb_anti_affinity"
PIN: Final = "plb_pin_"
_OFF: Final = frozenset({"", "0", "false", "no", "off"})
# A tag's name holds no hyphens and dots, a host's may.
_OTHER: Final = re.compile(r"[^a-z0-9]")


class Wishes(msgspec.Struct, frozen=True):
    """What a guest's tags say: its groups, and the hosts to which it is pinned."""

    together: frozenset[str] = frozenset()
    apart: frozenset[str] = frozenset()
    pins: frozenset[str] = frozenset()


class Company(msgspec.Struct, frozen=True):
    """How many others of a guest's groups are on a host, or on their way there."""

    together: int = 0
    apart: int = 0


def wishes(tags: Mapping[str, str]) -> Wishes:
    """Return what a guest's tags wish for."""
    said = [name for name, value in tags.items() if name.startswith("plb_") and value.lower() not in _OFF]
    return Wishes(
        frozenset(name for name in said if name.startswith(TOGETHER)),
        frozenset(name for name in said if name.startswith(APART)),
        frozenset(_plain(name.removeprefix(PIN)) for name in said if name.startswith(PIN)),
    )


def company(own: Wishes, others: Iterable[tuple[str, Mapping[str, str]]]) -> dict[str, Company]:
    """Return who of a guest's groups is where; `others` are the hosts and tags of all other guests."""
    found: dict[str, Company] = {}
    groups = own.together | own.apart
    for host, tags in others if groups else ():
        if groups.isdisjoint(tags):
            continue
        theirs, known = wishes(tags), found.get(host, Company())
        together, apart = not own.together.isdisjoint(theirs.together), not own.apart.isdisjoint(theirs.apart)
        found[host] = Company(known.together + together, known.apart + apart)
    return found


def unwanted(own: Wishes, host: str, there: Company, here: Company) -> str:
    """Say why a guest may not go to a host where its groups have `there`, from one where they have `here`, or ""."""
    if own.pins and _plain(host) not in own.pins:
        return "the guest is pinned to others"
    if there.apart > here.apart:
        return f"{there.apart} of its anti-affinity group on it, {here.apart} where it is"
    if there.together < here.together:
        return f"it would leave {here.together} of its affinity group for {there.together}"
    return ""


def _plain(host: str) -> str:
    return _OTHER.sub("_", host.lower())
