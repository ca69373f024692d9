"""What others publish, by the real mosquitto_pub: it enters rules and store beside what the agent measures."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.processes.running import Site
from tests.services import Mosquitto, VictoriaMetrics, needs, until
from virtpilot.clock import SECOND, SystemClock
from virtpilot.model import Signal, SignalState
from virtpilot.pipeline.bus.mqtt import MqttBus, MqttOptions

pytestmark = pytest.mark.server

# libvirt's own fake guest; its driver tells no memory statistics.
GUEST = "6695eb01-f6a4-8304-79aa-97f2502e193f"
RULES = """\
virtpilot: 1
rules:
  - name: full
    about: Its memory is full, as a script inside of it says; that it runs is what the agent says.
    on: vm
    when: memory_used_ratio > 90% and state_code == 1
  - name: hot
    about: A host that no agent measures.
    on: host
    when: cpu_usage_ratio > 90%
"""


class Chain:
    """Agent, writer and controller as processes, and a script that publishes beside the agent."""

    def __init__(self, site: Site, broker: Mosquitto, store: VictoriaMetrics, bus: MqttBus) -> None:
        self.broker, self.store = broker, store
        self.began_s = SystemClock().now_ns() / SECOND
        rules = site.folder / "rules.yaml"
        rules.write_text(RULES)
        self.controller = site.controller(rules).start()
        self.writer = site.process("writer", store={"url": store.url, "hold_s": 1.0}).start()
        self.agent = site.agent().start()
        self.dead_letters = site.folder / "writer" / "dead-letters" / "dead-letters.jsonl"
        self.signals: list[Signal] = []
        self._bus = bus
        bus.subscribe("virtpilot/processes/signals/+")
        for process in (self.controller, self.writer, self.agent):
            process.up()

    def publish(self, *lines: str, topic: str = "virtpilot/processes/metrics/script") -> None:
        """Publish one message as a shell script does."""
        words = ["-h", self.broker.host, "-p", str(self.broker.port), "-V", "mqttv5", "-q", "1", "-t", topic]
        command = [needs("mosquitto_pub"), *words, "-m", "\n".join(lines)]
        subprocess.run(command, check=True, timeout=20, capture_output=True)

    def state(self, rule: str, subject: str) -> SignalState | None:
        """Return the newest state that a rule has told of a subject."""
        while (delivery := self._bus.receive(0)) is not None:
            self.signals.append(msgspec.json.decode(delivery.message.payload, type=Signal))
            delivery.ack()
        told = [one.state for one in self.signals if (one.rule, one.subject.id) == (rule, subject)]
        return told[-1] if told else None

    def values(self, series: str) -> list[float]:
        """Return what the store holds of a series."""
        rows = self.store.export(series, self.began_s - 5, SystemClock().now_ns() / SECOND + 5).splitlines()
        return [value for row in rows for value in json.loads(row)["values"]]


@pytest.fixture
def chain(site: Site, broker: Mosquitto, victoriametrics: VictoriaMetrics) -> Iterator[Chain]:
    needs("mosquitto_pub")
    with closing(MqttBus(MqttOptions(port=broker.port), "listener")) as bus:
        yield Chain(site, broker, victoriametrics, bus)


def now_ns() -> int:
    return SystemClock().now_ns()


def dead(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_script_beside_the_agent_enters_rules_and_store_alike(chain: Chain) -> None:
    tags = f"host=h1,vm={GUEST},name=test"
    chain.controller.reaches("virtpilot_controller_samples_total", 10)
    assert chain.state("full", GUEST) is None
    chain.publish(f"vm,{tags} memory_used_ratio=0.5 {now_ns()}")
    chain.publish(
        f"vm,{tags} memory_used_ratio=0.97 {now_ns()}", "vm,host=h1 is no line", "host,host=h9 cpu_usage_ratio=0.99"
    )
    assert until(lambda: chain.state("full", GUEST) is SignalState.FIRING)
    # Without a time: of now.
    assert until(lambda: chain.state("hot", "h9") is SignalState.FIRING)
    (full,) = [signal for signal in chain.signals if signal.rule == "full" and signal.state is SignalState.FIRING]
    assert full.inputs == {"memory_used_ratio": 0.97, "state_code": 1.0}
    # The agent's samples, five a second, lack the field and take nothing away.
    before = chain.agent.number("virtpilot_agent_ticks_total")
    chain.agent.reaches("virtpilot_agent_ticks_total", before + 10)
    assert chain.state("full", GUEST) is SignalState.FIRING
    assert until(lambda: chain.values(f'vm_memory_used_ratio{{vm="{GUEST}"}}') == [0.5, 0.97], 20, 0.2)
    assert until(lambda: chain.values('host_cpu_usage_ratio{host="h9"}') == [0.99], 20, 0.2)
    assert chain.values(f'vm_state_code{{vm="{GUEST}"}}')
    # The broken line was counted, is kept with the reason, and has stopped nothing.
    assert chain.controller.number("virtpilot_controller_bad_lines_total") == 1
    assert until(lambda: [one["line"] for one in dead(chain.dead_letters)] == ["vm,host=h1 is no line"], 20, 0.2)
    chain.publish(f"vm,{tags} memory_used_ratio=0.4 {now_ns()}")
    assert until(lambda: chain.state("full", GUEST) is SignalState.INACTIVE)
    assert chain.controller.number("virtpilot_controller_foreign_samples_total") == 4
