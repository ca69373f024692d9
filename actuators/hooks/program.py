"""A program under way: its own process group, no shell, nothing of the agent's environment, ended at its deadline."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import threading
from collections.abc import Sequence
from typing import Final

import structlog

from virtpilot.actuators.hooks.ending import Ending
from virtpilot.clock import SECOND, SystemClock

log = structlog.get_logger(__name__)

_ENVIRONMENT: Final = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
_CHUNK: Final = 65536
_LOOK_S: Final = 0.5
# So long what was killed may take to be gone. What is in the kernel, or runs as somebody else by now, may never be.
_GRACE_S: Final = 5.0


class Program:
    """Runs in a thread of its own; `ending` is there when it is over."""

    def __init__(self, argv: Sequence[str], *, deadline_s: float, output_max: int) -> None:
        self._ending: Ending | None = None
        self._argv = list(argv)
        self._deadline_s = deadline_s
        # A process runs in real time, whatever the agent's own clock is.
        self._monotonic_ns = SystemClock().monotonic_ns
        self._until_ns = self._monotonic_ns() + round(deadline_s * SECOND)
        self._output_max = output_max
        self._stopped = threading.Event()
        try:
            threading.Thread(target=self._run, name=f"hook-{self._argv[0][-16:]}", daemon=True).start()
        except RuntimeError as error:  # this machine has no thread to give
            self._ending = Ending(False, f"it cannot be started: {error}")

    @property
    def ending(self) -> Ending | None:
        """How it ended, None while it goes on; it is given up some seconds after its deadline, whatever holds it."""
        late_ns = self._monotonic_ns() - self._until_ns
        if self._ending is None and late_ns > 2 * _GRACE_S * SECOND:
            return Ending(False, f"it does not end, {late_ns / SECOND:.0f} s after its deadline")
        return self._ending

    def stop(self) -> None:
        """End it now."""
        self._stopped.set()

    def _run(self) -> None:
        ending = Ending(False, "it was lost sight of")
        try:
            ending = self._followed()
        finally:
            self._ending = ending

    def _followed(self) -> Ending:
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
            return Ending(False, f"it cannot be started: {error}")
        try:
            output, ended = self._read(process)
        except OSError as error:
            output, ended = f"what it said cannot be read: {error}".encode(), False
        finally:
            # Whatever it has left running goes with it.
            _kill(process.pid)
        try:
            status = process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            self._ending = Ending(False, f"to be ended after {self._deadline_s:g} s, but it cannot be killed", output)
            process.wait()  # whoever waits for a hook has been told; the process is buried when it is dead
            return self._ending
        if not ended:
            return Ending(False, f"ended after {self._deadline_s:g} s", output)
        told = f"exit status {status}" if status >= 0 else f"ended by signal {-status}"
        return Ending(status == 0, told, output, {"exit_status": float(status)})

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
    except OSError as error:  # it runs as somebody else
        log.warning("a hook's processes cannot be killed", group=group, error=str(error))
