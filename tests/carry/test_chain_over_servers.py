"""The real chain under real faults: uplink → mosquitto → writer → VictoriaMetrics, every sample counted afterwards."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest

from tests.conftest import MakeMosquitto, MakeVictoriaMetrics
from tests.services import Mosquitto, VictoriaMetrics, until
from virtpilot.clock import SECOND, SystemClock, seconds
from virtpilot.lineprotocol import encode_lines
from virtpilot.model import Sample, Stored
from virtpilot.pipeline.bus.mqtt import MqttBus, MqttOptions
from virtpilot.pipeline.spool import Spool, SpoolOptions
from virtpilot.pipeline.uplink import Uplink
from virtpilot.topics import Topics

pytestmark = pytest.mark.server

CLUSTER = "carry"
TOPICS = Topics(CLUSTER)
ROOT = Path(__file__).parents[2]


class Agent(threading.Thread):
    """Sends one numbered sample each tenth of a second through a real uplink, and trims its spool by the reports."""

    def __init__(self, folder: Path, broker: Mosquitto, host: str, resend_after_s: float) -> None:
        super().__init__(name=f"agent-{host}", daemon=True)
        self.host = host
        self.sent = 0
        self.clock = SystemClock()
        self.bus = MqttBus(MqttOptions(port=broker.port, reconnect_max_s=1.0), f"agent-{host}")
        self.bus.subscribe(TOPICS.stored(host))
        options = SpoolOptions(resend_after_s=resend_after_s)
        self.uplink = Uplink(self.bus, Spool(folder / host, "boot1", options), TOPICS, host, self.clock)
        self.quiet = threading.Event()
        self.end = threading.Event()

    def run(self) -> None:
        while not self.end.is_set():
            now_ns = self.clock.now_ns()
            if not self.quiet.is_set():
                sample = Sample("carry", {"cluster": CLUSTER, "host": self.host}, {"number": self.sent}, now_ns)
                self.uplink.send(encode_lines([sample]), now_ns)
                self.sent += 1
            self.uplink.tick()
            self._listen(now_ns + seconds(0.1))
        self.bus.close()
        self.uplink.close()

    def _listen(self, until_ns: int) -> None:
        while (left_ns := until_ns - self.clock.now_ns()) > 0:
            delivery = self.bus.receive(left_ns / SECOND)
            if delivery is not None:
                self.uplink.on_stored(msgspec.json.decode(delivery.message.payload, type=Stored))
                delivery.ack()


class Chain:
    """The servers, two agents, and writers as processes that can be killed."""

    def __init__(self, folder: Path, broker: Mosquitto, store: VictoriaMetrics, hold_s: float, resend_s: float) -> None:
        self.folder = folder
        self.broker = broker
        self.store = store
        self.hold_s = hold_s
        self.start_ns = SystemClock().now_ns()
        self.agents = [Agent(folder, broker, host, resend_s) for host in ("h1", "h2")]
        self.writers: list[subprocess.Popen[bytes]] = []

    def start_writer(self, name: str) -> subprocess.Popen[bytes]:
        arguments = [str(self.broker.port), self.store.url, CLUSTER, name, str(self.hold_s), str(self.folder / "dead")]
        with (self.folder / f"{name}.log").open("ab") as log:
            writer = subprocess.Popen(
                [sys.executable, "-m", "tests.carry.writer_process", *arguments], cwd=ROOT, stdout=log, stderr=log
            )
        self.writers.append(writer)
        return writer

    def pass_time(self, for_s: float) -> None:
        assert not until(lambda: False, for_s, every_s=0.1)

    def reported(self) -> int:
        return sum(agent.sent - agent.uplink.pending for agent in self.agents)

    def finish(self, within_s: float) -> None:
        """Stop measuring and wait until everything is reported stored."""
        for agent in self.agents:
            agent.quiet.set()
        empty = until(lambda: all(agent.uplink.pending == 0 for agent in self.agents), within_s, every_s=0.2)
        assert empty, {agent.host: agent.uplink.pending for agent in self.agents}

    def numbers(self, host: str) -> list[int]:
        now_s = SystemClock().now_ns() / SECOND
        match = f'carry_number{{host="{host}"}}'
        rows = self.store.export(match, self.start_ns / SECOND - 5, now_s + 5).splitlines()
        return sorted(int(value) for row in rows for value in json.loads(row)["values"])

    def count(self) -> None:
        """Every sample is in the store, none missing, none twice."""
        for agent in self.agents:
            assert agent.sent > 20
            assert self.numbers(agent.host) == list(range(agent.sent))

    def stop(self) -> None:
        for agent in self.agents:
            agent.end.set()
        for writer in self.writers:
            writer.kill()
            writer.wait(10)
        for agent in self.agents:
            agent.join(10)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "chain"
    found.mkdir()
    return found


def running(chain: Chain) -> Chain:
    for agent in chain.agents:
        agent.start()
    assert until(lambda: chain.reported() > 10, 30), "the chain does not come up"
    return chain


@pytest.mark.parametrize("away_s", [5.0, pytest.param(30.0, marks=pytest.mark.slow)])
def test_the_broker_killed_and_absent_costs_no_sample(
    folder: Path, make_mosquitto: MakeMosquitto, make_victoriametrics: MakeVictoriaMetrics, away_s: float
) -> None:
    """Killed -9 without persistence: it forgets sessions, queues and what it had acknowledged."""
    chain = Chain(folder, make_mosquitto(), make_victoriametrics(), hold_s=1.0, resend_s=4.0)
    try:
        chain.start_writer("w1")
        running(chain)
        chain.broker.kill()
        before = sum(agent.sent for agent in chain.agents)
        chain.pass_time(away_s)
        assert sum(agent.sent for agent in chain.agents) - before > away_s * 10, "measuring must go on"
        chain.broker.start()
        chain.pass_time(2)
        chain.finish(within_s=60)
        chain.count()
        assert sum(agent.uplink.resent for agent in chain.agents) > away_s * 10
    finally:
        chain.stop()


def test_a_writer_killed_in_the_middle_costs_no_sample(
    folder: Path, make_mosquitto: MakeMosquitto, make_victoriametrics: MakeVictoriaMetrics
) -> None:
    """Two share the load; one is killed -9 for good. The broker gives it its share until its session ends."""
    chain = Chain(folder, make_mosquitto(), make_victoriametrics(), hold_s=1.0, resend_s=4.0)
    try:
        doomed = chain.start_writer("w1")
        chain.start_writer("w2")
        running(chain)
        doomed.send_signal(signal.SIGKILL)
        chain.pass_time(3)
        chain.finish(within_s=60)
        chain.count()
    finally:
        chain.stop()


def test_a_writer_told_to_stop_ends_in_five_seconds_and_loses_nothing(
    folder: Path, make_mosquitto: MakeMosquitto, make_victoriametrics: MakeVictoriaMetrics
) -> None:
    chain = Chain(folder, make_mosquitto(), make_victoriametrics(), hold_s=1.0, resend_s=4.0)
    try:
        first = chain.start_writer("w1")
        running(chain)
        first.terminate()
        assert first.wait(5) == 0
        chain.start_writer("w1")
        chain.pass_time(1)
        chain.finish(within_s=60)
        chain.count()
    finally:
        chain.stop()


@pytest.mark.slow
def test_the_store_killed_and_restarted_costs_no_sample(
    folder: Path, make_mosquitto: MakeMosquitto, make_victoriametrics: MakeVictoriaMetrics
) -> None:
    """Killed -9 it loses seconds of what it took: only what was not reported can be lost, and that is sent again."""
    chain = Chain(folder, make_mosquitto(), make_victoriametrics(), hold_s=12.0, resend_s=18.0)
    try:
        chain.start_writer("w1")
        running(chain)
        chain.store.kill()
        chain.pass_time(3)
        chain.store.start()
        chain.pass_time(3)
        chain.finish(within_s=120)
        chain.count()
    finally:
        chain.stop()
