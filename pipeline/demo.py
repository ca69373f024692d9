"""The main job on the embedded default: simulated fleet, in-memory bus, file store, shipped rules in mode act.

One thread steps everything on one virtual clock, which runs faster than the wall's; the parts are those of production.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from virtpilot.actuators.caps import Caps
from virtpilot.actuators.command import Signer, Verifier
from virtpilot.clock import SECOND, Clock, VirtualClock
from virtpilot.model import Mode
from virtpilot.pipeline import agent_assembly, assembly, trail
from virtpilot.pipeline.agent import Agent, AgentTiming, last_will
from virtpilot.pipeline.bus.memory import MemoryBroker
from virtpilot.pipeline.cadence import CadenceOptions
from virtpilot.pipeline.controller_config import ControllerConfig
from virtpilot.pipeline.rulebook import RuleOptions
from virtpilot.pipeline.spool import SpoolOptions
from virtpilot.pipeline.store.file import FileStore
from virtpilot.pipeline.timing import ControllerTiming
from virtpilot.pipeline.writer import Writer
from virtpilot.simulator import scenario
from virtpilot.simulator.fleet import Fleet
from virtpilot.topics import Topics

CLUSTER: Final = "demo"
SPEED: Final = 30.0
STEP_S: Final = 1.0
TICK_S: Final = 5.0


class Demo:
    """A whole virtpilot in one process; `folder` takes the store, the spools and the journals."""

    def __init__(self, folder: Path, scenario_path: Path | None = None, rules: RuleOptions | None = None) -> None:
        self.clock = VirtualClock()
        self.fleet = Fleet(scenario.load(scenario_path or scenario.demo_path()), self.clock.now_ns())
        self.broker = MemoryBroker(self.clock)
        self.topics = Topics(CLUSTER)
        self.store = FileStore(folder / "store")
        key = Ed25519PrivateKey.generate()
        signer = Signer(key)
        bus, dead = self.broker.connect("writer"), folder / "dead-letters"
        self.writer = Writer(bus, self.store, self.topics, self.clock, dead_letters=dead)
        self.controller = assembly.controller(
            ControllerConfig(
                cluster=CLUSTER,
                rules=rules or RuleOptions(modes={"*": Mode.ACT}),
                timing=ControllerTiming(save_s=60.0),
            ),
            bus=lambda will: self.broker.connect("controller", will),
            clock=self.clock,
            signer=signer,
            folder=folder / "controller",
        )
        self.controller.start()
        self.agents = [
            simulated_agent(
                self.fleet,
                host,
                cluster=CLUSTER,
                boot="demo",
                broker=self.broker,
                clock=self.clock,
                folder=folder / host,
                verifier=Verifier({signer.key_id: key.public_key()}, host),
            )
            for host in self.fleet.hosts
        ]
        for agent in self.agents:
            agent.start()

    def step(self) -> None:
        """Let one virtual second pass and everybody do what is due."""
        self.fleet.advance(STEP_S)
        self.clock.advance(STEP_S)
        for agent in self.agents:
            if self.fleet.online(agent.host):
                agent.step(0)
        self.controller.step(0)
        self.writer.step(0)

    def play(self, seconds: float | None, stop: threading.Event, speed: float, wall: Clock) -> Iterator[float]:
        """Step in pace with the wall clock, `speed` virtual seconds a second; yields the seconds played."""
        start_ns = wall.monotonic_ns()
        begun_ns = self.clock.monotonic_ns()
        played = 0.0
        while not stop.is_set() and (seconds is None or played < seconds):
            played = (wall.monotonic_ns() - start_ns) / SECOND
            due_ns = int(min(played, seconds or played) * speed * SECOND)
            while self.clock.monotonic_ns() - begun_ns < due_ns and not stop.is_set():
                self.step()
            yield played
            stop.wait(STEP_S / speed)

    def close(self) -> None:
        """Let what is on the way arrive, then end everything in order."""
        for agent in self.agents:
            agent.close()
        self.writer.step(0)
        self.writer.close()
        self.controller.close()

    def trails(self) -> list[trail.Trail]:
        """Return what has happened to each guest for which a rule fired."""
        return trail.trails(self.controller.entries())

    def document(self) -> dict[str, Any]:
        """Return the whole run as one JSON-able document."""
        counters = self.controller.counters
        return {
            "samples_published": sum(agent.samples for agent in self.agents),
            "samples_stored": self.store.samples,
            "signals": counters.signals,
            "decisions": {"accepted": counters.accepted, "refused": counters.refused},
            "commands": counters.commands,
            "outcomes": counters.outcomes,
            "trails": trail.document(self.trails()),
        }


def simulated_agent(
    fleet: Fleet,
    host: str,
    *,
    cluster: str,
    boot: str,
    broker: MemoryBroker,
    clock: Clock,
    folder: Path,
    verifier: Verifier,
) -> Agent:
    """Put the agent of a simulated host together: only its hypervisor and its files are not real."""
    return agent_assembly.agent(
        cluster=cluster,
        host=host,
        boot=boot,
        bus=lambda: broker.connect(f"agent-{host}", will=last_will(Topics(cluster), host, boot, clock.now_ns())),
        clock=clock,
        hypervisor=fleet.hypervisor(host),
        tree=fleet.tree(host),
        cpus=frozenset(range(fleet.facts(host).cpus)),
        folder=folder,
        verifier=verifier,
        migration_uri=fleet.migration_uri(host),
        timing=AgentTiming(tick_s=TICK_S),
        sampling=CadenceOptions(),
        spool=SpoolOptions(fsync=False),
        caps=Caps(),
    )
