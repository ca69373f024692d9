"""What is done with the numbers of a history's ring: times kept by half, values that join others of their step."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

MOST: Final = np.iinfo(np.uint32).max
"""The greatest of the lower halves of times."""


def layers_of(steps: NDArray[np.int64], former: int) -> NDArray[np.int64]:
    """Return for each of several samples in order how many came before it in its step."""
    every = np.concatenate([[former], steps])
    begins = np.flatnonzero(np.concatenate([[True], every[1:] != every[:-1]]))
    which = np.searchsorted(begins, np.arange(len(every)), "right") - 1
    found: NDArray[np.int64] = (np.arange(len(every)) - begins[which])[1:]
    return found


def low_of(units: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Return the lower half of times; 0 stands for nothing."""
    low: NDArray[np.uint32] = np.maximum(units & MOST, 1).astype(np.uint32)
    return low


def holds(array: NDArray[Any], values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Tell which values are finite, also as an array keeps them."""
    found: NDArray[np.bool_] = np.isfinite(values.astype(array.dtype, copy=False))
    return found


def ages_of(newest: NDArray[np.int64], low: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Return how many units before their rows' newest samples points are."""
    ages: NDArray[np.int64] = ((newest & MOST).astype(np.uint32) - low).astype(np.int64)
    return ages


def wider(array: NDArray[Any], capacity: int) -> NDArray[Any]:
    """Return an array with more columns; the new ones are not touched, so that they cost nothing yet."""
    found: NDArray[Any] = np.zeros((len(array), capacity), array.dtype)
    taken = np.flatnonzero(array.any(axis=1))
    found[taken, : array.shape[1]] = array[taken]
    return found


def merged(merge: str, old: NDArray[np.float64], new: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the least, greatest or last of two values, the other one where one is missing."""
    match merge:
        case "min":
            return np.fmin(old, new)
        case "max":
            return np.fmax(old, new)
    return np.where(np.isfinite(new), new, old)
