"""A real HTTP server that keeps what it is sent and answers as told."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec

from virtpilot.model import Kind, Signal, SignalState, Subject


class Listening(ThreadingHTTPServer):
    """Keeps the bodies of POSTs; `answers` are the statuses to give, the last one for ever."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, *answers: int, headers: dict[str, str] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers = list(answers) or [200]
        self.headers = headers or {}
        self.paths: list[str] = []
        self.tokens: list[str | None] = []
        self.bodies: list[Any] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Listening

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        answers = self.server.answers
        status = answers.pop(0) if len(answers) > 1 else answers[0]
        # Kept before the answer: whoever waits for the answer finds it here.
        self.server.paths.append(self.path)
        self.server.tokens.append(self.headers["Authorization"])
        self.server.bodies.append((status, msgspec.json.decode(body)))
        self.send_response(status)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b"because of this and that")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 # the base class's name
        """Be quiet."""


@contextlib.contextmanager
def listening(*answers: int, headers: dict[str, str] | None = None) -> Iterator[Listening]:
    """Give a server that serves in a thread of its own."""
    server = Listening(*answers, headers=headers)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def tarpit(drip: bytes = b"") -> Iterator[str]:
    """Give the URL of a server that takes connections and never answers, but for `drip` every 50 ms."""
    listener = socket.create_server(("127.0.0.1", 0))
    over = threading.Event()
    held: list[socket.socket] = []

    def serve() -> None:
        listener.settimeout(0.05)
        while not over.is_set():
            with contextlib.suppress(TimeoutError):
                held.append(listener.accept()[0])
            for client in held:
                with contextlib.suppress(OSError):
                    client.sendall(drip)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        over.set()
        thread.join()
        for client in [*held, listener]:
            client.close()


def signal(
    state: SignalState,
    previous: SignalState = SignalState.PENDING,
    *,
    rule: str = "vm-cpu-starved",
    guest: str = "6d1f8b3c-0000-4000-8000-000000000001",
    host: str = "kvm1",
    at_s: float = 1_795_000_000.25,
    notify: list[str] | None = None,
) -> Signal:
    """Return one transition of a rule on a guest."""
    subject = Subject(Kind.VM, guest, f"web-{guest[-1]}", host, {})
    return Signal(
        id=f"sg-{rule}-{guest[-4:]}-{state}-{at_s}",
        cause="kvm1/b/1",
        rule=rule,
        subject=subject,
        previous=previous,
        state=state,
        at_ns=round(at_s * 1e9),
        severity="warning",
        about="A guest waits for a physical CPU.",
        inputs={"cpu_steal_ratio": 0.31, "host.cpu_usage_ratio": 0.97},
        notify=notify or [],
    )
