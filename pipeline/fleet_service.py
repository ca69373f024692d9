"""A simulated fleet as a process: what its agents speak to is real."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Final

from virtpilot.actuators.caps import Caps
from virtpilot.actuators.command import Verifier, load_public
from virtpilot.actuators.order import Operators
from virtpilot.clock import SECOND, Clock, SystemClock
from virtpilot.pipeline import agent_assembly, settings, starting
from virtpilot.pipeline.agent import Agent, last_will
from virtpilot.pipeline.agent_service import watch_agents
from virtpilot.pipeline.bus.mqtt import MqttBus
from virtpilot.pipeline.exporter import Exporter
from virtpilot.pipeline.fleet_config import FleetConfig
from virtpilot.pipeline.process import boot_id, set_up_logs, sole_user, stopping
from virtpilot.simulator import scenario
from virtpilot.simulator.fleet import Fleet
from virtpilot.topics import Topics

_STEP_S: Final = 0.5


def fleet(path: Path) -> None:
    """Run a simulated fleet: its time is the machine's, its agents speak to the broker like real ones."""
    config = settings.load(path, FleetConfig)
    set_up_logs(config.log)
    clock = SystemClock()
    played = scenario.load(Path(config.scenario) if config.scenario else scenario.demo_path())
    with (
        stopping(threading.Event()) as stop,
        sole_user(Path(config.state_folder)),
        closing(Exporter(config.exporter)) as exporter,
        ExitStack() as agents_end,
    ):
        simulated = Fleet(played, clock.now_ns())
        agents: list[Agent] = []
        _watch_fleet(exporter, agents)
        for host in simulated.hosts:
            agents.append(_simulated(config, simulated, host, clock))
            agents_end.callback(agents[-1].close)
        _play(simulated, agents, clock, stop)


def _watch_fleet(exporter: Exporter, agents: Sequence[Agent]) -> None:
    exporter.watch("virtpilot_fleet_hosts_count", "Simulated hosts.", "gauge", lambda: len(agents))
    watch_agents(exporter, agents)
    exporter.check("bus", lambda: all(made.bus.generation > 0 for made in agents))


def _simulated(config: FleetConfig, simulated: Fleet, host: str, clock: Clock) -> Agent:
    boot = boot_id()
    will = last_will(Topics(config.cluster), host, boot, clock.now_ns())
    return agent_assembly.agent(
        cluster=config.cluster,
        host=host,
        boot=boot,
        bus=lambda: MqttBus(config.bus, f"virtpilot-{config.cluster}-agent-{host}", will),
        clock=clock,
        hypervisor=simulated.hypervisor(host),
        tree=simulated.tree(host),
        cpus=frozenset(range(simulated.facts(host).cpus)),
        folder=Path(config.state_folder) / host,
        verifier=Verifier(load_public(map(Path, config.commands.public_key_files)), host),
        migration_uri=simulated.migration_uri(host),
        timing=config.timing,
        sampling=config.sampling,
        spool=config.spool,
        caps=Caps(),
        operators=Operators(load_public(map(Path, config.operators.public_key_files))),
    )


def _play(simulated: Fleet, agents: list[Agent], clock: Clock, stop: threading.Event) -> None:
    for made in agents:
        made.start()
    starting.over()
    former_ns = clock.monotonic_ns()
    while not stop.wait(_STEP_S):
        now_ns = clock.monotonic_ns()
        simulated.advance((now_ns - former_ns) / SECOND)
        former_ns = now_ns
        for made in agents:
            if simulated.online(made.host):
                made.step(0)
