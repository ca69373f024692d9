"""A small HTTP server for a process's own pages: bounded in clients, in time and in what a client may send."""

from __future__ import annotations

import socketserver
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from socket import AF_INET, AF_INET6, SHUT_RDWR
from typing import Any, ClassVar, Final

import msgspec
import structlog

from virtpilot.errors import ConfigError, Problem

log = structlog.get_logger(__name__)

MAX_BODY: Final = 64 * 1024
_MAX_CLIENTS: Final = 16
_CLIENT_S: Final = 10.0


class Request(msgspec.Struct, frozen=True):
    """What a client asks: `path` without its query."""

    method: str
    path: str
    body: bytes = b""
    accept: str = ""
    authorization: str = ""


class Answer(msgspec.Struct, frozen=True):
    """What it is told."""

    status: int
    body: bytes
    kind: str = "application/json"


class WebServer(socketserver.ThreadingMixIn, HTTPServer):
    """Answers in threads of its own; more than 16 clients at once are turned away.

    Raises ConfigError, about the config's `section`, where the address cannot be listened on.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 2 * _MAX_CLIENTS  # the default of 5 makes a burst of clients wait for a second

    def __init__(self, section: str, address: str, port: int, answer: Callable[[Request], Answer]) -> None:
        self.answer = answer
        self.address_family = AF_INET6 if ":" in address else AF_INET
        self._free = threading.BoundedSemaphore(_MAX_CLIENTS)
        try:
            super().__init__((address, port), _Handler)
        except OSError as error:
            message = f"cannot listen on {address}:{port}: {error.strerror}"
            raise ConfigError([Problem(f"[{section}]", 0, 0, message)]) from None
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._serve, name=section, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        # serve_forever would look for the end ten times a second, and each time take its turn from who calculates.
        while not self._ending.is_set():
            self.handle_request()

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return int(self.server_address[1])

    def server_bind(self) -> None:
        """Bind without HTTPServer's reverse lookup of the address: a dead DNS must not hold up a start."""
        socketserver.TCPServer.server_bind(self)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Turn a client away where there are enough."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one client."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, *_request: object) -> None:
        """Log what is our own fault; a client that has gone before its answer is not."""
        error = sys.exception()
        if not isinstance(error, OSError):
            log.error("page failed", error=repr(error))

    def stop(self) -> None:
        """Stop listening."""
        self._ending.set()
        # Whoever waits for a client is told so: there comes none.
        self.socket.shutdown(SHUT_RDWR)
        self._thread.join()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    timeout: ClassVar[float] = _CLIENT_S  # a client that sends nothing holds a thread no longer
    server: WebServer

    def _serve(self) -> None:
        body = self._body()
        if body is None:
            self._tell(Answer(413, b'{"error":"a body of 64 KiB at most, its length told"}'))
            return
        headers = self.headers
        asked = Request(
            self.command,
            self.path.partition("?")[0],
            body,
            headers.get("Accept", ""),
            headers.get("Authorization", ""),
        )
        self._tell(self.server.answer(asked))

    do_GET = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815 - the base class's names

    def _body(self) -> bytes | None:
        """Return what the client sends, None where that is too much or of no known length."""
        length = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers or not length.isascii() or not length.isdigit():
            return None
        return self.rfile.read(int(length)) if len(length) <= len(str(MAX_BODY)) and int(length) <= MAX_BODY else None

    def _tell(self, answer: Answer) -> None:
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.kind)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)

    def version_string(self) -> str:
        return "virtpilot"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 # the base class's name
        """Say nothing: a scrape every few seconds is no news."""
