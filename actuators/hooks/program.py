"""A program under way: its own process group, no shell, nothing of the agent's environment, ended at its deadline."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import threading
from collections.abc import Sequence
from typing import Final

from virtpilot.actuators.hooks.ending import Ending
from virtpilot.clock import SECOND, SystemClock

_ENVIRONMENT: Final = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
_CHUNK: Final = 65536
_LOOK_S: Final = 0.5


class Program:
    """Runs in a thread of its own; `ending` is there when it is over."""

    def __init__(self, argv: Sequence[str], *, deadline_s: float, output_max: int) -> None:
        self.ending: Ending | None = None
        self._argv = list(argv)
        self._deadline_s = deadline_s
        # A process runs in real time, whatever the agent's own clock is.
        self._monotonic_ns = SystemClock().monotonic_ns
        self._until_ns = self._monotonic_ns() + round(deadline_s * SECOND)
        self._output_max = output_max
        self._stopped = threading.Event()
        threading.Thread(target=self._run, name=f"hook-{self._argv[0][-16:]}", daemon=True).start()

    def stop(self) -> None:
        """End it now."""
        self._stopped.set()

    def _run(self) -> None:
        try:
            process = subprocess.Popen(
                self._argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd="/",
                env=_ENVIRONMENT,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            self.ending = Ending(False, f"it cannot be started: {error}")
            return
        output, ended = self._read(process)
        # Whatever it has left running goes with it.
        _kill(process.pid)
        status = process.wait()
        if not ended:
            self.ending = Ending(False, f"ended after {self._deadline_s:g} s", output)
        else:
            told = f"exit status {status}" if status >= 0 else f"ended by signal {-status}"
            self.ending = Ending(status == 0, told, output, {"exit_status": float(status)})

    def _read(self, process: subprocess.Popen[bytes]) -> tuple[bytes, bool]:
        """Read what it says until it is over; returns that, and False where it had to be ended."""
        kept = b""
        assert process.stdout is not None  # noqa: S101 - it was asked for
        with process.stdout as pipe, selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            while (left_ns := self._until_ns - self._monotonic_ns()) > 0 and not self._stopped.is_set():
                if selector.select(min(left_ns / SECOND, _LOOK_S)):
                    chunk = os.read(pipe.fileno(), _CHUNK)
                    if not chunk:
                        return kept, self._left(process)
                    kept += chunk[: self._output_max - len(kept)]
                elif process.poll() is not None:
                    return kept, True  # something that it has left behind holds the pipe
        return kept, False

    def _left(self, process: subprocess.Popen[bytes]) -> bool:
        """Wait for one that has closed its output; returns whether it ended in time."""
        try:
            process.wait(max((self._until_ns - self._monotonic_ns()) / SECOND, 0.01))
        except subprocess.TimeoutExpired:
            return False
        return True


def _kill(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:  # all of it has ended
        return
