"""The main job on the embedded default, in virtual time: noticed, helped with shares, moved, cleared."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from virtpilot.model import Mode
from virtpilot.pipeline.demo import Demo
from virtpilot.pipeline.rulebook import RuleOptions


def play(demo: Demo, seconds: int) -> None:
    for _ in range(seconds):
        demo.step()


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    demo = Demo(tmp_path_factory.mktemp("demo"))
    play(demo, 270)
    demo.close()
    return demo


def test_a_starved_guest_is_helped_by_a_move_after_shares_were_not_enough(played: Demo) -> None:
    trail = next(trail for trail in played.trails() if trail.name == "web-1")
    assert trail.helped
    assert trail.cleared
    happened = [(step.kind, step.result) for step in trail.steps if step.kind in {"decision", "outcome"}]
    assert happened == [
        ("decision", "accepted"),
        ("outcome", "done"),
        ("outcome", "ineffective"),
        ("outcome", "reverted"),
        ("decision", "accepted"),
        ("outcome", "done"),
        ("outcome", "effective"),
    ]
    assert float(trail.before["cpu_steal_ratio"]) > 0.3
    assert float(trail.after["cpu_steal_ratio"]) < 0.05
    assert trail.before["host"] == played.fleet.hosts[0]
    assert trail.after["host"] == played.fleet.hosts[2]


def test_every_cause_in_a_trail_is_the_id_of_another_step(played: Demo) -> None:
    for trail in played.trails():
        ids = {step.id for step in trail.steps}
        assert all(step.cause is None or step.cause in ids for step in trail.steps)


def test_the_guest_really_moved_and_has_its_own_shares_again(played: Demo) -> None:
    guest = next(guest for guest in played.fleet.view().guests if guest.name == "web-1")
    assert guest.host == played.fleet.hosts[2]
    assert guest.cpu_shares == 1024


def test_every_sample_is_stored_once(played: Demo) -> None:
    document = played.document()
    assert document["samples_published"] == document["samples_stored"] > 1000


def test_rules_that_only_observe_touch_nothing(tmp_path: Path) -> None:
    demo = Demo(tmp_path, rules=RuleOptions(modes={"*": Mode.OBSERVE}))
    play(demo, 120)
    document = demo.document()
    demo.close()
    assert document["decisions"] == {"accepted": 0, "refused": {"mode": 1}}
    assert document["commands"] == 0
    assert all(guest.cpu_shares == 1024 for guest in demo.fleet.view().guests)


def test_the_command_prints_one_document_and_ends_by_itself() -> None:
    command = [sys.executable, "-m", "virtpilot.pipeline", "demo", "--seconds", "2", "--headless", "--json"]
    done = subprocess.run(command, capture_output=True, check=True, timeout=600, env={**os.environ, "COLUMNS": "80"})
    document = json.loads(done.stdout)
    assert document["samples_stored"] > 0
    assert set(document) == {
        "samples_published", "samples_stored", "signals", "decisions", "commands", "outcomes", "trails",
    }  # fmt: skip


def test_a_folder_that_another_demo_has_used_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    command = [sys.executable, "-m", "virtpilot.pipeline", "demo", "--seconds", "1", "--headless", "--keep"]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, timeout=600, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"{tmp_path}:0:0: not an empty folder: each demo needs one of its own\n"
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
