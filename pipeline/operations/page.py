"""The queue over HTTP: backups and maintenance are announced here, and the policy is changed.

    GET    /operations        all that waits or runs, with the times foreseen: of what runs and of the first that wait
    POST   /operations        announce work: {"id", "takes_s", "guest" or "host", …}; the same again is asked about
    GET    /operations/ID     how it stands: do it while it is `running`, hold while it is `waiting` or `paused`
    DELETE /operations/ID     it has ended
    GET    /policy            the policy in force
    PUT    /policy            {"policy": "shortest-job"}; {"policy": null} for the config's

Each request bears the token of the config (RFC 6750). Requests are handed to the controller's own thread: what it knows
is changed by nobody else.
"""

from __future__ import annotations

import hmac
import queue
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NoAnswer
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta

from virtpilot.clock import SECOND
from virtpilot.errors import ConfigError, Problem
from virtpilot.pipeline.operations.announced import Announced, Announcement
from virtpilot.pipeline.operations.desk import WORK, Desk
from virtpilot.pipeline.web import Answer, Request, WebServer
from virtpilot.planner.scheduling import Run, SchedulingPolicy

_ANSWER_S: Final = 5.0
_MAX_WAITING: Final = 64
_MIN_TOKEN: Final = 16
T = TypeVar("T")

Located = Callable[[Announcement], tuple[str, str]]
"""Gives the host and the guest's UUID of announced work; raises LookupError with the reason."""


class PageOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where backups and maintenance are announced."""

    address: Annotated[str, Meta(description="Address to listen on.", min_length=1)] = "127.0.0.1"
    port: Annotated[int, Meta(description="Port for announcements over HTTP; 0 for none.", ge=0, le=65535)] = 0
    token_file: Annotated[
        str, Meta(description="A file with the token that each request must bear; needed where there is a port.")
    ] = ""


class Choice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Another policy."""

    policy: SchedulingPolicy | None


