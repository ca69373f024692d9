"""The session's own rules, each shown by a pytest run in a process of its own on a small file of tests."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

ROOT = Path(__file__).parents[1]
_NOT_INHERITED = {"CI", "PYTEST_CURRENT_TEST", "VIRTPILOT_THOROUGH"}
# To import pytest and its plugins costs far more than such a run: it is done once, and each run is a fork of that.
# Nothing of this repository is imported yet, so that each run reads its own environment.
FORKS = """
import json, os, sys, pytest
pytest.main(["--version", "--version", "--noconftest", "-c", os.devnull])
import structlog
print(flush=True)
for line in sys.stdin:
    words, environment, output = json.loads(line)
    child = os.fork()
    if not child:
        into = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        null = os.open(os.devnull, os.O_RDONLY)
        for file, known in ((null, 0), (into, 1), (into, 2)):
            os.dup2(file, known)
        os.environ.clear()
        os.environ.update(environment)
        status = pytest.main(words)
        sys.stdout.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Run(Protocol):
    """Runs a file of tests under this repository's conftest."""

    def __call__(self, tests: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Return it when it has ended."""


@pytest.fixture(scope="module")
def forks() -> Iterator[subprocess.Popen[str]]:
    """The process that forks."""
    piped = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", FORKS], cwd=ROOT, stdin=piped, stdout=piped, text=True) as process:
        assert process.stdout
        while process.stdout.readline().strip():
            pass  # its versions
        yield process
        process.stdin.close() if process.stdin else None


@pytest.fixture
def run(forks: subprocess.Popen[str], tmp_path: Path) -> Run:
    """What runs a file of tests in a process of its own."""

    def run(tests: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        file, output = tmp_path / "test_small.py", tmp_path / "output"
        file.write_text(textwrap.dedent(tests))
        kept = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
        options = ["-p", "tests.conftest", "-p", "no:cacheprovider", "-v", "-c", str(ROOT / "pyproject.toml")]
        command = [*options, f"--rootdir={tmp_path}", *words, str(file)]
        assert forks.stdin
        assert forks.stdout
        forks.stdin.write(json.dumps([command, kept | environment, str(output)]) + "\n")
        forks.stdin.flush()
        return subprocess.CompletedProcess(command, int(forks.stdout.readline()), output.read_text())

    return run


@pytest.mark.parametrize(("ci", "status", "word"), [("", 0, "SKIPPED"), ("true", 1, "FAILED")])
def test_a_missing_server_skips_here_and_fails_in_ci(run: Run, tmp_path: Path, ci: str, status: int, word: str) -> None:
    """With nothing on the servers' path, mosquitto is absent for the run; and what skips by itself is no better."""
    tests = """
        import pytest
        def test_speaks_to_a_broker(mosquitto):
            assert mosquitto.ready()
        @pytest.mark.server
        def test_gives_up():
            pytest.skip("no such server")
    """
    done = run(tests, CI=ci, VIRTPILOT_SERVER_PATH=str(tmp_path))
    assert done.returncode == status, done.stdout
    # what a fixture fails for is an error
    assert re.search(rf"::test_speaks_to_a_broker ({word}|ERROR) ", done.stdout), done.stdout
    assert re.search(rf"::test_gives_up {word} ", done.stdout), done.stdout
    assert ("CI must run every test" in done.stdout) == bool(ci)


def test_fast_tests_come_first_then_servers_then_the_lab(run: Run) -> None:
    tests = """
        import pytest
        @pytest.mark.lab
        def test_lab(): pass
        def test_server(mosquitto): pass
        @pytest.mark.slow
        def test_slow(): pass
        def test_fast(): pass
    """
    done = run(tests, "--collect-only")
    shown = re.findall(r"<Function (\w+)>", done.stdout)
    assert shown == ["test_fast", "test_slow", "test_server", "test_lab"], done.stdout
    without = run(tests, "--collect-only", "-m", "not server and not lab").stdout
    assert "test_fast" in without
    assert "test_server" not in without, "the fixture alone makes it a server's test"


def test_a_worker_begins_with_what_must_be_prompt_and_then_what_takes_long(run: Run) -> None:
    tests = """
        import pytest
        def test_fast(): pass
        @pytest.mark.slow
        def test_slow(): pass
        @pytest.mark.prompt
        def test_prompt(): pass
    """
    done = run(tests, "--numprocesses", "1", "--dist", "loadscope", "--no-loadscope-reorder")
    assert re.findall(r"PASSED .*::(\w+)", done.stdout) == ["test_prompt", "test_slow", "test_fast"], done.stdout


def test_long_forms_are_only_for_a_thorough_run(run: Run) -> None:
    tests = """
        import pytest
        @pytest.mark.long
        def test_long(): pass
        @pytest.mark.parametrize("count", [1, pytest.param(1_000_000, marks=pytest.mark.long)])
        def test_counts(count): pass
    """
    assert "1 passed, 2 deselected" in run(tests).stdout
    assert "3 passed" in run(tests, VIRTPILOT_THOROUGH="1").stdout


def test_a_seed_is_printed_and_can_be_given_again(run: Run) -> None:
    tests = """
        from hypothesis import Phase, given, settings, strategies as st
        @settings(database=None, derandomize=False, phases=[Phase.generate])
        @given(st.integers())
        def test_number(number):
            assert number != number, "always"
    """
    first = run(tests)
    seed = next(line for line in first.stdout.splitlines() if line.startswith("hypothesis seed: ")).split()[2]
    again = run(tests, f"--hypothesis-seed={seed}")
    assert f"hypothesis seed: {seed} " in again.stdout
    other = run(tests)
    assert f"hypothesis seed: {seed} " not in other.stdout


@pytest.mark.parametrize("words", [(), ("-n", "1")])
def test_a_process_left_behind_fails_the_session_and_is_named(run: Run, words: tuple[str, ...]) -> None:
    """Also one that has left its parent, and one of a worker: it is known by its environment."""
    tests = """
        import subprocess
        def test_forgets_a_process():
            # It is known by its environment once it speaks; a worker's standard error is the session's.
            left = ["setsid", "--fork", "sh", "-c", "echo up; kill -STOP $$"]
            with subprocess.Popen(left, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
                assert process.stdout.readline()
    """
    done = run(tests, *words)
    assert "1 passed" in done.stdout
    assert done.returncode == 1, done.stdout
    left = re.search(r"left behind: process (\d+): sh -c echo up", done.stdout)
    assert left, done.stdout
    os.kill(int(left[1]), signal.SIGKILL)
