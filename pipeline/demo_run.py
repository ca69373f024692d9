"""Plays the demo on a terminal, as plain lines, or silently."""

from __future__ import annotations

import sys
import tempfile
import threading
from pathlib import Path
from typing import Any, Final

from rich.console import Console, RenderableType
from rich.live import Live

from virtpilot.clock import SystemClock
from virtpilot.errors import InputError, Problem
from virtpilot.pipeline.demo import Demo
from virtpilot.pipeline.process import LogOptions, set_up_logs, stopping
from virtpilot.pipeline.screen import line, screen
from virtpilot.pipeline.trail import Trail

# Where nobody watches, a demo without an end would only be in the way.
UNWATCHED_S: Final = 60.0
LINES_MIN: Final = 4


def run(
    seconds: float | None,
    *,
    headless: bool,
    quiet: bool,
    speed: float,
    scenario: Path | None,
    folder: Path | None,
) -> dict[str, Any]:
    """Play until `seconds` are over or Ctrl-C, and return what happened; raises InputError for a used `folder`."""
    if folder is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        # Time begins anew with each demo: what another one has left would be its future.
        raise InputError([Problem(str(folder), 0, 0, "not an empty folder: each demo needs one of its own")])
    set_up_logs(LogOptions(level="warning"))
    console = Console()
    watched = console.is_terminal and not headless and not quiet
    if seconds is None and not watched:
        seconds = UNWATCHED_S
    with tempfile.TemporaryDirectory(prefix="virtpilot-demo.") as temporary, stopping() as stop:
        demo = Demo(folder or Path(temporary), scenario)
        try:
            if watched:
                _play_live(demo, console, seconds, stop, speed)
            else:
                _play_lines(demo, seconds, stop, speed, quiet=quiet)
        finally:
            demo.close()
        if not quiet:
            for trail in demo.trails():
                sys.stdout.write(summary(trail))
        return demo.document()


def _play_live(demo: Demo, console: Console, seconds: float | None, stop: threading.Event, speed: float) -> None:
    names = names_of(demo)
    with Live(console=console, screen=True, auto_refresh=False) as live:
        for _played in demo.play(seconds, stop, speed, SystemClock()):
            live.update(picture(demo, console, names), refresh=True)


def picture(demo: Demo, console: Console, names: dict[str, str]) -> RenderableType:
    """Return the screen as it is now, with as many of the last records as the terminal has room for."""
    frames = 5  # two panels' borders, one heading
    lines = max(LINES_MIN, console.height - frames - len(demo.fleet.hosts) - len(names))
    return screen(demo.fleet.view(), demo.controller.entries(), names, lines=lines)


def _play_lines(demo: Demo, seconds: float | None, stop: threading.Event, speed: float, *, quiet: bool) -> None:
    names = names_of(demo)
    shown = 0
    for _played in demo.play(seconds, stop, speed, SystemClock()):
        entries = list(demo.controller.entries())
        if not quiet:
            for entry in entries[shown:]:
                sys.stdout.write(line(entry, names) + "\n")
            sys.stdout.flush()
        shown = len(entries)


def names_of(demo: Demo) -> dict[str, str]:
    """Return the names of the fleet's guests by UUID."""
    return {guest.uuid: guest.name for guest in demo.fleet.view().guests}


def summary(trail: Trail) -> str:
    """Return a trail as lines, each record under the one that caused it."""
    verdict = "helped" if trail.helped else "not helped yet"
    lines = [f"\n{trail.name}: {trail.rule}, {verdict}{', cleared' if trail.cleared else ''}"]
    depth: dict[str | None, int] = {None: 0}
    for step in trail.steps:
        depth[step.id] = depth.get(step.cause, 0) + 1
        result = f" [{step.result}]" if step.result else ""
        reason = f": {step.reason}" if step.reason else ""
        lines.append(f"{'  ' * depth[step.id]}{step.kind} {step.id}{result} {step.what}{reason}")
    return "\n".join(lines) + "\n"
