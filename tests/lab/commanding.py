"""Commands given to the agents of a lab as the controller gives them, and what becomes of each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

import msgspec

from deploy.lab import Lab
from deploy.lab.pilot import CLUSTER, LabPilot
from tests.services import until
from virtpilot.action import Action
from virtpilot.actuators.command import Signer, load_private
from virtpilot.clock import SECOND, SystemClock
from virtpilot.model import Command, HostStatus, Message, Outcome, record_id
from virtpilot.pipeline.bus.mqtt import MqttBus
from virtpilot.pipeline.bus.mqtt_options import MqttOptions


class Commander:
    """Signs commands, sends them, and listens to outcomes."""

    def __init__(self, lab: Lab, pilot: LabPilot, bus: MqttBus) -> None:
        self.lab = lab
        self.outcomes: list[Outcome] = []
        self._signer = Signer(load_private(pilot.folder / "keys" / "controller.key"))
        self._clock = SystemClock()
        self._bus = bus
        self._online: set[str] = set()
        for family in ("outcomes", "status"):
            bus.subscribe(f"virtpilot/{CLUSTER}/{family}/+")
        assert until(lambda: self._take() >= set(lab.hosts), 60)

    def _take(self) -> set[str]:
        """Take what has come, and return the hosts that are there."""
        while (delivery := self._bus.receive(0)) is not None:
            message = delivery.message
            if "/status/" in message.topic:
                status = msgspec.json.decode(message.payload, type=HostStatus)
                self._online |= {status.host} if status.online else set()
            else:
                self.outcomes.append(msgspec.json.decode(message.payload, type=Outcome))
            delivery.ack()
        return self._online

    def send(self, host: str, action: Action) -> str:
        """Give a host a command and return its id."""
        now_ns = self._clock.now_ns()
        command = Command(
            id=record_id("cm", now_ns), cause="dc-test", host=host, action=action, rule="test", issued_ns=now_ns,
            not_after_ns=now_ns + 60 * SECOND, epoch=now_ns // SECOND,
        )  # fmt: skip
        payload = self._signer.seal(command)
        self._bus.publish(Message(f"virtpilot/{CLUSTER}/commands/{host}", payload)).result(10)
        return command.id

    def of(self, command: str) -> list[Outcome]:
        """Return what is known of a command."""
        self._take()
        return [outcome for outcome in self.outcomes if outcome.command == command]

    def give(self, host: str, action: Action, *, patience_s: float = 60.0) -> Outcome:
        """Give a host a command and return its outcome, which must come."""
        command = self.send(host, action)
        assert until(lambda: self.of(command), patience_s, 0.1), f"no outcome of {action}"
        return self.of(command)[-1]


@contextmanager
def commander(lab: Lab, pilot: LabPilot) -> Iterator[Commander]:
    """Give commands over the lab's own broker."""
    options = MqttOptions(host=lab.broker_host, port=lab.broker_port)
    with closing(MqttBus(options, "commander")) as bus:
        yield Commander(lab, pilot, bus)
