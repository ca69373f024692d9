"""Killed at every named point: then each knob is at its baseline or covered by a live lease, never neither."""

from __future__ import annotations

import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from tests.actuators.crash_scenes import BASELINE, SCENES, FileHost, killed_at, passes
from tests.actuators.one_host import GUEST, SHARES, OneHost, at, executor
from tests.services import until
from virtpilot.actuators.executor import Executor
from virtpilot.actuators.ledger import LeaseState
from virtpilot.actuators.lifecycle import Point
from virtpilot.hypervisor import OFF
from virtpilot.model import Command, Result

ROOT = Path(__file__).parents[2]


def scene_points() -> list[tuple[str, int]]:
    """Every passing of a point in every scene."""
    import tempfile

    found = []
    for scene in SCENES:
        with tempfile.TemporaryDirectory() as folder:
            found += [(scene, passing) for passing in range(len(passes(scene, Path(folder))))]
    return found


def covered(made: Executor, host: OneHost, now_ns: int) -> bool:
    """Tell whether the guest's knob is at its baseline, or at the value of a lease that lives.

    Of a guest that may be on its way nothing can be changed: its lease outlives its end until that is known.
    """
    if (GUEST, SHARES) not in host.knobs or host.states[GUEST] in OFF:
        return all(lease.guest != GUEST for lease in made.leases())
    leases = [lease for lease in made.leases() if lease.guest == GUEST]
    if not leases:
        return host.shares == BASELINE
    (lease,) = leases
    lives = lease.end_ns > now_ns or made.moving(GUEST) != ""
    return lease.state is LeaseState.HELD and lives and host.shares == lease.value


def settle(made: Executor, host: OneHost, commands: list[Command]) -> None:
    """Let time pass to the end of everything, and check what must be true then."""
    for second in (130, 200, 300, 400):
        made.poll(at(second))

    def quiet() -> bool:
        made.poll(at(300))
        return not made.busy(GUEST)

    assert until(quiet)  # a program takes real time
    assert made.leases() == []
    assert host.knobs.get((GUEST, SHARES), BASELINE) == BASELINE
    assert not made.busy(GUEST)
    told = [outcome.id for outcome in made.unpublished()]
    assert len(told) == len(set(told))
    assert {command.id for command in commands} <= {outcome.command for outcome in made.unpublished()}


@pytest.mark.parametrize("late", [False, True], ids=["restarted at once", "restarted after the lease"])
@pytest.mark.parametrize(("scene", "passing"), scene_points())
def test_killed_anywhere(tmp_path: Path, scene: str, passing: int, late: bool) -> None:
    """A crash, a restart, the commands that were not acknowledged once more: all is put right, nothing is left."""
    host = killed_at(scene, passing, tmp_path)
    now_ns = at(90 if late else 25)
    made = executor(host, tmp_path)
    made.recover(now_ns)
    assert covered(made, host, now_ns)
    commands = SCENES[scene][1]
    for command in commands:
        made.submit(command, now_ns)
        assert covered(made, host, now_ns)
    jobs = len(host.jobs)
    assert jobs <= 1
    for job in host.jobs:
        job.fail("cut off")
    settle(made, host, commands)


@pytest.mark.parametrize(("scene", "passing"), scene_points())
def test_killed_again_while_putting_right(tmp_path: Path, scene: str, passing: int) -> None:
    """A crash in the middle of the recovery from a crash, at each point that the recovery passes."""
    host = killed_at(scene, passing, tmp_path)
    for kill in range(5):
        left = [kill]

        def reached(_point: Point, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt

        try:
            executor(host, tmp_path, reached=reached).recover(at(90))
        except KeyboardInterrupt:
            continue
    made = executor(host, tmp_path)
    made.recover(at(90))
    assert covered(made, host, at(90))
    settle(made, host, [])


def test_the_scenes_pass_every_point(tmp_path: Path) -> None:
    """No named point is left out of these tests."""
    passed = set()
    for number, scene in enumerate(SCENES):
        folder = tmp_path / str(number)
        folder.mkdir()
        passed |= set(passes(scene, folder))
    assert passed == set(Point)


def test_the_lease_is_on_disk_before_the_change(tmp_path: Path) -> None:
    """The order that everything else rests on."""
    points = passes("set", tmp_path)
    wanted = [
        Point.BEFORE_INTENT, Point.AFTER_INTENT, Point.AFTER_NOTE, Point.AFTER_CHANGE, Point.AFTER_VERIFY,
        Point.AFTER_KEEP,
    ]  # fmt: skip
    assert points == wanted
    assert all(before is not after for before, after in pairwise(points))


@pytest.mark.parametrize(
    ("scene", "point", "changed"),
    [
        ("set", Point.AFTER_INTENT, BASELINE),
        ("set", Point.AFTER_CHANGE, 2048),
        ("set and end", Point.AFTER_RELEASE_MARK, 2048),
        ("set and end", Point.AFTER_RESTORE, BASELINE),
        ("set and end", Point.AFTER_RELEASE, BASELINE),
    ],
)
def test_kill_9(tmp_path: Path, scene: str, point: Point, changed: int) -> None:
    """A real process, really killed: the file on disk is what the next one puts right from."""
    ended = subprocess.run(
        [sys.executable, "-m", "tests.actuators.crash_scenes", str(tmp_path), scene, point],
        cwd=ROOT,
        timeout=600,
        check=False,
        capture_output=True,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    host = FileHost(tmp_path / "host.json")
    assert host.shares == changed
    made = executor(host, tmp_path)
    made.recover(at(90))
    assert covered(made, host, at(90))
    settle(made, host, [])
    results = {outcome.command: outcome.result for outcome in made.unpublished() if outcome.result is not Result.DONE}
    assert results["cm-1"] is (Result.FAILED if scene == "set" else Result.REVERTED)
