"""A threshold crossed, told to a webhook: this controller over a real broker, against Prometheus with Alertmanager.

Each change is on a host of its own and at a random moment, for both at once: the value is exposed for Prometheus to
scrape, then published as an agent publishes it. Prometheus scrapes and evaluates every second, Alertmanager waits for
nothing (group_wait 0).
"""

from __future__ import annotations

import json
import random
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median
from typing import Any, Final

from bench.measure import Figure, figure
from tests.processes.running import Process, Site
from tests.services import Alertmanager, Mosquitto, Prometheus, http, until
from virtpilot.clock import SystemClock
from virtpilot.lineprotocol import encode_lines
from virtpilot.model import Message, Sample
from virtpilot.pipeline.bus.mqtt import MqttBus, MqttOptions
from virtpilot.pipeline.process import LogOptions, set_up_logs
from virtpilot.topics import Topics

_CHANGES_A_RUN: Final = 5
_CLUSTER: Final = "bench"
_RULES: Final = """\
virtpilot: 1
rules:
  - {name: busy, on: host, when: cpu_usage_ratio > 50%}
"""
_THEIR_RULES: Final = """\
groups:
  - name: busy
    rules:
      - {alert: busy, expr: cpu_usage_ratio > 0.5}
"""


class Told:
    """An HTTP server that both call, that exposes the values, and that notes when it heard of which host."""

    def __init__(self, hosts: list[str]) -> None:
        self.values = dict.fromkeys(hosts, 0.1)
        self.heard: dict[tuple[str, str], int] = {}
        self.scraped = 0
        self._clock = SystemClock()
        told = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                told.scraped += 1
                page = "".join(f'cpu_usage_ratio{{host="{host}"}} {value}\n' for host, value in told.values.items())
                self._answer(page.encode())

            def do_POST(self) -> None:
                now_ns = told._clock.monotonic_ns()
                document = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                for host in _firing(document):
                    told.heard.setdefault((self.path, host), now_ns)
                self._answer(b"")

            def _answer(self, body: bytes) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_arguments: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()


def _firing(document: dict[str, Any]) -> list[str]:
    """Return the hosts of which a webhook call says that they fire: ours is a signal, theirs a list of alerts."""
    if "alerts" in document:
        return [one["labels"]["host"] for one in document["alerts"] if one["status"] == "firing"]
    return [document["subject"]["id"]] if document["state"] == "firing" else []


def measure(runs: int) -> dict[str, Figure]:
    """Measure both for five changes a run."""
    set_up_logs(LogOptions())
    hosts = [f"h{number:03}" for number in range(runs * _CHANGES_A_RUN + 1)]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        told = Told(hosts)
        stack.callback(told.close)
        port = stack.enter_context(_theirs(Path(folder), told))
        bus = stack.enter_context(_ours(Path(folder), told, hosts))
        assert until(lambda: told.scraped > 3, 20), "Prometheus scrapes"
        assert until(lambda: _knows(port, len(hosts)), 20), "Prometheus knows all"
        took = [_change(told, bus, host) for host in hosts][1:]
    ours, theirs = zip(*took, strict=True)
    parts = [slice(run * _CHANGES_A_RUN, (run + 1) * _CHANGES_A_RUN) for run in range(runs)]
    found = figure(
        [median(theirs[part]) / median(ours[part]) for part in parts],
        "x",
        "Prometheus (scrape 1 s, evaluation 1 s) and Alertmanager (group_wait 0), from value exposed to webhook",
        at_least=20,
        measured={
            "changes": len(took), "ours_median_ms": median(ours), "theirs_median_ms": median(theirs),
            "ours_max_ms": max(ours), "theirs_min_ms": min(theirs), "of_medians": median(theirs) / median(ours),
        },
    )  # fmt: skip
    return {"alert_vs_prometheus": found}


@contextmanager
def _theirs(folder: Path, told: Told) -> Iterator[str]:
    route = "{receiver: hook, group_by: [host], group_wait: 0s, group_interval: 1s, repeat_interval: 1h}"
    hook = f"{{name: hook, webhook_configs: [{{url: 'http://{told.address}/theirs', send_resolved: false}}]}}"
    manager = Alertmanager(folder / "alertmanager", f"route: {route}\nreceivers: [{hook}]\n")
    rules = folder / "rules.yml"
    rules.write_text(_THEIR_RULES)
    prometheus = Prometheus(
        folder / "prometheus",
        "global: {scrape_interval: 1s, evaluation_interval: 1s}\n"
        f"rule_files: ['{rules}']\n"
        f"alerting: {{alertmanagers: [{{static_configs: [{{targets: ['127.0.0.1:{manager.port}']}}]}}]}}\n"
        f"scrape_configs: [{{job_name: told, static_configs: [{{targets: ['{told.address}']}}]}}]\n",
    )
    with ExitStack() as stack:
        for server in (manager, prometheus):
            server.start()
            stack.callback(server.stop)
        yield prometheus.url


def _knows(url: str, count: int) -> bool:
    answer = json.loads(http(f"{url}/api/v1/query", {"query": "count(cpu_usage_ratio)"}))
    found = answer["data"]["result"]
    return bool(found) and int(found[0]["value"][1]) == count


@contextmanager
def _ours(folder: Path, told: Told, hosts: list[str]) -> Iterator[MqttBus]:
    rules = folder / "rules.yaml"
    rules.write_text(_RULES)
    with ExitStack() as stack:
        broker = Mosquitto(folder / "broker")
        broker.start()
        stack.callback(broker.stop)
        site = Site(folder, _CLUSTER, broker.port)
        stack.callback(site.close)
        target = {"name": "hook", "kind": "webhook", "url": f"http://{told.address}/ours"}
        controller = _with_target(site, rules, target)
        controller.start().up()
        bus = MqttBus(MqttOptions(port=broker.port), "bench-agent")
        stack.callback(bus.close)
        assert until(lambda: bus.generation)
        for host in hosts:
            _publish(bus, host, 0.1)
        controller.reaches("virtpilot_controller_samples_total", len(hosts))
        yield bus


def _with_target(site: Site, rules: Path, target: dict[str, str]) -> Process:
    controller = site.process("controller", rules={"paths": [str(rules)]}, commands=site.keys())
    lines = [f"{key} = {json.dumps(value)}" for key, value in target.items()]
    with controller.config.open("a") as config:
        config.write("\n[[alerts.targets]]\n" + "\n".join(lines) + "\n")
    return controller


def _publish(bus: MqttBus, host: str, value: float) -> None:
    tags = {"cluster": _CLUSTER, "host": host}
    sample = Sample("host", tags, {"cpu_usage_ratio": value}, SystemClock().now_ns())
    bus.publish(Message(Topics(_CLUSTER).metrics(host), encode_lines([sample]))).result(10)


def _change(told: Told, bus: MqttBus, host: str) -> tuple[float, float]:
    """Let a host become busy at a random moment; returns how long (ms) it took ours and theirs to call."""
    clock = SystemClock()
    threading.Event().wait(random.uniform(0.2, 1.2))  # noqa: S311 - moments, not secrets
    exposed_ns = clock.monotonic_ns()
    told.values[host] = 0.9
    published_ns = clock.monotonic_ns()
    _publish(bus, host, 0.9)
    assert until(lambda: {("/ours", host), ("/theirs", host)} <= told.heard.keys(), 20, 0.005), host
    return (told.heard["/ours", host] - published_ns) / 1e6, (told.heard["/theirs", host] - exposed_ns) / 1e6
