"""A past of two hours for a fleet that was measured for a moment: the windows filled, in virtual time.

What a controller holds half an hour after its start is more than what it holds after a minute: a bench that is over in
minutes would not see it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from bench.measure import say
from virtpilot.clock import SECOND, SystemClock
from virtpilot.pipeline import state
from virtpilot.pipeline.rulebook import LIBRARY, Rulebook, RuleOptions
from virtpilot.pipeline.window_files import WindowFiles
from virtpilot.rules.signals.table import whereabouts
from virtpilot.rules.signals.world import World

_PAST_NS: Final = 7200 * SECOND
_TICK_NS: Final = 10 * SECOND


def fill(folder: Path) -> None:
    """Fill the windows of an ended controller's state, on disk."""
    document = state.load(folder / "state.json")
    evaluator = Rulebook(RuleOptions(paths=[str(LIBRARY)])).evaluator
    evaluator.restore(document["signals"] if document else {}, [])
    world = evaluator.world
    fill_windows(world)
    WindowFiles(folder, SystemClock(), 0).close(world.windows)
    say(f"windows filled: {sum(one.stat().st_size for one in folder.glob('windows-*')) / 1e6:.0f} MB on disk")


def fill_windows(world: World) -> None:
    """Give all subjects a sample every 10 s for two hours up to their last, each like that one."""
    for kind, table in world.tables.items():
        rows = table.taken()
        if not len(rows):
            continue
        where = whereabouts(rows)
        columns = world.columns(kind, rows, where)
        for row in rows.tolist():
            world.windows.clear(kind, row)
        for ago_ns in range(_PAST_NS, -1, -_TICK_NS):
            world.windows.take(kind, columns, where, table.time[where] - ago_ns)
