"""The writer end to end, against raw HTTP with the same bodies and against influxdb-client's batches of `Point`s.

Real mosquitto, real VictoriaMetrics, a real writer process. The writer is stopped while the broker takes the messages,
so that publishing costs it nothing; it then runs from the first message it receives to the last it acknowledges.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Final

import msgspec
from influxdb_client.client.influxdb_client import InfluxDBClient
from influxdb_client.client.write.point import Point
from influxdb_client.client.write_api import WriteOptions

from bench.material import messages
from bench.measure import Figure, figure, interleaved, ratios, say
from tests.processes.running import Process, toml
from tests.services import Mosquitto, VictoriaMetrics, free_port, until
from tests.services import http as ask
from virtpilot.clock import SECOND, SystemClock, seconds
from virtpilot.lineprotocol import encode_lines
from virtpilot.model import Message, Sample, Stored
from virtpilot.pipeline.bus.mqtt import MqttBus, MqttOptions
from virtpilot.topics import BOOT_PROPERTY, SEQUENCE_PROPERTY, Topics

_CLUSTER: Final = "bench"
_MESSAGES: Final = 300
_HOSTS: Final = 10
_POINT_MESSAGES: Final = 2
_HOLD_S: Final = 1.0
_PATIENCE_S: Final = 60.0


class _Bodies:
    """Messages of some hosts, tick after tick, no time twice, all of the last hour."""

    def __init__(self) -> None:
        self.first_ns = self._now_ns = SystemClock().now_ns() - seconds(3600)
        self._hosts = messages(_HOSTS)

    def next(self, count: int) -> list[list[Sample]]:
        """Return the samples of so many messages."""
        found = []
        for number in range(count):
            host = self._hosts[number % _HOSTS]
            self._now_ns += 10**6
            found.append([Sample(one.measurement, one.tags, one.fields, self._now_ns) for one in host])
        return found


class _Chain:
    """Broker, store and writer, and what reaches the broker before the writer runs."""

    def __init__(self, broker: Mosquitto, store: VictoriaMetrics, folder: Path, ends: ExitStack) -> None:
        self.store = store
        self._topics = Topics(_CLUSTER)
        self._bus = ends.enter_context(closing(MqttBus(MqttOptions(port=broker.port), "bench-agent")))
        self._reported = 0
        self._sequence = 0
        self._bus.subscribe(self._topics.stored("+"))
        self._writer = _writer(broker, store, folder)
        ends.callback(self._writer.kill)
        self._writer.start().up()

    def run(self, payloads: list[bytes]) -> float:
        """Return the seconds from the first message that the writer receives to the last that it acknowledges."""
        before = self._acknowledged()
        with _stopped(self._writer.pid):
            for payload in payloads:
                self._publish(payload)
        began = perf_counter()
        goal = before + len(payloads)
        if not until(lambda: self._acknowledged() >= goal, _PATIENCE_S, 0.01):
            raise RuntimeError(f"the writer does not get on: {self._writer.output()[-2000:]}")
        return perf_counter() - began

    def _acknowledged(self) -> float:
        return self._writer.number("virtpilot_writer_messages_total")

    def _publish(self, payload: bytes) -> None:
        self._sequence += 1
        properties = {BOOT_PROPERTY: "b1", SEQUENCE_PROPERTY: str(self._sequence)}
        self._bus.publish(Message(self._topics.metrics("node-0"), payload, properties)).result(_PATIENCE_S)

    def await_reports(self) -> None:
        """Wait until every message is reported stored."""
        while self._reported < self._sequence:
            delivery = self._bus.receive(_PATIENCE_S)
            if delivery is None:
                raise RuntimeError("not all that is acknowledged is reported stored")
            report = msgspec.json.decode(delivery.message.payload, type=Stored)
            self._reported += sum(last - first + 1 for first, last in report.ranges)
            delivery.ack()


def measure(runs: int) -> dict[str, Figure]:
    """Measure values a second, wall time: one value is one field of one sample."""
    bodies = _Bodies()
    with ExitStack() as ends:
        folder = Path(ends.enter_context(tempfile.TemporaryDirectory(prefix="virtpilot-bench-")))
        broker, store = Mosquitto(folder / "broker"), VictoriaMetrics(folder / "store")
        for server in (broker, store):
            ends.callback(server.stop)
            server.start()
        chain = _Chain(broker, store, folder, ends)

        def through(way: Callable[[list[list[Sample]]], float], count: int) -> float:
            samples = bodies.next(count)
            values = sum(len(sample.fields) for message in samples for sample in message)
            return values / way(samples)

        rates = interleaved(
            runs,
            writer=lambda: through(
                lambda samples: chain.run([encode_lines(message) for message in samples]), _MESSAGES
            ),
            raw=lambda: through(lambda samples: _raw(store, [encode_lines(one) for one in samples]), _MESSAGES),
            points=lambda: through(lambda samples: _points(store, samples, _one_value), _POINT_MESSAGES),
            wide=lambda: through(lambda samples: _points(store, samples, _whole), _POINT_MESSAGES * 10),
        )
        chain.await_reports()
        _check(store, bodies.first_ns, sent=_MESSAGES * 2 * (runs + 1))
    return _figures(rates)


def _figures(rates: dict[str, list[float]]) -> dict[str, Figure]:
    middle = {f"{name}_values_per_s": median(values) for name, values in rates.items()}
    wide = median(ratios(rates["writer"], rates["wide"]))
    return {
        "writer_vs_raw_http": figure(
            ratios(rates["writer"], rates["raw"]),
            "x",
            "the same bodies posted one by one to the same store over one HTTP connection",
            at_least=0.6,
            measured=middle,
        ),
        "writer_vs_points": figure(
            ratios(rates["writer"], rates["points"]),
            "x",
            "influxdb-client's batching write API with a Point for each value, to the same store",
            at_least=20,
            measured={**middle, "against_points_of_40_fields": wide},
        ),
    }


def _writer(broker: Mosquitto, store: VictoriaMetrics, folder: Path) -> Process:
    port = free_port()
    config = folder / "writer.toml"
    options = {
        "cluster": _CLUSTER,
        "state_folder": str(folder / "writer"),
        "bus": {"port": broker.port},
        "store": {"url": store.url, "hold_s": _HOLD_S},
        "exporter": {"port": port},
        "log": {"level": "warning"},
    }
    config.write_text(toml(options))
    return Process("writer", config, port)


@contextmanager
def _stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def _raw(store: VictoriaMetrics, payloads: list[bytes]) -> float:
    with closing(http.client.HTTPConnection(store.host, store.port, timeout=_PATIENCE_S)) as connection:
        connection.connect()
        began = perf_counter()
        for payload in payloads:
            connection.request("POST", "/api/v2/write?org=o&bucket=b&precision=ns", payload)
            answer = connection.getresponse()
            answer.read()
            if answer.status != 204:
                raise RuntimeError(f"the store answers {answer.status}")
        return perf_counter() - began


def _points(store: VictoriaMetrics, samples: list[list[Sample]], points: Callable[[Sample], list[Any]]) -> float:
    with InfluxDBClient(url=store.url, token="", org="o") as client:
        failed = threading.Event()
        options = WriteOptions(batch_size=5000, flush_interval=1000)
        api = client.write_api(write_options=options, error_callback=lambda *_: failed.set())
        began = perf_counter()
        for message in samples:
            for sample in message:
                api.write(bucket="b", record=points(sample))
        api.close()
        if failed.is_set():
            raise RuntimeError("the store has not taken all")
        return perf_counter() - began


def _one_value(sample: Sample) -> list[Any]:
    return [_point(sample, {name: number}) for name, number in sample.fields.items()]


def _whole(sample: Sample) -> list[Any]:
    return [_point(sample, sample.fields)]


def _point(sample: Sample, fields: dict[str, int | float]) -> Any:
    document = {"measurement": sample.measurement, "tags": sample.tags, "fields": fields, "time": sample.time_ns}
    make: Any = Point.from_dict
    return make(document)


def _check(store: VictoriaMetrics, first_ns: int, sent: int) -> None:
    """Count in the store what was sent by the writer and raw: each message has one value of this guest's field."""
    span = {"start": str(first_ns // SECOND - 1), "end": str(first_ns // SECOND + 3600)}
    ask(f"{store.url}/internal/force_flush")
    query = {"match[]": 'vm_cpu_read_ratio{name="guest-0"}', **span}
    lines = ask(f"{store.url}/api/v1/export", query, timeout_s=_PATIENCE_S).splitlines()
    found = sum(len(json.loads(line)["values"]) for line in lines)
    say(f"the store has {found} values of one guest's field, {sent} were sent besides Points")
    if found < sent:
        raise RuntimeError("the store has not all that was sent")
