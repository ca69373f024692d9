"""What every process has: logs on standard error, an orderly end on SIGTERM and SIGINT, a name for each start."""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Final, Literal

import msgspec
import structlog
from msgspec import Meta

from virtpilot.clock import SECOND, SystemClock, seconds
from virtpilot.errors import StateError

STOP_S: Final = 4.5
_ENDING: Final = (signal.SIGTERM, signal.SIGINT)
NAME: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
Name = Annotated[str, Meta(pattern=f"^{NAME}$")]
Cluster = Annotated[Name, Meta(description="The cluster's name: part of every topic, and a tag of every sample.")]
StateFolder = Annotated[str, Meta(description="Where this process keeps what must survive a restart.")]
log = structlog.get_logger(__name__)


class LogOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is written to standard error."""

    level: Annotated[Literal["debug", "info", "warning", "error"], Meta(description="The least level shown.")] = "info"
    json: Annotated[bool, Meta(description="One JSON object a line, for log shippers.")] = False


def set_up_logs(options: LogOptions) -> None:
    """Send structured logs to standard error, where standard output is for documents."""
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if options.json
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[options.level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


@contextmanager
def stopping(hangup: threading.Event | None = None, within_s: float = STOP_S) -> Iterator[threading.Event]:
    """Give an event that SIGTERM and SIGINT set, once and for all; further signals change nothing.

    SIGHUP sets `hangup`, where there is one. An end that takes longer than `within_s` is cut off, with status 0: all
    that must survive is on disk before it counts, as for a crash.
    """
    stop = threading.Event()
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    former_fd = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    numbers = _ENDING if hangup is None else (*_ENDING, signal.SIGHUP)
    former = {number: signal.signal(number, _noticed) for number in numbers}
    listener = threading.Thread(target=_listen, args=(reader, stop, hangup, within_s), name="signals", daemon=True)
    listener.start()
    try:
        yield stop
    finally:
        for number, handler in former.items():
            # A process that was told to end must not be hit by the same signal on its last steps.
            signal.signal(number, signal.SIG_IGN if stop.is_set() else handler)
        signal.set_wakeup_fd(former_fd)
        writer.close()
        listener.join()
        reader.close()


def _noticed(_number: int, _frame: FrameType | None) -> None:
    """Leave it to the listener: a handler that takes a lock could find it held by the code that it interrupts."""


def _listen(reader: socket.socket, stop: threading.Event, hangup: threading.Event | None, within_s: float) -> None:
    clock, cut_ns = SystemClock(), 0
    while True:
        if cut_ns:
            reader.settimeout(max((cut_ns - clock.monotonic_ns()) / SECOND, 0.001))
        try:
            number = reader.recv(1)
        except TimeoutError:
            log.error("the end takes too long and is cut off: nothing on disk is lost by it", after_s=within_s)
            os._exit(0)
        if not number:
            return
        if number[0] == signal.SIGHUP and hangup is not None:
            hangup.set()
        elif number[0] in _ENDING and not stop.is_set():
            log.info("ending", signal=signal.Signals(number[0]).name)
            cut_ns = clock.monotonic_ns() + seconds(within_s)
            stop.set()


@contextmanager
def sole_user(folder: Path) -> Iterator[None]:
    """Hold a state folder for this process alone, made if need be; raises StateError."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StateError(f"state folder {folder}: {error.strerror}") from error
    with os.fdopen(handle, "r+b", buffering=0) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = lock.read(20).decode(errors="replace").strip() or "?"
            raise StateError(f"state folder {folder}: in use by process {owner}") from error
        try:
            lock.truncate()
            lock.write(b"%d\n" % os.getpid())
        except OSError as error:
            # Who holds it is good to know, and no more: on a full disk, too, it is held.
            log.warning("lock file cannot be written", folder=str(folder), error=str(error))
        yield


def boot_id() -> str:
    """Return a name for this start of a process: sequence numbers count within it."""
    return secrets.token_hex(6)
