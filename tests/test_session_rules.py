"""The session's own rules, each shown by a pytest run in a process of its own on a small file of tests."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
_NOT_INHERITED = {"CI", "PYTEST_CURRENT_TEST", "VIRTPILOT_THOROUGH"}


def run(folder: Path, tests: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a file of tests under this repository's conftest."""
    file = folder / "test_small.py"
    file.write_text(textwrap.dedent(tests))
    kept = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider", "-v"]
    options = ["-c", str(ROOT / "pyproject.toml"), f"--rootdir={folder}", *words]
    return subprocess.run(
        [*command, *options, str(file)],
        cwd=ROOT,
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(("ci", "status", "word"), [("", 0, "SKIPPED"), ("true", 1, "FAILED")])
def test_a_missing_server_skips_here_and_fails_in_ci(tmp_path: Path, ci: str, status: int, word: str) -> None:
    """With nothing on the servers' path, mosquitto is absent for the run; and what skips by itself is no better."""
    tests = """
        import pytest
        def test_speaks_to_a_broker(mosquitto):
            assert mosquitto.ready()
        @pytest.mark.server
        def test_gives_up():
            pytest.skip("no such server")
    """
    done = run(tmp_path, tests, CI=ci, VIRTPILOT_SERVER_PATH=str(tmp_path))
    assert done.returncode == status, done.stdout
    # what a fixture fails for is an error
    assert re.search(rf"::test_speaks_to_a_broker ({word}|ERROR) ", done.stdout), done.stdout
    assert re.search(rf"::test_gives_up {word} ", done.stdout), done.stdout
    assert ("CI must run every test" in done.stdout) == bool(ci)


def test_fast_tests_come_first_then_servers_then_the_lab(tmp_path: Path) -> None:
    tests = """
        import pytest
        @pytest.mark.lab
        def test_lab(): pass
        def test_server(mosquitto): pass
        @pytest.mark.slow
        def test_slow(): pass
        def test_fast(): pass
    """
    done = run(tmp_path, tests, "--collect-only")
    shown = re.findall(r"<Function (\w+)>", done.stdout)
    assert shown == ["test_fast", "test_slow", "test_server", "test_lab"], done.stdout
    without = run(tmp_path, tests, "--collect-only", "-m", "not server and not lab").stdout
    assert "test_fast" in without
    assert "test_server" not in without, "the fixture alone makes it a server's test"


def test_a_worker_begins_with_what_must_be_prompt_and_then_what_takes_long(tmp_path: Path) -> None:
    tests = """
        import pytest
        def test_fast(): pass
        @pytest.mark.slow
        def test_slow(): pass
        @pytest.mark.prompt
        def test_prompt(): pass
    """
    done = run(tmp_path, tests, "--numprocesses", "1", "--dist", "loadscope", "--no-loadscope-reorder")
    assert re.findall(r"PASSED .*::(\w+)", done.stdout) == ["test_prompt", "test_slow", "test_fast"], done.stdout


def test_long_forms_are_only_for_a_thorough_run(tmp_path: Path) -> None:
    tests = """
        import pytest
        @pytest.mark.long
        def test_long(): pass
        @pytest.mark.parametrize("count", [1, pytest.param(1_000_000, marks=pytest.mark.long)])
        def test_counts(count): pass
    """
    assert "1 passed, 2 deselected" in run(tmp_path, tests).stdout
    assert "3 passed" in run(tmp_path, tests, VIRTPILOT_THOROUGH="1").stdout


def test_a_seed_is_printed_and_can_be_given_again(tmp_path: Path) -> None:
    tests = """
        from hypothesis import Phase, given, settings, strategies as st
        @settings(database=None, derandomize=False, phases=[Phase.generate])
        @given(st.integers())
        def test_number(number):
            assert number != number, "always"
    """
    first = run(tmp_path, tests)
    seed = next(line for line in first.stdout.splitlines() if line.startswith("hypothesis seed: ")).split()[2]
    again = run(tmp_path, tests, f"--hypothesis-seed={seed}")
    assert f"hypothesis seed: {seed} " in again.stdout
    other = run(tmp_path, tests)
    assert f"hypothesis seed: {seed} " not in other.stdout


@pytest.mark.parametrize("words", [(), ("-n", "2")])
def test_a_process_left_behind_fails_the_session_and_is_named(tmp_path: Path, words: tuple[str, ...]) -> None:
    """Also one that has left its parent, and one of a worker: it is known by its environment."""
    tests = """
        import subprocess
        def test_forgets_a_process():
            null = subprocess.DEVNULL  # a worker's standard error is the session's
            subprocess.run(["setsid", "--fork", "sleep", "58.25"], check=True, stdout=null, stderr=null)
    """
    done = run(tmp_path, tests, *words)
    assert "1 passed" in done.stdout
    assert done.returncode == 1, done.stdout
    left = re.search(r"left behind: process (\d+): sleep 58.25", done.stdout)
    assert left, done.stdout
    os.kill(int(left[1]), signal.SIGKILL)
