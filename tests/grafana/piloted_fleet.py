"""The whole chain on the simulated fleet, its measurements in a store of the test's choice and its time the present.

Simulator → collectors → agents → bus → writer → store, and bus → controller → commands → agents: production's parts.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from prometheus_client.parser import text_string_to_metric_families

from virtpilot.actuators.command import Signer, Verifier
from virtpilot.actuators.guards.options import GuardOptions
from virtpilot.clock import SystemClock, VirtualClock, seconds
from virtpilot.model import Mode, Outcome, Store
from virtpilot.pipeline import agent_service, assembly, controller_service, writer_service
from virtpilot.pipeline.agent import Agent
from virtpilot.pipeline.bus.memory import MemoryBroker
from virtpilot.pipeline.controller_config import ControllerConfig
from virtpilot.pipeline.demo import simulated_agent
from virtpilot.pipeline.exporter import Exporter
from virtpilot.pipeline.exporter_options import ExporterOptions
from virtpilot.pipeline.rulebook import RuleOptions
from virtpilot.pipeline.timing import ControllerTiming
from virtpilot.pipeline.writer import Writer
from virtpilot.simulator import scenario
from virtpilot.simulator.fleet import Fleet
from virtpilot.topics import Topics

# In it a guest starves, is refused help while it warms up, gets more shares, and is moved.
PLAYED_S: Final = 240


class PilotedFleet:
    """Three hosts and twelve guests of the demo's scenario under a controller in mode act."""

    def __init__(self, folder: Path, cluster: str, make_store: Callable[[VirtualClock], Store]) -> None:
        self.cluster = cluster
        self.clock = VirtualClock(SystemClock().now_ns() - seconds(PLAYED_S))
        self.start_s = self.clock.now_ns() / 1e9
        self.fleet = Fleet(scenario.load(scenario.demo_path()), self.clock.now_ns())
        self.broker = MemoryBroker(self.clock)
        key = Ed25519PrivateKey.generate()
        signer = Signer(key)
        self.writer = Writer(
            self.broker.connect("writer"),
            make_store(self.clock),
            Topics(cluster),
            self.clock,
            dead_letters=folder / "dead-letters",
        )
        self.controller = assembly.controller(
            ControllerConfig(
                cluster=cluster,
                rules=RuleOptions(modes={"*": Mode.ACT}),
                guards=GuardOptions(warm_up_s=70),
                timing=ControllerTiming(save_s=60.0),
            ),
            bus=lambda will: self.broker.connect("controller", will),
            clock=self.clock,
            signer=signer,
            folder=folder / "controller",
        )
        self.controller.start()
        self.agents = [
            self._agent(host, folder, Verifier({signer.key_id: key.public_key()}, host)) for host in self.hosts
        ]

    @property
    def hosts(self) -> list[str]:
        """Their names."""
        return list(self.fleet.hosts)

    @property
    def end_s(self) -> float:
        """The present, as the fleet knows it."""
        return self.clock.now_ns() / 1e9

    def moved(self) -> str:
        """Return the UUID of the guest that was moved."""
        records = [entry.record for entry in self.controller.entries()]
        moves = [record for record in records if isinstance(record, Outcome) and record.action == "migrate"]
        assert moves, "nothing was moved"
        return moves[0].guest

    def exporters(self, port: Callable[[], int] = lambda: 0) -> list[Exporter]:
        """Return an exporter for each process, as production watches it; `port` gives each one's port, 0 for none."""
        made = [
            controller_service.watch_controller(Exporter(ExporterOptions(port=port())), self.controller),
            writer_service.watch_writer(Exporter(ExporterOptions(port=port())), self.writer),
        ]
        return made + [
            agent_service.watch_agent(Exporter(ExporterOptions(port=port())), agent) for agent in self.agents
        ]

    def _agent(self, host: str, folder: Path, verifier: Verifier) -> Agent:
        made = simulated_agent(
            self.fleet,
            host,
            cluster=self.cluster,
            boot="test",
            broker=self.broker,
            clock=self.clock,
            folder=folder / host,
            verifier=verifier,
        )
        made.start()
        return made

    def play(self, played_s: int = PLAYED_S) -> None:
        """Let so many seconds of the fleet's time pass."""
        for _ in range(played_s):
            self.fleet.advance(1)
            self.clock.advance(1)
            for agent in self.agents:
                agent.step(0)
            self.controller.step(0)
            self.writer.step(0)

    def close(self) -> None:
        """End everything in order."""
        for agent in self.agents:
            agent.close()
        self.writer.close()
        self.controller.close()


def exported_names(exporter: Exporter) -> frozenset[str]:
    """Return the series' names on an exporter's page, those of metrics without a value yet too."""
    _, page = exporter.metrics()
    families = list(text_string_to_metric_families(page.decode()))
    series = {sample.name for family in families for sample in family.samples}
    suffixes = {"counter": "_total", "gauge": ""}
    return frozenset(series | {family.name + suffixes[family.type] for family in families if family.type in suffixes})
