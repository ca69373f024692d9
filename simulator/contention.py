"""Who gets how much of what is scarce: weighted max-min fairness (water-filling), for all hosts at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from virtpilot.simulator.demand import Floats

Indices = NDArray[np.intp]


def share(demand: Floats, weight: Floats, owner: Indices, capacity: Floats) -> Floats:
    """Return what each of n claimants gets of its owner's capacity.

    `demand` and `weight` (> 0) have one entry a claimant, `owner` says which entry of `capacity` it draws on. Each
    gets min(demand, weight · level) with one level an owner, as high as the capacity allows: the kernel's fair
    scheduler, idealised.
    """
    wanted = np.bincount(owner, weights=demand, minlength=capacity.size)
    short = wanted > capacity
    contended = np.flatnonzero(short[owner])
    given = demand.copy()
    if contended.size:
        given[contended] = _fill(demand[contended], weight[contended], owner[contended], capacity)
    return given


def _fill(demand: Floats, weight: Floats, owner: Indices, capacity: Floats) -> Floats:
    """Return the shares of owners that are all short: sorted by demand per weight, the first few are served in full."""
    order = np.lexsort((demand / weight, owner))
    demands, weights, owners = demand[order], weight[order], owner[order]
    first = np.flatnonzero(np.r_[True, owners[1:] != owners[:-1]])
    group = np.cumsum(np.r_[True, owners[1:] != owners[:-1]]) - 1
    limit = capacity[owners[first]]
    # within each owner: what those before take, and the weight from here on
    served = _running(demands, first, group) - demands
    total_weight = np.add.reduceat(weights, first)
    heavier = total_weight[group] - (_running(weights, first, group) - weights)
    full = served + demands / weights * heavier <= limit[group]
    count = np.add.reduceat(full.astype(np.intp), first)
    turn = np.minimum(first + count, np.r_[first[1:], owners.size] - 1)
    level = np.maximum(limit - served[turn], 0.0) / heavier[turn]
    given = np.empty_like(demand)
    given[order] = np.minimum(demands, weights * level[group])
    return given


def _running(values: Floats, first: Indices, group: Indices) -> Floats:
    """Return the running sum of each group, itself included."""
    total = np.cumsum(values)
    before = np.r_[0.0, total][first]
    return np.asarray(total - before[group])
