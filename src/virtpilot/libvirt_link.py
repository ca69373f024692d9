"""Connections to one libvirt: each call has a connection to itself, a deadline, and errors of ours.

Two calls never share a connection. libvirt's client before 10.1 can lose the wake-up of a second call while a first
one hangs (seen with 9.0: asking for a guest's state came back only with the stuck guest), and libvirtd answers five
calls of a connection at a time at most. So a call that overruns its deadline keeps its connection, the next one goes
on with another, and an idle one is used again.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from functools import cache
from queue import SimpleQueue
from typing import Any, Final, Generic, TypeVar

import structlog

from virtpilot.clock import SECOND, Clock, seconds
from virtpilot.errors import GuestNotFound, HypervisorError, HypervisorTimeout, HypervisorUnavailable

log = structlog.get_logger(__name__)

T = TypeVar("T")
Meaning = Mapping[int, type[HypervisorError]]
NO_MEANING: Final[Meaning] = {}

_KEEPALIVE_S: Final = 5
_KEEPALIVE_COUNT: Final = 3
_FIRST_WAIT_S: Final = 0.5
_LONGEST_WAIT_S: Final = 15.0
_MAX_IDLE: Final = 2


class Lane(StrEnum):
    """What a call is for: calls that hang are bounded lane by lane, so that one kind never starves another."""

    STATS = "statistics"
    OUTLINE = "statistics that no guest holds up"
    DETAILS = "details"
    INSIDE = "questions to guest agents"
    COMMAND = "commands"
    PROGRESS = "progress"


# Together below libvirtd's 20 workers (max_workers), each of which a call that hangs may hold.
MAX_HANGING: Final = {
    Lane.STATS: 5,
    Lane.OUTLINE: 1,
    Lane.DETAILS: 3,
    Lane.INSIDE: 2,
    Lane.COMMAND: 5,
    Lane.PROGRESS: 3,
}


class ConnectionLost(HypervisorUnavailable):
    """The connection broke under a call; on a new one it may work at once."""


def load_binding() -> Any:
    """Return libvirt-python, made ready; raises HypervisorUnavailable where the extra is not installed."""
    try:
        import libvirt
    except ImportError as error:
        raise HypervisorUnavailable("libvirt-python is not installed: install virtpilot[libvirt]") from error
    _make_ready(libvirt)
    return libvirt


@cache
def _make_ready(binding: Any) -> None:
    """Start libvirt's event loop, one for the process by its design: without it there is no keepalive."""
    # libvirt prints each error to standard error unless somebody listens; ours are raised.
    binding.registerErrorHandler(lambda _context, _error: None, None)
    binding.virEventRegisterDefaultImpl()
    threading.Thread(target=_serve_events, args=(binding,), name="libvirt-events", daemon=True).start()


def _serve_events(binding: Any) -> None:
    try:
        while True:
            binding.virEventRunDefaultImpl()
    except binding.libvirtError as error:
        log.error("libvirt's event loop has ended: lost connections are noticed late", error=str(error))


class _Task(Generic[T]):
    """One call's result to be; `left` once its deadline has passed, `over` once its thread is done with it.

    A bare lock wakes who waits at a third of what a Future takes.
    """

    left = False
    over = False

    def __init__(self) -> None:
        self._running = threading.Lock()
        self._running.acquire()
        self._value: T | None = None
        self._failure: BaseException | None = None

    def end(self, value: T | None, failure: BaseException | None) -> None:
        """Tell the result, or the error."""
        self._value, self._failure = value, failure
        self._running.release()

    def ends_within(self, wait_s: float) -> bool:
        """Wait, and return whether there is a result or an error."""
        return self._running.acquire(timeout=min(wait_s, threading.TIMEOUT_MAX))

    def result(self) -> T:
        """Return the result of a call that has ended, or raise its error."""
        if self._failure is not None:
            raise self._failure
        return self._value  # type: ignore[return-value] # where nothing failed it is there


