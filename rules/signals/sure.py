"""What is told of a comparison where a bound of its window decides it, so that only what is left open is worked out.

A bound that leaves a comparison open says that it may hold; here it must also be sure that the window has a value.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from virtpilot.rules.language.expression import Condition
from virtpilot.rules.language.typed import Masks, Window
from virtpilot.rules.signals.bounds import sure
from virtpilot.rules.signals.columns import RowColumns, masks
from virtpilot.rules.signals.scout import against_number
from virtpilot.rules.signals.world import World

# What a value that is at least the bound makes true, and what false; the same of one that is at most the bound.
_ABOVE: Final = {
    "<": (None, np.greater_equal),
    "<=": (None, np.greater),
    ">": (np.greater, None),
    ">=": (np.greater_equal, None),
}
_BELOW: Final = {">": (None, np.less_equal), ">=": (None, np.less), "<": (np.less, None), "<=": (np.less_equal, None)}


def told(world: World, condition: Condition, columns: RowColumns, count: int) -> Masks:
    """Do as `masks` does; points are looked at only of rows of which no bound decides."""
    source, sign, number = against_number(condition.part) or (None, "", 0.0)
    if not isinstance(source, Window) or source.on is not columns.kind or sign not in _ABOVE:
        return masks(condition, columns, count)
    true, false = np.zeros((2, count), np.bool_)
    for upper, signs in ((False, _ABOVE), (True, _BELOW)):
        track, first = world.windows.track(source)
        found = sure(track.bounds.get((first, upper)), columns.where, world.tables[source.on].time[columns.where])
        makes_true, makes_false = signs[sign]
        if found is not None and makes_true is not None:
            true |= makes_true(found, number)
        if found is not None and makes_false is not None:
            false |= makes_false(found, number)
    left = np.flatnonzero(~true & ~false)
    if len(left) == count:
        return masks(condition, columns, count)
    if len(left):
        true[left], false[left] = masks(condition, columns.only(left), len(left))
    return true, false
