"""Each process's own health and counters, for Prometheus: /metrics and /healthz."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Annotated, ClassVar, Final, Literal

import msgspec
from msgspec import Meta
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from virtpilot.errors import ConfigError, Problem

Value = float | Mapping[str, float]
_CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class ExporterOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where this process tells of itself."""

    address: Annotated[str, Meta(description="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, Meta(description="Port for /metrics and /healthz; 0 for none.", ge=0, le=65535)] = 0


class _Watched(msgspec.Struct, frozen=True):
    name: str
    meaning: str
    kind: Literal["counter", "gauge"]
    read: Callable[[], Value]
    label: str


class Exporter(Collector):
    """Reads what is watched at the moment of the scrape; nothing is counted twice."""

    def __init__(self, options: ExporterOptions) -> None:
        self._watched: list[_Watched] = []
        self._checks: dict[str, Callable[[], bool]] = {}
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._server: ThreadingHTTPServer | None = None
        if options.port:
            self._server = _serve(options, self._page)

    def watch(
        self, name: str, meaning: str, kind: Literal["counter", "gauge"], read: Callable[[], Value], label: str = ""
    ) -> None:
        """Export what `read` returns: a number, or numbers by the value of `label`."""
        self._watched.append(_Watched(name, meaning, kind, read, label))

    def check(self, name: str, healthy: Callable[[], bool]) -> None:
        """Let /healthz depend on `healthy`."""
        self._checks[name] = healthy

    def collect(self) -> Iterable[CounterMetricFamily | GaugeMetricFamily]:
        """Read everything (prometheus-client's Collector)."""
        for item in self._watched:
            family = CounterMetricFamily if item.kind == "counter" else GaugeMetricFamily
            value = item.read()
            made = family(item.name, item.meaning, labels=[item.label] if item.label else [])
            for label, number in value.items() if isinstance(value, Mapping) else [("", value)]:
                made.add_metric([label] if item.label else [], number)
            yield made

    def metrics(self) -> bytes:
        """Return the page /metrics."""
        return generate_latest(self._registry)

    def health(self) -> tuple[bool, dict[str, bool]]:
        """Return whether all is well, and each check by name."""
        found = {name: bool(check()) for name, check in self._checks.items()}
        return all(found.values()), found

    def _page(self, path: str) -> tuple[int, str, bytes]:
        match path.partition("?")[0]:
            case "/metrics":
                return 200, _CONTENT_TYPE, self.metrics()
            case "/healthz":
                well, checks = self.health()
                return (
                    200 if well else 503,
                    "application/json",
                    msgspec.json.encode({"healthy": well, "checks": checks}),
                )
            case _:
                return 404, "text/plain", b"/metrics and /healthz are here\n"

    @property
    def port(self) -> int:
        """The port that is listened on, 0 for none."""
        return int(self._server.server_address[1]) if self._server is not None else 0

    def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


def _serve(options: ExporterOptions, page: Callable[[str], tuple[int, str, bytes]]) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        timeout: ClassVar[float] = 10.0  # a client that sends nothing holds a thread no longer

        def do_GET(self) -> None:
            status, kind, body = page(self.path)
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            """Say nothing: a scrape every few seconds is no news."""

    try:
        server = ThreadingHTTPServer((options.address, options.port), Handler)
    except OSError as error:
        message = f"cannot listen on {options.address}:{options.port}: {error.strerror}"
        raise ConfigError([Problem("[exporter]", 0, 0, message)]) from None
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.2}, name="exporter", daemon=True).start()
    return server
