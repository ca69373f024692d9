"""An HTTP server that speaks InfluxDB 2's documented write API, and can be told to answer otherwise.

https://docs.influxdata.com/influxdb/v2/api/v2/#operation/PostWrite
"""

from __future__ import annotations

import gzip
import json
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from virtpilot.lineprotocol import parse

TOKEN, ORG, BUCKET = "s3cret", "o", "k"


class Answer:
    """What to answer once: a status with what belongs to it; 0 resets the connection, `hang` keeps it waiting."""

    def __init__(
        self, status: int, body: Any = None, headers: dict[str, str] | None = None, hang: bool = False
    ) -> None:
        self.status = status
        self.body = b"" if body is None else body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.headers = headers or {}
        self.hang = hang


class InfluxDB2:
    """Its state: lines by their text, as points are by series and time; requests seen; answers to give first."""

    def __init__(self) -> None:
        self.url = ""
        self.lines: dict[bytes, int] = {}
        self.requests: list[tuple[str, int]] = []
        self.answers: deque[Answer] = deque()
        self.oldest_ns = 0
        self.max_bytes = 50_000_000
        self.let_go = threading.Event()

    def answer(self, path: str, headers: dict[str, str], body: bytes) -> Answer:
        """Return the answer to a write, having taken what is to be taken."""
        asked = urlsplit(path)
        query = {key: values[0] for key, values in parse_qs(asked.query).items()}
        self.requests.append((path, len(body)))
        if self.answers:
            return self.answers.popleft()
        if headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        return self._objection(asked.path, headers, query, len(body)) or self._take(body)

    def _objection(self, path: str, headers: dict[str, str], query: dict[str, str], size: int) -> Answer | None:
        wrong = {
            (401, "unauthorized access"): headers.get("Authorization") != f"Token {TOKEN}",
            (404, f'organization name "{query.get("org")}" not found'): query.get("org") != ORG,
            (404, f'bucket "{query.get("bucket")}" not found'): query.get("bucket") != BUCKET,
            (404, "path not found"): path != "/api/v2/write",
            (400, "precision is not ns"): query.get("precision", "ns") != "ns",
            (413, "cannot read data: points batch is too large"): size > self.max_bytes,
        }
        found = [error for error, is_so in wrong.items() if is_so]
        return Answer(found[0][0], {"code": "invalid", "message": found[0][1]}) if found else None

    def _take(self, body: bytes) -> Answer:
        """Take the good lines; name the malformed ones, only count those that are too old."""
        malformed = []
        old = 0
        for line in points(body):
            if bad := parse(line).bad:
                malformed.append((line, bad[0].reason))
            elif int(line.rpartition(b" ")[2]) < self.oldest_ns:
                old += 1
            else:
                self.lines[line] = self.lines.get(line, 0) + 1
        if malformed:
            said = "\n".join(f"unable to parse '{line.decode(errors='replace')}': {why}" for line, why in malformed)
            return Answer(400, {"code": "invalid", "message": said})
        if old:
            said = f"partial write: points beyond retention policy dropped={old}"
            return Answer(422, {"code": "unprocessable entity", "message": said})
        return Answer(204)


def points(body: bytes) -> Iterator[bytes]:
    """Yield a body's lines as InfluxDB parts them: neither a string's line feed nor one behind a backslash ends any."""
    begin = at = 0
    in_fields = in_string = False
    while at < len(body):
        byte = body[at : at + 1]
        if byte == b"\\" and at + 2 < len(body):
            at += 2
            continue
        in_fields = in_fields or byte == b" "
        in_string ^= byte == b'"' and in_fields
        at += 1
        if byte == b"\n" and not in_string:
            yield from filter(None, [body[begin : at - 1]])
            begin, in_fields = at, False
    yield from filter(None, [body[begin:]])


@contextmanager
def influxdb2() -> Iterator[InfluxDB2]:
    """Serve one on a free loopback port."""
    double = InfluxDB2()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            answer = double.answer(self.path, dict(self.headers), body)
            if answer.hang:
                double.let_go.wait(30)
            if not answer.status or answer.hang:
                self.close_connection = True
                return
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    double.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield double
    finally:
        double.let_go.set()
        server.shutdown()
        thread.join()
        server.server_close()