def _wait(task: _Task[T], deadline_s: float, steps: Callable[[], int] | None) -> None:
    """Wait for the task, at most `deadline_s` seconds since its start or since the last step that was seen."""
    seen = 0
    while not task.ends_within(deadline_s) and steps is not None and (taken := steps()) != seen:
        seen = taken


_Inbox = SimpleQueue[Callable[[], bool] | None]


def _serve(inbox: _Inbox) -> None:
    """Work off what comes in, until a call that leaves its thread unfit for another, or None."""
    goes_on = True
    while goes_on and (call := inbox.get()) is not None:
        goes_on = call()
        del call  # what it brought would stay until the next one


class LibvirtLink:
    """The calls to the libvirt at `uri`, each with a thread to itself for `deadline_s` seconds at most.

    An idle connection has an idle thread: to start one costs more CPU time than all else in a call.
    """

    def __init__(self, uri: str, *, binding: Any, clock: Clock, deadline_s: float) -> None:
        self.binding = binding
        self.clock = clock
        self._uri = uri
        self._deadline_s = deadline_s
        self._lock = threading.Lock()
        self._idle: list[Any] = []
        self._waiting: list[_Inbox] = []  # threads that have nothing to do
        self._hanging: Counter[Lane] = Counter()
        self._failures = 0
        self._retry_at_ns: int | None = None
        self._closed = False
        self.losses = 0  # connections that broke, for those who remember what libvirt told

    def call(
        self,
        lane: Lane,
        work: Callable[[Any], T],
        meaning: Meaning = NO_MEANING,
        *,
        patience_s: float = math.inf,
        steps: Callable[[], int] | None = None,
    ) -> T:
        """Return `work(connection)`; done again on a new connection where the old one is lost: it must bear that.

        `meaning` maps libvirt's error codes to errors of ours beyond those that always hold; `patience_s` is a shorter
        deadline than the link's own, and holds from step to step where `steps` counts those of the work. Raises
        HypervisorError: HypervisorTimeout past the deadline, HypervisorUnavailable without a connection, GuestNotFound.
        """
        deadline_s = min(patience_s, self._deadline_s)
        try:
            return self._attempt(lane, work, meaning, deadline_s, steps)
        except ConnectionLost:
            return self._attempt(lane, work, meaning, deadline_s, steps)

    def crowded(self, lane: Lane) -> bool:
        """Return whether so many calls of a lane hang that no other is made."""
        with self._lock:
            return self._hanging[lane] >= MAX_HANGING[lane]

    def open_alone(self) -> Any:
        """Return a connection for the caller alone, who closes it; raises libvirt's own error."""
        return self.binding.open(self._uri)

    def close(self) -> None:
        """Let go of what is idle; calls that hang end by themselves, and their connections with them."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            for inbox in self._waiting:
                inbox.put(None)
            self._waiting.clear()
        closer = threading.Thread(target=self._shut_all, args=(idle,), name="libvirt-close", daemon=True)
        closer.start()
        closer.join(self._deadline_s)  # a stopped libvirtd would hold up a close for ever

    def _attempt(
        self,
        lane: Lane,
        work: Callable[[Any], T],
        meaning: Meaning,
        deadline_s: float,
        steps: Callable[[], int] | None,
    ) -> T:
        task: _Task[T] = _Task()
        with self._lock:
            if self._closed:
                raise HypervisorUnavailable("the connection to libvirt is closed")
            if self._hanging[lane] >= MAX_HANGING[lane]:
                raise HypervisorTimeout(f"{self._hanging[lane]} calls to libvirt hang already ({lane})")
            inbox = self._waiting.pop() if self._waiting else None
        if inbox is None:
            inbox = self._new_thread()
        inbox.put(lambda: self._run(inbox, task, lane, work, meaning))
        _wait(task, deadline_s, steps)
        with self._lock:
            if not task.over:
                task.left = True
                self._hanging[lane] += 1
        if task.left:
            raise HypervisorTimeout(f"no answer from libvirt within {deadline_s:g} s ({lane})")
        return task.result()

    def _new_thread(self) -> _Inbox:
        inbox: _Inbox = SimpleQueue()
        try:
            threading.Thread(target=_serve, args=(inbox,), name="libvirt-call", daemon=True).start()
        except RuntimeError as error:  # this machine has no thread to give
            raise HypervisorUnavailable(f"libvirt cannot be called: {error}") from error
        return inbox

    def _run(self, inbox: _Inbox, task: _Task[T], lane: Lane, work: Callable[[Any], T], meaning: Meaning) -> bool:
        """Do one call; returns whether the thread may be used again."""
        connection: Any = None
        value: T | None = None
        failure: BaseException | None = None
        try:
            connection = self._take()
            value = work(connection)
        except self.binding.libvirtError as error:
            failure = self._mapped(error, connection, meaning)
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
            failure = error
        kept = self._give_back(inbox, task, lane, connection)
        task.end(value, failure)
        if not kept and connection is not None:
            self._shut(connection)
        return kept

    def _give_back(self, inbox: _Inbox, task: _Task[T], lane: Lane, connection: Any) -> bool:
        """Return whether connection and thread are kept: before the result is told, so that the next call has them."""
        with self._lock:
            task.over = True
            if task.left:
                self._hanging[lane] -= 1
            usable = connection is not None and not task.left and not self._closed and self._alive(connection)
            if usable and len(self._idle) < _MAX_IDLE:
                self._idle.append(connection)
                self._waiting.append(inbox)
                return True
        return False

    def _take(self) -> Any:
        """Return an idle connection, or a new one."""
        dead = []
        try:
            with self._lock:
                while self._idle:
                    connection = self._idle.pop()
                    if self._alive(connection):
                        return connection
                    dead.append(connection)
                self.losses += len(dead)
            return self._open()
        finally:
            self._shut_all(dead)

    def _open(self) -> Any:
        with self._lock:
            if self._retry_at_ns is not None:
                wait_s = (self._retry_at_ns - self.clock.monotonic_ns()) / SECOND
                if wait_s > 0:
                    raise HypervisorUnavailable(f"libvirt cannot be reached; tried again in {wait_s:.1f} s")
        try:
            connection = self.binding.open(self._uri)
        except self.binding.libvirtError as error:
            self._not_opened(str(error))
            raise HypervisorUnavailable(str(error)) from error
        try:
            connection.setKeepAlive(_KEEPALIVE_S, _KEEPALIVE_COUNT)
        except self.binding.libvirtError as error:
            log.debug("no keepalive", uri=self._uri, error=str(error))  # a driver inside this process has none
        with self._lock:
            back, self._failures, self._retry_at_ns = self._failures > 0, 0, None
        if back:
            log.info("libvirt is back", uri=self._uri)
        return connection

    def _not_opened(self, why: str) -> None:
        with self._lock:
            first = self._failures == 0
            wait_s = min(_FIRST_WAIT_S * 2**self._failures, _LONGEST_WAIT_S)
            self._failures = min(self._failures + 1, 16)
            self._retry_at_ns = self.clock.monotonic_ns() + seconds(wait_s)
        if first:
            log.warning("libvirt cannot be reached", uri=self._uri, error=why)

    def _mapped(self, error: Any, connection: Any, meaning: Meaning) -> HypervisorError:
        """Return what an error of libvirt is to us; a broken connection is known by itself, whatever the code says.

        A migration's target that cannot be reached gives the codes of a lost connection over a sound one.
        """
        text, code = str(error), error.get_error_code()
        if connection is None or not self._alive(connection):
            with self._lock:
                self.losses += 1
            return ConnectionLost(text)
        if code == self.binding.VIR_ERR_NO_DOMAIN:
            return GuestNotFound(text)
        return meaning.get(code, HypervisorError)(text)

    def _alive(self, connection: Any) -> bool:
        try:
            return bool(connection.isAlive() == 1)
        except self.binding.libvirtError:
            return False

    def _shut_all(self, connections: Iterable[Any]) -> None:
        for connection in connections:
            self._shut(connection)

    def _shut(self, connection: Any) -> None:
        try:
            connection.close()
        except self.binding.libvirtError as error:
            log.debug("connection not closed in order", uri=self._uri, error=str(error))
