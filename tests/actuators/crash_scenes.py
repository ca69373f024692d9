"""What an agent does when it is killed: scenes that together pass every named crash point, and the kills themselves.

Run as a program (`python -m tests.actuators.crash_scenes FOLDER SCENE POINT`) it plays a scene on a host whose knobs
live in a file, and ends itself with SIGKILL at the point.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.actuators.one_host import GUEST, SHARES, OneHost, at, command, executor, move, power, release, set_to
from virtpilot.action import Run, Verb
from virtpilot.actuators.executor import Executor
from virtpilot.actuators.ledger import Lease, LeaseState
from virtpilot.actuators.lifecycle import Point
from virtpilot.actuators.note import write_note
from virtpilot.model import Command

FIRST: Final = command(set_to(2048), "cm-1")
SECOND: Final = command(set_to(4096, expected=2048), "cm-2", at_ns=at(10))
RELEASE: Final = command(release(), "cm-3", at_ns=at(20))
MOVE: Final = command(move(), "cm-4", at_ns=at(20))
BASELINE: Final = 1024
NOTE: Final = write_note(GUEST, [Lease(guest=GUEST, knob=SHARES, baseline=BASELINE, value=2048, rule="starved",
    command="cm-9", end_ns=at(60), state=LeaseState.HELD)])  # fmt: skip
STOP: Final = command(power(Verb.SHUTDOWN), "cm-5", at_ns=at(20))
START_AGAIN: Final = command(power(Verb.START), "cm-6", at_ns=at(20))
HOOK: Final = command(Run(guest=GUEST, hook="nothing"), "cm-7")
Scene = Callable[[Executor, OneHost], None]


def set_once(made: Executor, _host: OneHost) -> None:
    made.submit(FIRST, at(0))


def set_twice(made: Executor, _host: OneHost) -> None:
    made.submit(FIRST, at(0))
    made.submit(SECOND, at(10))


def set_in_vain(made: Executor, host: OneHost) -> None:
    host.rounds = lambda value: value - 1 if value == 2048 else value
    made.submit(FIRST, at(0))


def set_twice_in_vain(made: Executor, host: OneHost) -> None:
    made.submit(FIRST, at(0))
    host.rounds = lambda value: value - 1 if value == 4096 else value
    made.submit(SECOND, at(10))


def set_and_release(made: Executor, _host: OneHost) -> None:
    made.submit(FIRST, at(0))
    made.submit(RELEASE, at(20))


def set_and_end(made: Executor, _host: OneHost) -> None:
    made.submit(FIRST, at(0))
    made.poll(at(60))


def set_and_move(made: Executor, host: OneHost) -> None:
    made.submit(FIRST, at(0))
    made.submit(MOVE, at(20))
    host.jobs[0].finish()
    made.poll(at(25))


def set_and_changed(made: Executor, host: OneHost) -> None:
    made.submit(FIRST, at(0))
    host.shares = BASELINE
    made.see(GUEST, SHARES, BASELINE)
    made.poll(at(20))


def come_and_end(made: Executor, host: OneHost) -> None:
    """The guest comes from elsewhere with a lease of its own."""
    host.notes[GUEST] = NOTE
    host.shares = 2048
    made.look_at(GUEST)
    made.poll(at(20))
    made.poll(at(60))


def move_in_vain(made: Executor, host: OneHost) -> None:
    made.submit(MOVE, at(20))
    host.jobs[0].fail("host-2 does not answer")
    made.poll(at(25))


def stop_and_start(made: Executor, _host: OneHost) -> None:
    made.submit(FIRST, at(0))
    made.submit(STOP, at(20))
    made.submit(START_AGAIN, at(22))


def run_a_hook(made: Executor, _host: OneHost) -> None:
    made.submit(HOOK, at(0))
    while made.busy(GUEST):
        made.poll(at(1))


SCENES: Final[dict[str, tuple[Scene, list[Command]]]] = {
    "set": (set_once, [FIRST]),
    "set twice": (set_twice, [FIRST, SECOND]),
    "set in vain": (set_in_vain, [FIRST]),
    "set twice in vain": (set_twice_in_vain, [FIRST, SECOND]),
    "set and release": (set_and_release, [FIRST, RELEASE]),
    "set and end": (set_and_end, [FIRST]),
    "set and move": (set_and_move, [FIRST, MOVE]),
    "move in vain": (move_in_vain, [MOVE]),
    "set and changed": (set_and_changed, [FIRST]),
    "come and end": (come_and_end, []),
    "hook": (run_a_hook, [HOOK]),
    "stop and start": (stop_and_start, [FIRST, STOP, START_AGAIN]),
}


class Killed(BaseException):
    """The end of a process, as far as one can have it without one."""


def passes(scene: str, folder: Path) -> list[Point]:
    """Return the points that a scene passes, in order, repeats too."""
    points: list[Point] = []
    host = OneHost()
    SCENES[scene][0](executor(host, folder, reached=points.append), host)
    return points


def killed_at(scene: str, passing: int, folder: Path) -> OneHost:
    """Play a scene until its n-th passing of a point, drop everything that was in memory and return the host."""
    host = OneHost()
    left = [passing]

    def reached(_point: Point) -> None:
        if left[0] == 0:
            raise Killed
        left[0] -= 1

    try:
        SCENES[scene][0](executor(host, folder, reached=reached), host)
    except Killed:
        host.rounds = lambda value: value
        return host
    raise AssertionError(f"scene {scene!r} passes fewer than {passing} points")


class FileHost(OneHost):
    """A host whose guests and knobs outlive the process."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        if path.exists():
            kept = json.loads(path.read_text())
            self.states = {guest: state for guest, state in self.states.items() if guest in kept}
            self.knobs = {(guest, SHARES): value for guest, value in kept.items()}

    def set_knob(self, guest: str, knob: str, value: int) -> None:
        super().set_knob(guest, knob, value)
        self.save()

    def remove(self, guest: str) -> None:
        super().remove(guest)
        self.save()

    def save(self) -> None:
        self._path.write_text(json.dumps({guest: value for (guest, _knob), value in self.knobs.items()}))


def main(folder: Path, scene: str, point: Point) -> None:
    """Play a scene and die at the first passing of `point` after the guest's value was changed once, or at once."""
    host = FileHost(folder / "host.json")
    host.save()

    def reached(passed: Point) -> None:
        if passed is point:
            os.kill(os.getpid(), signal.SIGKILL)

    SCENES[scene][0](executor(host, folder, reached=reached), host)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Point(sys.argv[3]))

__all__ = ["GUEST", "SCENES", "FileHost", "killed_at", "passes"]
