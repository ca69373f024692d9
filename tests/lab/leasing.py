"""Two real hosts with agents that can be killed at any point, and somebody who commands them and listens."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Final

import msgspec

from deploy.lab import GuestPlan, Lab
from tests.lab.lab_process import ENVIRONMENT, ROOT
from tests.services import until
from virtpilot.action import Action, Migrate, ReleaseKnob, SetKnob
from virtpilot.actuators.command import Signer, generate, load_private
from virtpilot.actuators.journal import parse
from virtpilot.actuators.ledger import Lease, Ledger
from virtpilot.actuators.lifecycle import Point
from virtpilot.clock import SECOND, SystemClock
from virtpilot.events import Event
from virtpilot.libvirt_host import LibvirtHypervisor
from virtpilot.model import Command, HostStatus, Message, Outcome
from virtpilot.pipeline.bus.mqtt import MqttBus
from virtpilot.pipeline.bus.mqtt_options import MqttOptions
from virtpilot.pipeline.presence import presence
from virtpilot.topics import Topics

CLUSTER: Final = "lab"
HOSTS: Final = ("host-1", "host-2")
PLANS: Final = (GuestPlan("web-1", "host-1", tags={"tier": "web"}), GuestPlan("web-2", "host-2"))
BASELINE: Final = 1024
_AGENT: Final = """
cluster = "{cluster}"
host = "{host}"
state_folder = "{folder}/{host}"
[timing]
tick_s = 2.0
[hypervisor]
migration_uri = "{uri}"
[bus]
host = "{broker}"
port = {port}
reconnect_max_s = 1.0
[commands]
public_key_files = ["{folder}/keys/controller.pub"]
[caps]
controller_grace_s = {grace_s}
"""


class Leasing:
    """The lab's agents and the one who plays their controller."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.clock = SystemClock()
        self.topics = Topics(CLUSTER)
        self.folder = lab.folder / "leasing"
        self.folder.mkdir()
        generate(self.folder / "keys")
        self._signer = Signer(load_private(self.folder / "keys/controller.key"))
        self.bus = MqttBus(MqttOptions(host=lab.broker_host, port=lab.broker_port, reconnect_max_s=1.0), "commander")
        for topic in (self.topics.outcomes("+"), self.topics.events("+"), self.topics.status("+")):
            self.bus.subscribe(topic)
        self.agents: dict[str, subprocess.Popen[bytes]] = {}
        self.outcomes: list[Outcome] = []
        self.events: list[Event] = []
        self._came: list[str] = []
        self.epoch = self.clock.now_ns() // SECOND
        self._commands = 0

    def start(self, host: str, die_at: Point | None = None, grace_s: float = 0.0) -> None:
        """Start a host's agent; it ends by SIGKILL where it comes to a point."""
        lab = self.lab
        config = self.folder / f"{host}.toml"
        config.write_text(
            _AGENT.format(cluster=CLUSTER, host=host, folder=self.folder, uri=lab.hosts[host].uri,
                          broker=lab.broker_host, port=lab.broker_port, grace_s=grace_s)
        )  # fmt: skip
        words = [sys.executable, "-m", "tests.lab.mortal_agent", str(config), *([die_at] if die_at else [])]
        with (self.folder / f"{host}.log").open("ab") as log:
            self.agents[host] = lab.hosts[host].popen(words, cwd=ROOT, env=ENVIRONMENT, output=log)
        self.listen()
        self._came.clear()
        self.comes(lambda: self._is_up(host), f"the agent of {host} is up")

    def _is_up(self, host: str) -> bool:
        self.listen()
        return host in self._came or self.agents[host].poll() == -signal.SIGKILL

    def kill(self, host: str) -> None:
        """End a host's agent as a crash would."""
        self.agents[host].kill()
        self.died(host)

    def died(self, host: str) -> None:
        """Wait for a host's agent to be dead."""
        assert until(lambda: self.agents[host].poll() is not None, 60, 0.1), self.log(host)
        assert self.agents[host].returncode == -signal.SIGKILL, self.log(host)

    def log(self, host: str) -> str:
        return (self.folder / f"{host}.log").read_text(errors="replace")[-3000:]

    def command(self, host: str, action: Action, epoch: int = 0) -> str:
        """Give a host a command as the controller does, and return its id."""
        now_ns = self.clock.now_ns()
        self._commands += 1
        command = Command(id=f"cm-{now_ns}-{self._commands}", cause="dc-test", host=host, action=action, rule="test",
                          issued_ns=now_ns, not_after_ns=now_ns + 60 * SECOND, epoch=epoch or self.epoch)  # fmt: skip
        self.bus.publish(Message(self.topics.commands(host), self._signer.seal(command), expiry_s=60)).result(20)
        return command.id

    def set(self, guest: str, value: int = 2048, *, expected: int = BASELINE, lease_s: float = 600) -> str:
        action = SetKnob(guest=self.uuid(guest), knob="cpu_shares", value=value, expected=expected, lease_s=lease_s)
        return self.command(self.lab.where(guest), action)

    def set_knob(self, guest: str, knob: str, value: int, expected: int, *, lease_s: float) -> str:
        action = SetKnob(guest=self.uuid(guest), knob=knob, value=value, expected=expected, lease_s=lease_s)
        return self.command(self.lab.where(guest), action)

    def knob(self, guest: str, knob: str) -> int:
        """Return what the libvirt of the host where a guest runs says of a knob, asked from this machine."""
        hypervisor = LibvirtHypervisor(self.lab.hosts[self.lab.where(guest)].uri, clock=self.clock)
        try:
            return hypervisor.get_knob(self.uuid(guest), knob)
        finally:
            hypervisor.close()

    def release(self, guest: str, knob: str = "cpu_shares") -> str:
        return self.command(self.lab.where(guest), ReleaseKnob(guest=self.uuid(guest), knob=knob))

    def move(self, guest: str) -> str:
        target = self.other(self.lab.where(guest))
        action = Migrate(guest=self.uuid(guest), target=target, uri=self.lab.hosts[target].uri)
        return self.command(self.lab.where(guest), action)

    def beat(self) -> None:
        """Say that a controller lives."""
        self.bus.publish(presence(self.topics, self.epoch, self.clock.now_ns(), online=True))

    def other(self, host: str) -> str:
        return next(name for name in HOSTS if name != host)

    def uuid(self, guest: str) -> str:
        return self.lab.guest(guest).uuid

    def shares(self, guest: str) -> int:
        """Return what libvirt says of a guest's shares, on the host that runs it."""
        text = self.lab.hosts[self.lab.where(guest)].virsh("schedinfo", guest)
        (line,) = [line for line in text.splitlines() if line.startswith("cpu_shares")]
        return int(line.partition(":")[2])

    def running_on(self, guest: str) -> list[str]:
        """Return the hosts on which a guest runs: one, whatever happens."""
        return [name for name, host in self.lab.hosts.items() if guest in host.virsh.running()]

    def leases(self, host: str, guest: str) -> list[Lease]:
        """Return what a host's journal on disk says of a guest."""
        path = self.folder / host / "journal.jsonl"
        ledger = Ledger()
        ledger.apply(parse(path.read_bytes() if path.exists() else b"").entries)
        return [lease for lease in ledger.leases.values() if lease.guest == self.uuid(guest)]

    def holders(self, guest: str) -> list[str]:
        return [host for host in HOSTS if self.leases(host, guest)]

    def note(self, guest: str) -> str:
        """Return the note that a guest carries, as virsh shows it."""
        virsh = self.lab.hosts[self.lab.where(guest)].virsh
        text = virsh("dumpxml", guest)
        return text.partition("https://virtpilot.dev/leases/1")[2].partition("leases>")[0]

    def listen(self) -> None:
        """Take what has come."""
        while (delivery := self.bus.receive(0)) is not None:
            message = delivery.message
            match self.topics.family_of(message.topic):
                case "outcomes":
                    self.outcomes.append(msgspec.json.decode(message.payload, type=Outcome))
                case "events":
                    self.events.append(msgspec.json.decode(message.payload, type=Event))
                case "status" if msgspec.json.decode(message.payload, type=HostStatus).online:
                    self._came.append(self.topics.host_of(message.topic))
            delivery.ack()

    def results(self, command: str) -> list[str]:
        """Return what has become of a command, each result once, in order."""
        self.listen()
        return list(dict.fromkeys(one.result for one in self.outcomes if one.command == command))

    def told(self, kind: str, guest: str, since: int = 0) -> list[Event]:
        self.listen()
        return [event for event in self.events[since:] if (event.kind, event.guest) == (kind, self.uuid(guest))]

    def comes(self, holds: Callable[[], object], what: str, within_s: float = 90) -> None:
        """Wait for something that must happen."""
        logs = "\n".join(f"--- {host}\n{self.log(host)}" for host in self.agents)
        assert until(holds, within_s, 0.25), f"{what}\n{logs}\n{self.outcomes[-5:]}\n{self.events[-5:]}"

    def settled(self, guest: str) -> None:
        """Wait until nothing of a guest is leased, its shares are its own, and it carries no note."""
        self.comes(lambda: self.holders(guest) == [], "no lease is left")
        self.comes(lambda: self.shares(guest) == BASELINE, "its shares are its own")
        self.comes(lambda: "<lease " not in self.note(guest), "its note is gone")

    def close(self) -> None:
        self.bus.close()
