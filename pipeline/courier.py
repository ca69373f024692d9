"""A thread that takes JSON to one HTTP address: bounded queue, tried again until taken, a hard end to each attempt."""

from __future__ import annotations

import contextlib
import http.client
import io
import socket
import ssl
import threading
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import urlsplit

import msgspec
import structlog

from virtpilot.clock import SECOND, Clock, seconds
from virtpilot.pipeline.backoff import Backoff

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

log = structlog.get_logger(__name__)

_MIN_WAIT_S: Final = 0.5
_MAX_WAIT_S: Final = 30.0
_MAX_ANSWER: Final = 2048
_MAX_LIST: Final = 100
_TRY_AGAIN: Final = frozenset({408, 425, 429})


class Parcel(msgspec.Struct, frozen=True):
    """One JSON document; a newer one of the same key takes the place of one that still waits."""

    key: str
    body: bytes


class Courier:
    """Delivers parcels to one address in order.

    With `as_list` up to a hundred go in one JSON array. What the target refuses (any answer but 2xx, 5xx, 408, 425 and
    429; redirects are not followed) is dropped, all else is tried again with growing waits. `sent`, `failures`
    (attempts) and `dropped` count.
    """

    def __init__(
        self,
        name: str,
        url: str,
        *,
        timeout_s: float,
        limit: int,
        clock: Clock,
        as_list: bool = False,
        token: str | None = None,
    ) -> None:
        self.name = name
        self.sent = 0
        self.failures = 0
        self.dropped = 0
        self._url = url
        self._timeout_s = timeout_s
        self._limit = limit
        self._clock = clock
        self._token = token
        self._batch_size = _MAX_LIST if as_list else 1
        self._as_list = as_list
        self._queue: dict[str, Parcel] = {}
        self._change = threading.Condition()
        self._finishing = threading.Event()
        self._waits = Backoff(_MIN_WAIT_S, _MAX_WAIT_S)
        self._complained = False
        self._thread = threading.Thread(target=self._run, name=f"courier-{name}", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many parcels wait."""
        return len(self._queue)

    def put(self, parcel: Parcel) -> None:
        """Queue a parcel, at once; the oldest one is dropped when too many wait."""
        with self._change:
            self._queue[parcel.key] = parcel
            self._shorten()
            self._change.notify()

    def finish(self) -> None:
        """Try what waits once more, then end."""
        self._finishing.set()
        with self._change:
            self._change.notify()

    def join(self, timeout_s: float) -> bool:
        """Wait for the end after `finish`; False when the target still holds it up (the process ends all the same)."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _shorten(self) -> None:
        while len(self._queue) > self._limit:
            del self._queue[next(iter(self._queue))]
            self.dropped += 1

    def _run(self) -> None:
        while batch := self._take():
            delivered = self._deliver(batch)
            if not delivered and self._finishing.is_set():
                return
            if not delivered:
                self._finishing.wait(self._waits.next_s())

    def _take(self) -> list[Parcel]:
        """Wait for parcels and return the oldest; none at the end."""
        with self._change:
            self._change.wait_for(lambda: self._queue or self._finishing.is_set())
            keys = list(self._queue)[: self._batch_size]
            return [self._queue.pop(key) for key in keys]

    def _give_back(self, batch: list[Parcel]) -> None:
        """Put undelivered parcels in front again, but for those that a newer one has replaced meanwhile."""
        with self._change:
            returned = {parcel.key: parcel for parcel in batch}
            self._queue = returned | self._queue
            self._shorten()

    def _deliver(self, batch: list[Parcel]) -> bool:
        """Post once; return whether the batch is off our hands: taken, or refused for good."""
        bodies = [parcel.body for parcel in batch]
        body = b"[" + b",".join(bodies) + b"]" if self._as_list else bodies[0]
        try:
            status, answer = post_json(self._url, body, self._timeout_s, self._clock, self._token)
        except (
            OSError,
            ValueError,
            http.client.HTTPException,
        ) as error:  # ValueError: a host name that DNS cannot hold
            status, answer = 0, f"{type(error).__name__}: {error}"
        if 200 <= status < 300:
            self._succeeded(len(batch))
            return True
        self.failures += 1
        if status == 0 or status >= 500 or status in _TRY_AGAIN:
            self._complain(status, answer)
            self._give_back(batch)
            return False
        self.dropped += len(batch)
        log.error("alert target refuses", target=self.name, status=status, answer=answer, dropped=len(batch))
        return True

    def _succeeded(self, count: int) -> None:
        self.sent += count
        self._waits.reset()
        if self._complained:
            log.info("alert target takes alerts again", target=self.name)
        self._complained = False

    def _complain(self, status: int, answer: str) -> None:
        """Log once per outage; the counters tell the rest."""
        if not self._complained:
            log.warning("alert target does not take alerts; trying on", target=self.name, status=status, answer=answer)
        self._complained = True


def post_json(url: str, body: bytes, timeout_s: float, clock: Clock, token: str | None = None) -> tuple[int, str]:
    """Post once and return the status and the answer's beginning; raises OSError, HTTPException or ValueError.

    A `token` goes with it as the bearer's. The deadline holds for the whole answer, also of a server that sends a byte
    now and then.
    """
    parts = urlsplit(url)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    headers = {"Content-Type": "application/json", "Connection": "close"}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    deadline_ns = clock.monotonic_ns() + seconds(timeout_s)
    connection = _connection(parts.scheme, parts.hostname or "", parts.port, timeout_s)
    try:
        connection.request("POST", path, body, headers)
        limited = _UntilDeadline(connection.sock, deadline_ns, clock)
        # HTTPResponse needs no more of a socket than makefile()
        response = http.client.HTTPResponse(cast("socket.socket", limited), method="POST")
        with response:
            response.begin()
            answer = b""
            if response.status >= 300:
                # The status is what counts; the reason is for the log, if it comes.
                with contextlib.suppress(OSError, http.client.HTTPException):
                    answer = response.read(_MAX_ANSWER)
            return response.status, answer.decode(errors="replace").strip()
    finally:
        connection.close()


def _connection(scheme: str, host: str, port: int | None, timeout_s: float) -> http.client.HTTPConnection:
    if scheme == "https":
        return http.client.HTTPSConnection(host, port, timeout=timeout_s, context=ssl.create_default_context())
    return http.client.HTTPConnection(host, port, timeout=timeout_s)


class _UntilDeadline(io.RawIOBase):
    """Reads a socket, each time with no more patience than is left."""

    def __init__(self, sock: socket.socket, deadline_ns: int, clock: Clock) -> None:
        super().__init__()
        self._socket = sock
        self._deadline_ns = deadline_ns
        self._clock = clock

    def makefile(self, *_args: Any, **_kwargs: Any) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        left_s = (self._deadline_ns - self._clock.monotonic_ns()) / SECOND
        if left_s <= 0:
            raise TimeoutError("no whole answer in time")
        self._socket.settimeout(left_s)
        return self._socket.recv_into(buffer)
