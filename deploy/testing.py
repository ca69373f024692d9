"""`python -m deploy.testing [PYTEST'S ARGUMENTS]`: every test, in parts of which none takes what another measures.

What needs no lab but waits for servers and processes has several workers, and comes behind all else (nice), so that
labs may stand beside it. Labs that measure what a guest gets of a core have the machine to themselves, or a core where
one is enough; what only computes fills the time in which they wait, and takes from nobody. Which files have tests of a
part is found out once, so that its workers read no others: to read all is ten seconds' work, for each anew.
With -m among the arguments pytest runs once, by itself. TEST_WORKERS says how many work at once.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence, Set
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import IO, Final, NoReturn

from _pytest.mark.expression import Expression

from deploy.found_tests import FOUND_TESTS
from virtpilot.clock import SECOND, SystemClock

_ROOT: Final = Path(__file__).resolve().parent.parent
_PYTEST: Final = (sys.executable, "-m", "pytest")
_PASSED, _FAILED, _NOTHING_FOUND = 0, 1, 5  # pytest's exit codes
_GAPS_TIMEOUT_S: Final = "1200"  # a test: others may leave it no time for long
# Each worker, and each process that a test starts, would compile all of it for itself.
_ENVIRONMENT: Final = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


class Rank(StrEnum):
    """What a part is run by: as anything else, behind what else runs, or only where nothing else would (SCHED_IDLE)."""

    EQUAL = ""
    BEHIND = "nice -n 10"
    GAPS = "chrt --idle 0"


@dataclass(frozen=True, slots=True)
class Part:
    """The tests of one expression of marks; `workers` of 0 is this process alone, one after the other.

    Workers begin in the order that tests/conftest.py has, or with the modules with most tests, so that none of them is
    begun last.
    """

    marks: str
    workers: int = 0
    rank: Rank = Rank.EQUAL
    largest_first: bool = False

    def command(self, arguments: Sequence[str]) -> list[str]:
        """Return the words that run it."""
        at_once = ["--dist", "loadscope", "--numprocesses", str(self.workers)]
        at_once += [] if self.largest_first else ["--no-loadscope-reorder"]
        at_once += ["--timeout", _GAPS_TIMEOUT_S] if self.rank is Rank.GAPS else []
        return [*self.rank.split(), *_PYTEST, "-m", self.marks, *(at_once if self.workers else []), *arguments]


def parts(cores: int, asked: int | None = None) -> list[list[Part]]:
    """Return what runs at once, one group after the other, on so many cores.

    What fills gaps begins when the first other part of its group has ended (beside all of them it would get nothing for
    minutes), and goes on beside the next groups.
    """
    return [
        [
            Part("not lab and (server or slow)", workers=asked or min(2 * cores, 8), rank=Rank.BEHIND),
            Part("lab and not alone", workers=asked or min(2 * cores, 8), largest_first=True),
            Part("not lab and not server and not slow", workers=cores, rank=Rank.GAPS),
        ],
        [Part("lab and alone and one_core", workers=cores)],
        [Part("lab and alone and not one_core")],
    ]


def files_of(marks: Sequence[str], root: Path = _ROOT, *arguments: str) -> dict[str, list[str]]:
    """Return the files that have tests of each expression of marks; empty where a file cannot be read: others tell why.

    It also has everything compiled once where nothing is, before workers do so side by side: the tests' asserts are
    rewritten by pytest alone.
    """
    with tempfile.NamedTemporaryFile("r", encoding="utf-8") as found:
        words = [*_PYTEST, "--collect-only", "--quiet", "-p", "deploy.found_tests", *arguments]
        environment = {**_ENVIRONMENT, FOUND_TESTS: found.name}
        ended = subprocess.run(words, cwd=root, env=environment, capture_output=True, check=False)
        if ended.returncode != _PASSED:
            return {}
        tests = [(file, frozenset(own)) for file, own in json.load(found)]
    return {one: list(dict.fromkeys(file for file, own in tests if _is_of(one, own))) for one in marks}


def _is_of(expression: str, own: Set[str]) -> bool:
    def marked(name: str, /, **_words: str | int | bool | None) -> bool:
        return name in own

    return Expression.compile(expression).evaluate(marked)


class Run:
    """Runs groups of parts, one after the other; `files` are those that have tests of each part, if that is known."""

    def __init__(self, arguments: Sequence[str], files: Mapping[str, Sequence[str]]) -> None:
        self._arguments, self._files = arguments, files
        self._running: list[_Running] = []

    def all(self, groups: Sequence[Sequence[Part]]) -> list[int]:
        """Run them and return their exit codes; a group's first is shown live, the others when they end.

        What fills gaps goes on beside the next groups. Behind a part that was broken off nothing begins.
        """
        codes = list[int]()
        try:
            for group in groups:
                codes += self._group(group)
                if worst(codes) not in (_PASSED, _FAILED, _NOTHING_FOUND):
                    self._interrupt()
                    break
            return codes + self._ended(self._running)
        except (KeyboardInterrupt, SystemExit) as end:
            # Ctrl-C at a terminal has reached all of them.
            if isinstance(end, SystemExit):
                self._interrupt()
            self._ended(self._running)
            raise

    def _group(self, group: Sequence[Part]) -> list[int]:
        clock = SystemClock()
        began_ns = clock.monotonic_ns()
        others = [self._start(part, shown=part is group[0]) for part in group if part.rank is not Rank.GAPS]
        _wait_for_one(others)
        for part in group:
            if part.rank is Rank.GAPS:
                self._start(part)
        codes = self._ended(others)
        took_s = (clock.monotonic_ns() - began_ns) / SECOND
        print(f"{took_s:.0f} s: {'; '.join(part.marks for part in group)}", flush=True)
        return codes

    def _start(self, part: Part, *, shown: bool = False) -> _Running:
        words = part.command([*self._arguments, *self._files.get(part.marks, ())])
        output = None if shown else tempfile.TemporaryFile()  # noqa: SIM115 - closed when shown
        process = subprocess.Popen(words, cwd=_ROOT, env=_ENVIRONMENT, stdout=output, stderr=output)
        self._running.append(_Running(process, output))
        return self._running[-1]

    def _ended(self, some: Sequence[_Running]) -> list[int]:
        codes = [one.ended() for one in some]
        self._running = [one for one in self._running if one not in some]
        return codes

    def _interrupt(self) -> None:
        """Let what runs end in order: a lab is taken down by the process that brought it up."""
        for one in self._running:
            one.process.send_signal(signal.SIGINT)


@dataclass(frozen=True, slots=True)
class _Running:
    """A part that runs; `output` takes what it prints, where that is not shown as it comes."""

    process: subprocess.Popen[bytes]
    output: IO[bytes] | None

    def ended(self) -> int:
        """Wait for its end, show what it printed and return its exit code."""
        code = self.process.wait()
        if self.output is not None and not self.output.closed:
            with self.output:
                self.output.seek(0)
                sys.stdout.buffer.write(self.output.read())
            sys.stdout.flush()
        return code


def _wait_for_one(some: Sequence[_Running]) -> None:
    """Return when the first of these has ended."""
    with ExitStack() as stack:
        ends = [stack.enter_context(os.fdopen(os.pidfd_open(one.process.pid))) for one in some]
        if ends:
            select.select(ends, [], [])


def worst(codes: Sequence[int]) -> int:
    """Return the exit code of the whole: a part that found nothing is no failure where another found something."""
    bad = [code for code in codes if code not in (_PASSED, _NOTHING_FOUND)]
    if bad:
        return max(bad, key=lambda code: (code != _FAILED, code))
    return _PASSED if _PASSED in codes else _NOTHING_FOUND


def heed_sigterm() -> None:
    """Take SIGTERM as Ctrl-C: this process ends when what it started has."""
    signal.signal(signal.SIGTERM, _terminated)


def _terminated(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + signal.SIGTERM)


def main(arguments: Sequence[str]) -> int:
    """Run every part, also behind one that failed, but not behind one that was broken off; return the exit code."""
    if any(word.startswith("-m") for word in arguments):
        return subprocess.run([*_PYTEST, *arguments], cwd=_ROOT, env=_ENVIRONMENT, check=False).returncode
    asked = os.environ.get("TEST_WORKERS")
    groups = parts(len(os.sched_getaffinity(0)), int(asked) if asked else None)
    heed_sigterm()
    # What is asked for may name files itself.
    files = {} if arguments else files_of([part.marks for group in groups for part in group])
    return worst(Run(arguments, files).all(groups))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