class Asked:
    """A request on its way from a client's thread to the controller's."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.answer: Future[Answer] = Future()

    def waits(self) -> bool:
        """Tell whether somebody still waits for the answer; from now on it can not be called off."""
        return self.answer.set_running_or_notify_cancel()

    def tell(self, answer: Answer) -> None:
        """Give the answer."""
        self.answer.set_result(answer)


class OperationsPage:
    """Takes requests in threads of its own, and answers them when the controller comes by.

    Raises ConfigError where it cannot listen, or has no token.
    """

    def __init__(self, options: PageOptions, desk: Desk, located: Located, *, answer_s: float = _ANSWER_S) -> None:
        self._desk = desk
        self._located = located
        self._answer_s = answer_s
        self._asked: queue.Queue[Asked] = queue.Queue(_MAX_WAITING)
        self._token = b""
        self._server: WebServer | None = None
        if options.port:
            self._token = _token(options.token_file)
            self._server = WebServer("operations", options.address, options.port, self._hand_over)

    @property
    def port(self) -> int:
        """The port that is listened on, 0 for none."""
        return self._server.port if self._server is not None else 0

    def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.stop()
            self._server = None

    def _hand_over(self, request: Request) -> Answer:
        """Give a request to the controller's thread and wait for what it says; runs in a client's thread."""
        scheme, _blank, token = request.authorization.partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(token.strip().encode(), self._token):
            return _said(401, "the token is missing or wrong")
        asked = Asked(request)
        try:
            self._asked.put_nowait(asked)
            return asked.answer.result(self._answer_s)
        except (queue.Full, NoAnswer):
            asked.answer.cancel()
            return _said(503, "the controller has no time just now; try again")

    def next(self) -> Asked | None:
        """Return what somebody asks and still waits for; the controller's thread answers it."""
        while not self._asked.empty():
            asked = self._asked.get_nowait()
            if asked.waits():
                return asked
        return None

    def answer(self, request: Request, now_ns: int) -> Answer:
        """Answer one request."""
        match (request.method, *request.path.strip("/").split("/")):
            case (method, "operations"):
                return self._on_all(method, request.body, now_ns)
            case (method, "operations", work):
                return self._on_one(method, work, now_ns)
            case ("GET", "policy"):
                return _json(200, {"policy": self._desk.policy})
            case ("PUT", "policy"):
                return self._choose(request.body)
        return _NOTHING

    def _on_all(self, method: str, body: bytes, now_ns: int) -> Answer:
        match method:
            case "GET":
                return _json(200, self._all(now_ns))
            case "POST":
                return self._announce(body, now_ns)
        return _NOTHING

    def _on_one(self, method: str, work: str, now_ns: int) -> Answer:
        known: Announced | None = None
        match method:
            case "GET":
                known = self._desk.heard(work, now_ns)
            case "DELETE":
                known = self._desk.ended(work)
            case _:
                return _NOTHING
        return _json(200, _told(known, None, now_ns)) if known is not None else _unknown(work)

    def _announce(self, body: bytes, now_ns: int) -> Answer:
        work = _read(body, Announcement)
        if isinstance(work, Answer):
            return work
        try:
            host, guest = self._located(work)
        except LookupError as error:
            return _said(422, str(error.args[0]))
        known = self._desk.announce(work, host, guest, now_ns)
        if known is None:
            return _said(503, "too many announcements wait already")
        if known.work != work:
            return _said(409, f"other work was announced as {work.id}, and has not ended")
        return _json(200, _told(known, None, now_ns))

    def _choose(self, body: bytes) -> Answer:
        choice = _read(body, Choice)
        if isinstance(choice, Answer):
            return choice
        self._desk.choose(choice.policy)
        return _json(200, {"policy": self._desk.policy})

    def _all(self, now_ns: int) -> dict[str, Any]:
        foreseen = self._desk.foresee(now_ns)
        found = [_told(one, foreseen.get(WORK + one.work.id), now_ns) for one in self._desk.announced()]
        for move in self._desk.moves():
            told = {"id": move.id, "kind": "move", "takes_s": move.takes_s}
            found.append(told | _times(foreseen.get(move.id), now_ns))
        left_out = len(found) - len(foreseen)
        return {"policy": self._desk.policy, "operations": found, "not_foreseen": left_out}


def _told(one: Announced, run: Run | None, now_ns: int) -> dict[str, Any]:
    work = one.work
    return {
        "id": work.id,
        "kind": work.kind,
        "host": one.host,
        "guest": one.guest,
        "standing": one.standing,
        "takes_s": work.takes_s,
        "done_s": round(one.done_s(now_ns), 3),
        "priority": work.priority,
        **_times(run, now_ns),
    }


def _times(run: Run | None, now_ns: int) -> dict[str, float]:
    """Return when it is foreseen to begin and to end, in seconds from now; nothing where that is not foreseen."""
    if run is None:
        return {}
    now_s = now_ns / SECOND
    return {"begins_in_s": round(max(run.begun_s - now_s, 0.0), 3), "ends_in_s": round(run.ended_s - now_s, 3)}


def _token(path: str) -> bytes:
    if not path:
        raise ConfigError([Problem("[operations]", 0, 0, "a port needs a `token_file`: anybody could announce work")])
    try:
        token = Path(path).read_bytes().strip()
    except OSError as error:
        raise ConfigError([Problem(path, 0, 0, f"the token cannot be read: {error.strerror}")]) from None
    if len(token) < _MIN_TOKEN:
        raise ConfigError([Problem(path, 0, 0, f"a token has {_MIN_TOKEN} characters at least")])
    return token


def _read(body: bytes, type_: type[T]) -> T | Answer:
    try:
        return msgspec.json.decode(body, type=type_)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return _said(400, str(error))


def _unknown(work: str) -> Answer:
    return _said(404, f"{work[:64]} is not known: it has ended, or was never announced")


def _said(status: int, reason: str) -> Answer:
    return _json(status, {"error": reason})


def _json(status: int, document: object) -> Answer:
    return Answer(status, msgspec.json.encode(document) + b"\n")


_NOTHING: Final = _said(404, "there is nothing at this path, or not by this method")
