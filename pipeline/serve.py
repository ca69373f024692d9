"""The long-running processes: config, parts, exporter, and an orderly end."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Final

import structlog

from virtpilot.actuators.caps import Caps
from virtpilot.actuators.command import Verifier, load_public
from virtpilot.actuators.order import Operators
from virtpilot.clock import SECOND, Clock, SystemClock
from virtpilot.pipeline import agent_assembly, assembly, settings
from virtpilot.pipeline.agent import Agent, last_will
from virtpilot.pipeline.agent_service import watch_agents
from virtpilot.pipeline.bus.mqtt import MqttBus
from virtpilot.pipeline.config import ControllerConfig, FleetConfig
from virtpilot.pipeline.controller import Controller
from virtpilot.pipeline.exporter import Exporter
from virtpilot.pipeline.process import boot_id, set_up_logs, sole_user, stopping
from virtpilot.pipeline.service import run
from virtpilot.simulator import scenario
from virtpilot.simulator.fleet import Fleet
from virtpilot.topics import Topics

_FLEET_STEP_S: Final = 0.5
log = structlog.get_logger(__name__)


def controller(path: Path) -> None:
    """Run the controller of a cluster until it is told to stop; SIGHUP reloads the rules."""
    config = settings.load(path, ControllerConfig)

    def make(hangup: threading.Event) -> Controller:
        made = assembly.controller_from(config, SystemClock())
        made.reload_asked = hangup
        return made

    run(config, make, watch_controller)


def watch_controller(exporter: Exporter, made: Controller) -> Exporter:
    """Export what a controller knows of itself."""
    counters = made.counters
    exporter.watch("virtpilot_controller_messages_total", "Messages handled.", "counter", lambda: counters.messages)
    exporter.watch("virtpilot_controller_samples_total", "Samples evaluated.", "counter", lambda: counters.samples)
    exporter.watch("virtpilot_controller_bad_lines_total", "Malformed lines.", "counter", lambda: counters.bad_lines)
    exporter.watch(
        "virtpilot_controller_bad_messages_total", "Unreadable messages.", "counter", lambda: counters.bad_messages
    )
    exporter.watch("virtpilot_signals_total", "Signal transitions.", "counter", lambda: counters.signals)
    exporter.watch(
        "virtpilot_signals_firing_count",
        "Subjects for which a rule fires just now.",
        "gauge",
        lambda: made.rulebook.evaluator.firing_counts(),  # noqa: PLW0108 - a reload replaces the evaluator
        "rule",
    )
    exporter.watch("virtpilot_decisions_accepted_total", "Decisions accepted.", "counter", lambda: counters.accepted)
    exporter.watch("virtpilot_commands_total", "Commands given.", "counter", lambda: counters.commands)
    exporter.watch("virtpilot_outcomes_total", "Outcomes.", "counter", lambda: dict(counters.outcomes), "result")
    exporter.watch("virtpilot_rules_count", "Rules in force.", "gauge", lambda: len(made.rulebook.ruleset.rules))
    exporter.watch("virtpilot_rules_refused_total", "Rule files refused.", "counter", lambda: made.rulebook.refusals)
    exporter.watch("virtpilot_state_save_failures_total", "State not saved.", "counter", lambda: made.save_failures)
    exporter.watch(
        "virtpilot_audit_failures_total", "Audit lines not written.", "counter", lambda: made.books.audit_failures
    )
    exporter.watch(
        "virtpilot_matcher_info",
        "The second stage's matcher.",
        "gauge",
        lambda: {made.pilot.decider.matcher: 1},
        "matcher",
    )
    exporter.check("rules", lambda: not made.rulebook.problems)
    _watch_guards(exporter, made)
    _watch_people(exporter, made)
    _watch_streams(exporter, made)
    return exporter


def _watch_guards(exporter: Exporter, made: Controller) -> None:
    """Export what the guards refused, and what some of them remember."""
    guards, refused, clock = made.pilot.guards, made.counters.refused, SystemClock()
    none = dict.fromkeys(guards.names, 0)
    exporter.watch(
        "virtpilot_decisions_refused_total", "Decisions refused.", "counter", lambda: none | refused, "guard"
    )
    exporter.watch(
        "virtpilot_budget_left_count",
        "Actions left in each budget that is not full, at its last use.",
        "gauge",
        guards.budgets.states,
        "budget",
    )
    exporter.watch(
        "virtpilot_breaker_state_code",
        "Breakers after failures: 0 closed, 1 half open, 2 open.",
        "gauge",
        lambda: guards.breakers.states(clock.now_ns()),
        "breaker",
    )
    exporter.watch(
        "virtpilot_oscillating_count",
        "Guests that go to and fro, or whose knobs do.",
        "gauge",
        lambda: len(list(guards.oscillations.alarms())),
    )
    exporter.watch(
        "virtpilot_foreign_guests_count",
        "Guests left alone because somebody else changed them.",
        "gauge",
        lambda: len(guards.foreign),
    )


def _watch_people(exporter: Exporter, made: Controller) -> None:
    """Export what people have said, and what waits for them."""
    exporter.watch(
        "virtpilot_stopped_count",
        "1 while the controller begins nothing new after a stop.",
        "gauge",
        lambda: bool(made.pilot.guards.stopped.why),
    )
    exporter.watch(
        "virtpilot_approvals_count",
        "Actions that wait for approval, and how those last settled ended.",
        "gauge",
        lambda: made.pilot.approvals.counts,
        "state",
    )


def _watch_streams(exporter: Exporter, made: Controller) -> None:
    """Export what came beside the agents' metrics, and what the agents were asked for."""
    counters = made.counters
    exporter.watch(
        "virtpilot_controller_foreign_samples_total",
        "Samples that others than agents published.",
        "counter",
        lambda: made.sources.foreign,
    )
    exporter.watch("virtpilot_events_total", "Events of hosts.", "counter", lambda: dict(counters.events), "kind")
    exporter.watch(
        "virtpilot_sampling_guests_count",
        "Guests that agents are asked to sample faster or less often.",
        "gauge",
        lambda: made.steering.counts(),  # noqa: PLW0108 - read anew at each scrape
        "pace",
    )


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
    former_ns = clock.monotonic_ns()
    while not stop.wait(_FLEET_STEP_S):
        now_ns = clock.monotonic_ns()
        simulated.advance((now_ns - former_ns) / SECOND)
        former_ns = now_ns
        for made in agents:
            if simulated.online(made.host):
                made.step(0)
