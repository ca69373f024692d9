"""`python -m deploy.testing [PYTEST'S ARGUMENTS]`: every test, in parts of which none takes what another measures.

What needs no lab but waits for servers and processes has several workers, and comes behind all else (nice), so that
labs may stand beside it. Labs that measure what a guest gets of a core have the machine to themselves, or a core where
one is enough; what only computes fills the time in which they wait, and takes from nobody.
With -m among the arguments pytest runs once, by itself. TEST_WORKERS says how many work at once.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import IO, Final, NoReturn

from virtpilot.clock import SystemClock

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

    What is fast comes first, or the modules with most tests, so that none of them is begun last.
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

    def start(self, arguments: Sequence[str], output: IO[bytes] | None) -> subprocess.Popen[bytes]:
        """Run it; `output` takes what it prints, else it is shown as it comes."""
        return subprocess.Popen(self.command(arguments), cwd=_ROOT, env=_ENVIRONMENT, stdout=output, stderr=output)


def parts(cores: int, asked: int | None = None) -> list[list[Part]]:
    """Return what runs at once, one group after the other, on so many cores."""
    return [
        [
            Part("not lab and (server or slow)", workers=asked or min(2 * cores, 8), rank=Rank.BEHIND),
            Part("lab and not alone", workers=asked or min(2 * cores, 8), largest_first=True),
        ],
        [Part("lab and alone and one_core", workers=cores)],
        [
            Part("lab and alone and not one_core"),
            Part("not lab and not server and not slow", workers=cores, rank=Rank.GAPS),
        ],
    ]


def compiled(root: Path = _ROOT, *arguments: str) -> bool:
    """Have everything compiled once where nothing is, before workers do so side by side; return whether it was done.

    The tests' asserts are rewritten by pytest alone, so it is asked what tests there are. What ails them is told later.
    """
    if (root / "tests" / "__pycache__").exists():
        return False
    asked = [*_PYTEST, "--collect-only", "--quiet", *arguments]
    subprocess.run(asked, cwd=root, env=_ENVIRONMENT, capture_output=True, check=False)
    return True


def together(group: Sequence[Part], arguments: Sequence[str]) -> list[int]:
    """Run a group of parts at once and return their exit codes; the first is shown live, the others when they end."""
    with ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile()) for _ in group[1:]]
        running = [part.start(arguments, output) for part, output in zip(group, [None, *files], strict=True)]
        try:
            return [one.wait() for one in running]
        except (KeyboardInterrupt, SystemExit) as end:
            # A lab is taken down by the process that brought it up. Ctrl-C at a terminal has reached all of them.
            for one in running if isinstance(end, SystemExit) else ():
                one.send_signal(signal.SIGINT)
            for one in running:
                one.wait()
            raise
        finally:
            for output in files:
                output.seek(0)
                sys.stdout.buffer.write(output.read())
            sys.stdout.flush()


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
    heed_sigterm()
    compiled()
    clock = SystemClock()
    codes: list[int] = []
    for group in parts(len(os.sched_getaffinity(0)), int(asked) if asked else None):
        began_ns = clock.monotonic_ns()
        codes += together(group, arguments)
        print(f"{(clock.monotonic_ns() - began_ns) / 1e9:.0f} s: {'; '.join(part.marks for part in group)}", flush=True)
        if worst(codes) not in (_PASSED, _FAILED, _NOTHING_FOUND):
            break
    return worst(codes)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
