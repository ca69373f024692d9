"""The kill switch on the real broker, with agents and a controller as processes and the operator's own commands."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from tests.command_line import said
from tests.conftest import MakeMosquitto
from tests.processes.running import Process, Site, toml
from tests.services import Mosquitto, until
from virtpilot.action import SetKnob
from virtpilot.actuators.command import Signer, load_private
from virtpilot.clock import SystemClock, seconds
from virtpilot.model import Command, HostStatus, Message, Outcome
from virtpilot.pipeline.bus.mqtt import MqttBus, MqttOptions
from virtpilot.topics import Topics

pytestmark = pytest.mark.server

GUEST: Final = "6695eb01-f6a4-8304-79aa-97f2502e193f"
TOPICS: Final = Topics("c1")


class Cluster:
    """A broker's cluster with operators, and an ear for outcomes and statuses."""

    def __init__(self, folder: Path, port: int) -> None:
        self.site = Site(folder, "c1", port)
        self.keys = folder / "keys"
        self.site.keys()
        assert said("keys", self.keys, "--name", "operator").returncode == 0
        self.operators = {"public_key_files": [str(self.keys / "operator.pub")]}
        self.config = folder / "operator.toml"
        self.operator(self.keys / "operator.key")
        self.bus = MqttBus(MqttOptions(port=port), "an-ear")
        for topic in (TOPICS.outcomes("+"), TOPICS.status("+")):
            self.bus.subscribe(topic)
        self.outcomes: dict[str, Outcome] = {}
        self.statuses: dict[str, HostStatus] = {}
        self._signer: Signer | None = None

    def operator(self, key: Path) -> None:
        bus = {"port": self.site.broker_port}
        self.config.write_text(toml({"cluster": "c1", "name": "ann", "private_key_file": str(key), "bus": bus}))

    def forger(self) -> Path:
        """Make an operator's key of which nobody knows, and return it."""
        assert said("keys", self.site.folder / "forger", "--name", "operator").returncode == 0
        return self.site.folder / "forger" / "operator.key"

    def says(self, *arguments: str) -> tuple[int, Any]:
        """Return the exit status and the document of an operator's command, given in this process."""
        done = said(*arguments, "--config", str(self.config), "--json")
        return done.returncode, json.loads(done.stdout) if done.stdout else done.stderr

    def agent(self, host: str) -> Process:
        commands = {"public_key_files": [str(self.keys / "controller.pub")]}
        return self.site.agent(host, commands=commands, operators=self.operators)

    def command(self, host: str, name: str) -> None:
        """Send a signed command, valid for 30 s."""
        self._signer = self._signer or Signer(load_private(self.keys / "controller.key"))
        now_ns = SystemClock().now_ns()
        order = Command(
            id=name,
            cause="dc-1",
            host=host,
            action=SetKnob(guest=GUEST, knob="cpu_shares", value=512, expected=1024, lease_s=60),
            rule="starved",
            issued_ns=now_ns,
            not_after_ns=now_ns + seconds(30),
            epoch=1,
        )
        self.bus.publish(Message(TOPICS.commands(host), self._signer.seal(order), expiry_s=30)).result(10)

    def hear(self) -> None:
        while (delivery := self.bus.receive(0)) is not None:
            if TOPICS.family_of(delivery.message.topic) == "outcomes":
                outcome = msgspec.json.decode(delivery.message.payload, type=Outcome)
                self.outcomes[outcome.command] = outcome
            else:
                status = msgspec.json.decode(delivery.message.payload, type=HostStatus)
                self.statuses[status.host] = status
            delivery.ack()

    def guard(self, host: str, name: str) -> str:
        """Send a command and return the guard that has refused it, "" where none has."""
        self.command(host, name)
        return self.answer(name)

    def answer(self, name: str) -> str:
        def answered() -> bool:
            self.hear()
            return name in self.outcomes

        assert until(answered, 15.0), name
        return self.outcomes[name].guard

    def online(self, *hosts: str) -> None:
        def there() -> bool:
            self.hear()
            return all(host in self.statuses and self.statuses[host].online for host in hosts)

        assert until(there, 20.0), self.statuses


