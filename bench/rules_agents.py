"""The agents of a large fleet in one process: publish what they would, obey, and time the decisions that come of it.

    python -m bench.rules_agents PORT SECONDS

Prints one JSON document: what was sent, and how long (ms) each decision came after the message that caused it.
"""

from __future__ import annotations

import sys
from typing import Final

import msgspec

from bench.rules_load import CLUSTER, LoadedHost, fleet
from virtpilot.actuators.command import Envelope
from virtpilot.clock import SECOND, SystemClock, seconds
from virtpilot.model import Command, Decision, HostStatus, Message, Outcome, Result, record_id
from virtpilot.pipeline.bus.mqtt import MqttBus, MqttOptions
from virtpilot.topics import BOOT_PROPERTY, SEQUENCE_PROPERTY, Topics

HOSTS: Final = 200
GUESTS: Final = 50
TICK_S: Final = 10
_CYCLE: Final = 10
_HOT_TICKS: Final = 5


class Seen(msgspec.Struct):
    """What the agents saw; `decided` holds (seconds since the start, milliseconds after the message)."""

    messages: int = 0
    bytes: int = 0
    late_ms: float = 0.0
    commands: int = 0
    accepted: int = 0
    refused: dict[str, int] = {}
    decided: list[tuple[float, float]] = []


class Agents:
    """All hosts, each with its own moment in a tick; half of them are hot, in turn."""

    def __init__(self, port: int) -> None:
        self._clock = SystemClock()
        self._topics = Topics(CLUSTER)
        self._hosts = fleet(HOSTS, GUESTS, hot_guests=4)
        self._bus = MqttBus(MqttOptions(port=port, max_inflight=200, receive_maximum=1000), "bench-agents")
        for topic in (self._topics.decisions, self._topics.commands("+")):
            self._bus.subscribe(topic)
        self._sent_ns: dict[str, int] = {}
        self._causes: set[str] = set()
        self.seen = Seen()

    def run(self, duration_s: float) -> None:
        """Publish and listen for so long."""
        for host in self._hosts:
            status = HostStatus(host=host.name, online=True, at_ns=self._clock.now_ns(), cpus=64)
            self._publish(self._topics.status(host.name), msgspec.json.encode(status))
        begun_ns = self._clock.monotonic_ns()
        gap_ns = seconds(TICK_S) // len(self._hosts)
        for number in range(int(duration_s * SECOND) // gap_ns):
            due_ns = begun_ns + number * gap_ns
            while (left_ns := due_ns - self._clock.monotonic_ns()) > 0:
                self._listen(left_ns / SECOND, begun_ns)
            self.seen.late_ms = max(self.seen.late_ms, -left_ns / 1e6)
            self._tell(self._hosts[number % len(self._hosts)], number // len(self._hosts))
        self._bus.close()

    def _tell(self, host: LoadedHost, tick: int) -> None:
        place = int(host.name[1:])
        hot = (tick + place) % _CYCLE < _HOT_TICKS
        for part, payload in enumerate(host.face(tick, hot=hot).at(self._clock.now_ns())):
            self._sent_ns[host.name] = self._clock.monotonic_ns()
            sequence = str(tick * 10 + part + 1)
            self._publish(
                self._topics.metrics(host.name), payload, {BOOT_PROPERTY: "bench", SEQUENCE_PROPERTY: sequence}
            )
            self.seen.messages += 1
            self.seen.bytes += len(payload)

    def _publish(self, topic: str, payload: bytes, properties: dict[str, str] | None = None) -> None:
        self._bus.publish(Message(topic, payload, properties or {}))

    def _listen(self, timeout_s: float, begun_ns: int) -> None:
        delivery = self._bus.receive(timeout_s)
        if delivery is None:
            return
        if delivery.message.topic == self._topics.decisions:
            self._decided(msgspec.json.decode(delivery.message.payload, type=Decision), begun_ns)
        else:
            self._obey(delivery.message)
        delivery.ack()

    def _decided(self, decision: Decision, begun_ns: int) -> None:
        now_ns = self._clock.monotonic_ns()
        if decision.accepted:
            self.seen.accepted += 1
        else:
            self.seen.refused[decision.guard] = self.seen.refused.get(decision.guard, 0) + 1
        # Of one cause only the first decision comes of a message, others of time that passes.
        if decision.cause not in self._causes and decision.rung == 0:
            took_ms = (now_ns - self._sent_ns[decision.subject.host]) / 1e6
            self.seen.decided.append(((now_ns - begun_ns) / SECOND, took_ms))
        self._causes.add(decision.cause)

    def _obey(self, message: Message) -> None:
        """Answer a command as an agent that has done it."""
        envelope = msgspec.json.decode(message.payload, type=Envelope)
        command = msgspec.json.decode(envelope.command, type=Command)
        now_ns = self._clock.now_ns()
        self.seen.commands += 1
        outcome = Outcome(
            id=record_id("oc", command.id, "done"), cause=command.id, command=command.id, host=command.host,
            guest=command.action.guest, result=Result.DONE, at_ns=now_ns, action="set cpu_shares", rule=command.rule,
        )  # fmt: skip
        self._publish(self._topics.outcomes(command.host), msgspec.json.encode(outcome))


def main() -> None:
    """Run and print what was seen."""
    port, duration_s = int(sys.argv[1]), float(sys.argv[2])
    agents = Agents(port)
    sys.stderr.write("ready\n")
    sys.stderr.flush()
    agents.run(duration_s)
    sys.stdout.write(msgspec.json.encode(agents.seen).decode() + "\n")


if __name__ == "__main__":
    main()
