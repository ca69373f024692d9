"""`virtpilot rules new`: a file to start from, right and tested from the first moment."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.command_line import said
from virtpilot.clock import SystemClock
from virtpilot.pipeline import rule_tests
from virtpilot.rules.language import load


def new(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "virtpilot.pipeline", "rules", "new", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


def test_a_new_rule_is_right_and_its_test_passes(tmp_path: Path) -> None:
    done = new("my-rule.2", "--folder", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path}/my-rule.2.yaml\n{tmp_path}/my-rule.2.test.yaml\n"
    assert [rule.name for rule in load([tmp_path]).rules] == ["my-rule.2"]
    (tested,) = rule_tests.run([tmp_path], SystemClock())
    assert tested.failed == 0
    assert list(tested.coverage.gaps()) == []


def test_what_stands_there_stays(tmp_path: Path) -> None:
    (tmp_path / "a.test.yaml").write_text("mine")
    done = said("rules", "new", "a", "--folder", tmp_path)
    assert done.returncode == 2
    assert done.stderr == f"{tmp_path}/a.test.yaml:0:0: is there already and stays as it is\n"
    assert not (tmp_path / "a.yaml").exists()
    assert (tmp_path / "a.test.yaml").read_text() == "mine"


def test_what_is_no_name_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "rules"
    folder.mkdir()
    assert said("rules", "new", "../a", "--folder", folder).returncode == 2
    assert list(tmp_path.rglob("a*")) == []