@pytest.fixture
def mosquitto(make_mosquitto: MakeMosquitto) -> Mosquitto:
    """A broker of this test's own: what is retained there is nobody else's."""
    return make_mosquitto(persistence=True)


@pytest.fixture
def cluster(tmp_path: Path, mosquitto: Mosquitto) -> Iterator[Cluster]:
    made = Cluster(tmp_path, mosquitto.port)
    yield made
    made.bus.close()
    made.site.close()


def test_everything_stops_within_a_second_and_goes_on_by_a_signed_word(cluster: Cluster) -> None:
    """Without any controller: also for an agent that was killed, and for one that was never there before."""
    agents = {host: cluster.agent(host) for host in ("h1", "h2")}
    for agent in agents.values():
        agent.start().up()
    cluster.online("h1", "h2")
    assert cluster.guard("h1", "cm-before") != "stopped"

    status, document = cluster.says("stop", "--reason", "fire")
    assert (status, document) == (0, {"hosts": {"h1": "stopped", "h2": "stopped"}})
    assert cluster.guard("h1", "cm-1") == cluster.guard("h2", "cm-2") == "stopped"
    assert cluster.outcomes["cm-1"].reason == "stopped by ann: fire"

    agents["h1"].kill()
    cluster.command("h1", "cm-while-away")
    agents["h1"].start().up()
    assert cluster.answer("cm-while-away") == "stopped"
    agents["h3"] = cluster.agent("h3")
    cluster.command("h3", "cm-too-early")
    agents["h3"].start().up()
    assert cluster.guard("h3", "cm-3") == "stopped", "what is retained is heard before any command is obeyed"
    agents["h3"].reaches("virtpilot_agent_stopped_count", 1)

    cluster.operator(cluster.forger())
    status, document = cluster.says("resume")
    assert status == 1
    assert set(document["hosts"].values()) == {"DOES NOT ANSWER"}
    assert cluster.guard("h1", "cm-4") == "stopped"

    cluster.operator(cluster.keys / "operator.key")
    status, document = cluster.says("resume", "--reason", "out")
    assert (status, set(document["hosts"].values())) == (0, {"resumed"})
    for number, host in enumerate(agents):
        assert cluster.guard(host, f"cm-after-{number}") != "stopped"
    for agent in agents.values():
        agent.terminate()


def test_a_word_by_hand_stops_and_the_broker_may_forget_it(cluster: Cluster, mosquitto: Mosquitto) -> None:
    """`mosquitto_pub -r -m stop`: obeyed by agents and the controller, also when the topic is emptied after it."""
    agent = cluster.agent("h1").start().up()
    controller = cluster.site.controller(Path(__file__).parents[2] / "rules/library", operators=cluster.operators)
    controller.start().up()
    cluster.online("h1")
    subprocess.run(
        ["mosquitto_pub", "-p", str(mosquitto.port), "-V", "5", "-q", "1", "-r", "-t", TOPICS.switch, "-m", "stop"],
        check=True, timeout=10,
    )  # fmt: skip
    agent.reaches("virtpilot_agent_stopped_count", 1)
    controller.reaches("virtpilot_stopped_count", 1)
    subprocess.run(
        ["mosquitto_pub", "-p", str(mosquitto.port), "-V", "5", "-q", "1", "-r", "-t", TOPICS.switch, "-n"],
        check=True, timeout=10,
    )  # fmt: skip
    for process in (agent, controller):
        process.kill()
        process.start().up()
    assert cluster.guard("h1", "cm-1") == "stopped"
    controller.reaches("virtpilot_stopped_count", 1)
    status, document = cluster.says("resume")
    assert (status, document) == (0, {"hosts": {"h1": "resumed"}})
    assert until(lambda: controller.number("virtpilot_stopped_count") == 0, 20.0)
