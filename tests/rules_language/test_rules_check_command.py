"""`virtpilot rules check PATH...`: 0 and a word where all is well, 2 with every mistake at its place."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.command_line import said

GOOD = "virtpilot: 1\nrules:\n  - {name: a, on: vm, when: cpu_steal_ratio > 10%, clear: cpu_steal_ratio < 5%}\n"
TEST = """\
virtpilot: 1
tests:
  - {name: t, hosts: {h: {}}, guests: {g: {host: h}}, expect: [{signal: a, of: g, at: 1m, is: inactive}]}
"""
WRONG = "virtpilot: 1\nrules:\n  - {name: b, on: vm, when: cpu_steal_ratio > 10, whn: 1}\n  - {name: c, on: vm}\n"


def rules_check(folder: Path, *arguments: str) -> tuple[int, str, str]:
    done = said("rules", "check", *arguments, within=folder)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "good").mkdir()
    (tmp_path / "good" / "a.yaml").write_text(GOOD)
    (tmp_path / "good" / "a.test.yaml").write_text(TEST)
    (tmp_path / "wrong.yaml").write_text(WRONG)
    return tmp_path


@pytest.mark.parametrize("path", ["good", "good/a.yaml"])
def test_a_file_and_a_folder_without_mistakes(folder: Path, path: str) -> None:
    assert rules_check(folder, path) == (0, "1 rules: fine\n", "")


def test_every_mistake_of_every_path_is_told(folder: Path) -> None:
    status, out, err = rules_check(folder, "good", "wrong.yaml", "missing.yaml")
    assert (status, out) == (2, "")
    assert err.splitlines() == [
        "missing.yaml:0:0: cannot be read: No such file or directory",
        "wrong.yaml:3:45: a ratio is between 0 and 1: write 10% for 10 percent",
        "wrong.yaml:3:51: `whn` is not known in a rule; did you mean `when`?",
        "wrong.yaml:4:5: `when` is missing",
    ]


def test_a_folder_without_rules_is_a_mistake(folder: Path) -> None:
    (folder / "none").mkdir()
    assert rules_check(folder, "none") == (2, "", "none:0:0: no rule file (*.yaml) in this folder\n")


def test_no_path_is_a_wrong_call(folder: Path) -> None:
    assert rules_check(folder)[0] == 2


def test_warnings_are_told_and_are_no_mistakes_unless_asked(folder: Path) -> None:
    (folder / "good" / "a.test.yaml").unlink()
    told = "good/a.yaml:3:12: warning: a: no test expects anything of it (in a.test.yaml)\n"
    assert rules_check(folder, "good") == (0, "1 rules: 1 warnings\n", told)
    assert rules_check(folder, "good", "--strict") == (1, "1 rules: 1 warnings\n", told)
    (folder / "good" / "a.test.yaml").write_text(TEST)
    assert rules_check(folder, "good", "--strict") == (0, "1 rules: fine\n", "")


def test_a_file_that_is_refused_as_yaml_waits_for_nothing_that_takes_long_to_load(folder: Path) -> None:
    (folder / "bomb.yaml").write_text("a: &a [x, x]\nb: &b [*a, *a]\n")
    code = (
        "import sys; from pathlib import Path; import virtpilot.pipeline.cli\n"
        "from virtpilot.rules.language import check\n"
        "print(*check([Path('bomb.yaml')]), *sorted({'numpy', 'lark', 'structlog', 'paho'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=600, cwd=folder, check=False
    )
    assert done.stdout == "bomb.yaml:1:4: anchors and aliases are not used in rule files\n"
