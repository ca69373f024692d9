"""A lab of three hosts and eight guests with all of virtpilot in it, and an onlooker on its bus."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from deploy.lab import Lab
from deploy.lab.errors import LabError
from deploy.lab.guest import Guest
from deploy.lab.pilot import CLUSTER, LabPilot
from tests.services import until
from virtpilot.action import Action
from virtpilot.actuators.command import Envelope
from virtpilot.clock import SystemClock
from virtpilot.events import By, Event, EventKind
from virtpilot.model import Command, Decision, Outcome
from virtpilot.pipeline.bus.mqtt import MqttBus
from virtpilot.pipeline.bus.mqtt_options import MqttOptions
from virtpilot.pipeline.presence import Presence
from virtpilot.pipeline.records import Record, read
from virtpilot.topics import Topics

PATIENCE_S: Final = 180.0
# Moves take seconds, long enough to be seen: docs/lab.md says why not longer. Small guests can be spared some memory.
_CAPS: Final = f"migration_bandwidth_max = {40 * 2**20}\nballoon_floor_bytes = {24 * 2**20}"
RESTING: Final = "virtpilot: 1\nrules:\n  - {name: resting, on: vm, when: cpu_steal_ratio > 99%}\n"


class ThreeHosts:
    """What the stories are told with: rules for the controller, what libvirt says, what went over the bus."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self._rules = lab.folder / "stories"
        self._rules.mkdir()
        self.rule(RESTING)
        self.pilot = LabPilot(lab, self._rules, caps=_CAPS)
        self._bus = MqttBus(MqttOptions(host=lab.broker_host, port=lab.broker_port), "onlooker")
        self._topics = Topics(CLUSTER)
        for topic in (self._topics.commands("+"), self._topics.outcomes("+"), self._topics.controller):
            self._bus.subscribe(topic)
        self._commands: dict[str, Command] = {}
        self._outcomes: dict[str, Outcome] = {}
        self.epoch = 0
        self.pilot.start()
        self.comes(lambda: self.heard() and self.epoch, "a controller speaks")

    def close(self) -> None:
        self._bus.close()

    def rule(self, text: str) -> None:
        """Give the controller other rules; it notices by itself."""
        draft = self._rules / "draft"
        draft.write_text(text)
        draft.replace(self._rules / "rules.yaml")

    def comes(self, holds: Callable[[], object], what: str, within_s: float = PATIENCE_S) -> None:
        """Wait for something that must happen."""
        if not until(holds, within_s, 0.25):
            told = [msgspec.json.encode(record).decode()[:400] for record in self.records()[-12:]]
            raise AssertionError("\n".join([f"did not come: {what}", *told, self.pilot.logs()]))

    def heard(self) -> bool:
        """Take what has come over the bus."""
        while (delivery := self._bus.receive(0)) is not None:
            topic, payload = delivery.message.topic, delivery.message.payload
            if topic == self._topics.controller:
                self.epoch = msgspec.json.decode(payload, type=Presence).epoch
            elif self._topics.family_of(topic) == "commands":
                inner = msgspec.json.decode(payload, type=Envelope).command
                command = msgspec.json.decode(inner, type=Command)
                self._commands[command.id] = command
            else:
                outcome = msgspec.json.decode(payload, type=Outcome)
                self._outcomes[outcome.id] = outcome
            delivery.ack()
        return True

    def commands(self, guest: str, kind: type[Action]) -> list[Command]:
        """Return the commands on a guest that went over the bus, each once however often it was sent."""
        self.heard()
        uuid = self.lab.guest(guest).uuid
        return [one for one in self._commands.values() if isinstance(one.action, kind) and one.action.guest == uuid]

    def results(self, command: str) -> list[str]:
        """Return all that became of a command, by agents and by the controller, in order of time."""
        self.heard()
        found = [one for one in self._outcomes.values() if one.command == command]
        return [one.result for one in sorted(found, key=lambda one: one.at_ns)]

    def records(self) -> list[Record]:
        """Return what the controller has on disk."""
        return [entry.record for entry in read(self.pilot.records)] if self.pilot.records.exists() else []

    def accepted(self, rule: str) -> list[str]:
        """Return the names of the guests on which a rule's wants were accepted, in order."""
        made = [one for one in self.records() if isinstance(one, Decision) and one.rule == rule and one.accepted]
        return [one.subject.name for one in made]

    def told(self, guest: str, knob: str) -> int:
        """Return what libvirt says of how a guest is scheduled."""
        text = self.lab.hosts[self.lab.where(guest)].virsh("schedinfo", guest)
        (value,) = [line.partition(":")[2] for line in text.splitlines() if line.partition(":")[0].strip() == knob]
        return int(value)

    def balloon_mib(self, guest: str) -> float:
        """Return what libvirt says of a guest's memory."""
        return int(self.lab.domstats(guest)["balloon.current"]) / 1024

    def foreign(self) -> list[Event]:
        """Return the changes of knobs that the agents have told of as somebody else's."""
        events = [one for one in self.records() if isinstance(one, Event)]
        return [one for one in events if (one.kind, one.by) == (EventKind.KNOB_CHANGED, By.OTHER)]

    def cpu(self, guest: str) -> tuple[float, float]:
        """Return how much of the next seconds a guest's vCPU ran and waited, by libvirt."""
        clock = SystemClock()
        before, began = self.lab.domstats(guest), clock.monotonic_ns()
        until(lambda: clock.monotonic_ns() - began > 2e9, 10, 0.1)
        after, took = self.lab.domstats(guest), clock.monotonic_ns() - began
        ran, waited = (int(after[name]) - int(before[name]) for name in ("vcpu.0.time", "vcpu.0.delay"))
        return ran / took, waited / took

    def running(self) -> dict[str, set[str]]:
        """Return the guests that run on each host, by its libvirt."""
        return {name: set(host.virsh.running()) for name, host in self.lab.hosts.items()}

    def hold(self, guest: Guest, host: str, mib_per_second: int) -> None:
        """Let a move of a guest away from a host go on at another speed."""
        self.lab.hosts[host].virsh("migrate-setspeed", guest.name, str(mib_per_second))

    def moving(self, guest: Guest, host: str) -> bool:
        """Tell whether a host's libvirt is sending a guest's memory elsewhere just now."""
        with suppress(LabError):  # it may have left
            return "Memory processed" in self.lab.hosts[host].virsh("domjobinfo", guest.name)
        return False

    def moves_begun(self, guest: str) -> int:
        """Return how many migrations of a guest the hosts' libvirt have ever begun, by its logs."""
        logs = [host.path(f"/var/log/libvirt/qemu/{guest}.log") for host in self.lab.hosts.values()]
        return sum(log.read_text().count("initiating migration") for log in logs if log.exists())


def maintenance(lab: Lab, host: str, way: str) -> dict[str, Any]:
    """Give the operator's own command and return what it said."""
    config: Path = lab.folder / "virtpilot" / "operator.toml"
    words = ["maintenance", host, way, "--json", "--config", str(config)]
    command = [sys.executable, "-m", "virtpilot.pipeline", *words]
    done = subprocess.run(command, capture_output=True, check=True, timeout=60)
    return msgspec.json.decode(done.stdout, type=dict[str, Any])
