"""Each process's own health and counters, for Prometheus: /metrics and /healthz."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import msgspec
import structlog
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from virtpilot import __version__
from virtpilot.pipeline.exporter_options import ExporterOptions
from virtpilot.pipeline.web import Answer, Request, WebServer

log = structlog.get_logger(__name__)

Value = float | Mapping[str, float]
Family = CounterMetricFamily | GaugeMetricFamily


class _Watched(msgspec.Struct, frozen=True):
    name: str
    meaning: str
    kind: Literal["counter", "gauge"]
    read: Callable[[], Value]
    label: str


class Exporter(Collector):
    """Reads what is watched at the moment of the scrape; nothing is counted twice.

    Raises ConfigError where the address cannot be listened on.
    """

    def __init__(self, options: ExporterOptions) -> None:
        self._watched: dict[str, _Watched] = {}
        self._checks: dict[str, Callable[[], bool]] = {}
        self._unreadable: dict[str, int] = {}
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        self.watch("virtpilot_build_info", "The version that runs.", "gauge", lambda: {__version__: 1.0}, "version")
        self._server = WebServer("exporter", options.address, options.port, self._page) if options.port else None

    def watch(
        self, name: str, meaning: str, kind: Literal["counter", "gauge"], read: Callable[[], Value], label: str = ""
    ) -> None:
        """Export what `read` returns: a number, or numbers by the value of `label`."""
        if name in self._watched:
            raise ValueError(f"{name} is watched already")
        if (kind == "counter") != name.endswith("_total"):
            raise ValueError(f"{name}: counters end in _total, and nothing else does")
        self._watched[name] = _Watched(name, meaning, kind, read, label)

    def check(self, name: str, healthy: Callable[[], bool]) -> None:
        """Let /healthz depend on `healthy`."""
        self._checks[name] = healthy

    def collect(self) -> Iterable[Family]:
        """Read everything (prometheus-client's Collector); what cannot be read is left out and counted."""
        for item in list(self._watched.values()):
            family = self._read(item)
            if family is not None:
                yield family
        failures = dict(self._unreadable)
        meaning = "Times that a metric could not be read."
        yield _family(_Watched("virtpilot_exporter_unreadable_total", meaning, "counter", lambda: failures, "metric"))

    def _read(self, item: _Watched) -> Family | None:
        try:
            return _family(item)
        except Exception as error:  # noqa: BLE001 # another part's fault must not hide all other metrics
            first = item.name not in self._unreadable
            self._unreadable[item.name] = self._unreadable.get(item.name, 0) + 1
            if first:
                log.error("metric cannot be read", metric=item.name, error=repr(error))
            return None

    def metrics(self, accept: str = "") -> tuple[str, bytes]:
        """Return the page /metrics and its content type, in the format that the client accepts."""
        encode, content_type = choose_encoder(accept)
        return content_type, encode(self._registry)

    def health(self) -> tuple[bool, dict[str, bool]]:
        """Return whether all is well, and each check by name."""
        found = {name: self._passes(name, check) for name, check in list(self._checks.items())}
        return all(found.values()), found

    def _passes(self, name: str, check: Callable[[], bool]) -> bool:
        try:
            return bool(check())
        except Exception as error:  # noqa: BLE001 # a check that cannot be made has not passed
            log.error("health check failed", check=name, error=repr(error))
            return False

    def _page(self, asked: Request) -> Answer:
        if asked.method != "GET":
            return Answer(501, b"these pages are only read\n", "text/plain; charset=utf-8")
        match asked.path:
            case "/metrics":
                kind, page = self.metrics(asked.accept)
                return Answer(200, page, kind)
            case "/healthz":
                well, checks = self.health()
                return Answer(200 if well else 503, msgspec.json.encode({"healthy": well, "checks": checks}))
            case _:
                return Answer(404, b"/metrics and /healthz are here\n", "text/plain; charset=utf-8")

    @property
    def port(self) -> int:
        """The port that is listened on, 0 for none."""
        return self._server.port if self._server is not None else 0

    def close(self) -> None:
        """Stop listening."""
        server, self._server = self._server, None
        if server is not None:
            server.stop()


def _family(item: _Watched) -> Family:
    value = item.read()
    labels = [item.label] if item.label else []
    made: Family = (CounterMetricFamily if item.kind == "counter" else GaugeMetricFamily)(
        item.name, item.meaning, labels=labels
    )
    for label, number in value.items() if isinstance(value, Mapping) else [("", value)]:
        made.add_metric([label] if item.label else [], float(number))
    return made
