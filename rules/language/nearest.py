"""The known name that one which is not known is most like."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

_SHOWN: Final = 80
# Comparing two names as difflib does takes long: only these few, which have the most pairs of letters in common.
_COMPARED: Final = 8


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the known name most like this one, "" where none is."""
    name = name[:_SHOWN]
    pairs = _pairs(name)
    ranked = sorted(dict.fromkeys(known), key=lambda one: -_alike(pairs, _pairs(one)))
    found = difflib.get_close_matches(name, ranked[:_COMPARED], 1)
    return found[0] if found else ""


def hint(name: str, known: Iterable[str]) -> str:
    """Return the hint at the nearest name that ends a message, or ""."""
    found = nearest(name, known)
    return f"; did you mean `{found}`?" if found else ""


def _alike(one: frozenset[str], other: frozenset[str]) -> float:
    return 2 * len(one & other) / (len(one) + len(other) or 1)


@lru_cache(maxsize=4_096)
def _pairs(name: str) -> frozenset[str]:
    return frozenset([*map("".join, itertools.pairwise(name)), *name])
