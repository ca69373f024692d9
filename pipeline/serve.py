"""The long-running processes: config, parts, exporter, and an orderly end."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Final, Literal, Protocol, TypeVar

import structlog

from virtpilot import __version__
from virtpilot.actuators.command import Verifier, load_public
from virtpilot.actuators.knob import Caps
from virtpilot.clock import SECOND, Clock, SystemClock
from virtpilot.model import Bus
from virtpilot.pipeline import assembly, settings
from virtpilot.pipeline.agent import Agent, last_will
from virtpilot.pipeline.bus.mqtt import MqttBus
from virtpilot.pipeline.config import AgentConfig, ControllerConfig, FleetConfig, WriterConfig
from virtpilot.pipeline.controller import Controller
from virtpilot.pipeline.exporter import Exporter
from virtpilot.pipeline.process import boot_id, set_up_logs, sole_user, stopping
from virtpilot.pipeline.writer import Writer
from virtpilot.simulator import scenario
from virtpilot.simulator.fleet import Fleet
from virtpilot.topics import Topics

_FLEET_STEP_S: Final = 0.5
log = structlog.get_logger(__name__)


class _Service(Protocol):
    """What a process runs; its counters are exported."""

    @property
    def bus(self) -> Bus:
        """Its session on the bus."""

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set, then close."""


_Made = TypeVar("_Made", bound=_Service)


def agent(path: Path) -> None:
    """Run the agent of this host until it is told to stop."""
    config = settings.load(path, AgentConfig)
    _run(config, lambda _hangup: assembly.agent_from(config, SystemClock()), watch_agent)


def controller(path: Path) -> None:
    """Run the controller of a cluster until it is told to stop; SIGHUP reloads the rules."""
    config = settings.load(path, ControllerConfig)

    def make(hangup: threading.Event) -> Controller:
        made = assembly.controller_from(config, SystemClock())
        made.reload_asked = hangup
        return made

    _run(config, make, watch_controller)


def writer(path: Path) -> None:
    """Run a writer until it is told to stop."""
    config = settings.load(path, WriterConfig)
    _run(config, lambda _hangup: assembly.writer_from(config, SystemClock()), watch_writer)


def _run(
    config: AgentConfig | ControllerConfig | WriterConfig,
    make: Callable[[threading.Event], _Made],
    watch: Callable[[Exporter, _Made], Exporter],
) -> None:
    """Make and run a part; what can be wrong with its surroundings is found before it speaks to anybody."""
    set_up_logs(config.log)
    hangup = threading.Event()
    with stopping(hangup) as stop, sole_user(Path(config.state_folder)), closing(Exporter(config.exporter)) as exporter:
        made = make(hangup)
        watch(exporter, made)
        _watch_bus(exporter, made.bus)
        log.info("started", version=__version__, cluster=config.cluster, exporter_port=exporter.port)
        made.run(stop)
    log.info("ended")


def _watch_bus(exporter: Exporter, bus: Bus) -> None:
    exporter.check("bus", lambda: bus.generation > 0)
    if isinstance(bus, MqttBus):
        exporter.watch("virtpilot_bus_refused_total", "Messages not taken.", "counter", lambda: bus.refused)
        exporter.watch(
            "virtpilot_bus_takeovers_total",
            "Times another client came by our name, it seems.",
            "counter",
            lambda: bus.takeovers,
        )


def watch_agent(exporter: Exporter, made: Agent) -> Exporter:
    """Export what an agent knows of itself."""
    return _watch_agents(exporter, [made])


def _watch_agents(exporter: Exporter, agents: Sequence[Agent]) -> Exporter:
    """Export the sums of what agents know of themselves."""

    def watch(name: str, meaning: str, kind: Literal["counter", "gauge"], read: Callable[[Agent], int]) -> None:
        exporter.watch(name, meaning, kind, lambda: sum(map(read, agents)))

    watch("virtpilot_agent_ticks_total", "Measurements made.", "counter", lambda made: made.ticks)
    watch("virtpilot_agent_samples_total", "Samples measured.", "counter", lambda made: made.samples)
    watch(
        "virtpilot_agent_failures_total",
        "Sources that could not be read.",
        "counter",
        lambda made: made.collector.failures,
    )
    watch(
        "virtpilot_agent_commands_refused_total",
        "Commands not verified.",
        "counter",
        lambda made: made.commands_refused,
    )
    watch("virtpilot_agent_leases_count", "Knobs held just now.", "gauge", lambda made: len(made.executor.leases()))
    watch("virtpilot_spool_messages_count", "Messages not reported stored.", "gauge", lambda made: made.uplink.pending)
    watch("virtpilot_spool_published_total", "Messages published.", "counter", lambda made: made.uplink.published)
    watch("virtpilot_spool_resent_total", "Messages published again.", "counter", lambda made: made.uplink.resent)
    watch(
        "virtpilot_spool_dropped_total", "Messages lost to a full spool.", "counter", lambda made: made.uplink.dropped
    )
    watch(
        "virtpilot_spool_unspooled_total",
        "Messages sent without a spool, its disk being unusable.",
        "counter",
        lambda made: made.uplink.unspooled,
    )
    watch("virtpilot_spool_size_bytes", "Bytes on disk.", "gauge", lambda made: made.uplink.size_bytes)
    watch("virtpilot_spool_limit_bytes", "Bytes on disk at most.", "gauge", lambda made: made.uplink.limit_bytes)
    exporter.check("spool", lambda: all(made.uplink.keeps_all for made in agents))
    _watch_between_ticks(exporter, agents)
    return exporter


def _watch_between_ticks(exporter: Exporter, agents: Sequence[Agent]) -> None:
    """Export what agents tell between their ticks: events, and guests that are sampled faster."""

    def watch(name: str, meaning: str, kind: Literal["counter", "gauge"], read: Callable[[Agent], int]) -> None:
        exporter.watch(name, meaning, kind, lambda: sum(map(read, agents)))

    watch("virtpilot_agent_events_published_total", "Events published.", "counter", lambda made: made.desk.published)
    watch("virtpilot_agent_events_dropped_total", "Events lost.", "counter", lambda made: made.desk.dropped)
    watch("virtpilot_agent_sampling_orders_total", "Orders to sample.", "counter", lambda made: made.cadence.orders)
    watch("virtpilot_agent_sampling_refused_total", "Orders not taken.", "counter", lambda made: made.cadence.refused)
    watch("virtpilot_agent_guests_fast_count", "Guests sampled faster.", "gauge", lambda made: len(made.cadence.fast))
    watch("virtpilot_agent_guests_calm_count", "Guests told less often.", "gauge", lambda made: len(made.cadence.calm))
    exporter.watch("virtpilot_agent_events_total", "Events.", "counter", lambda: _event_counts(agents), "kind")


def _event_counts(agents: Sequence[Agent]) -> Counter[str]:
    return sum((made.desk.by_kind for made in agents), Counter())


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
    exporter.watch(
        "virtpilot_decisions_refused_total", "Decisions refused.", "counter", lambda: dict(counters.refused), "guard"
    )
    exporter.watch("virtpilot_commands_total", "Commands given.", "counter", lambda: counters.commands)
    exporter.watch("virtpilot_outcomes_total", "Outcomes.", "counter", lambda: dict(counters.outcomes), "result")
    exporter.watch("virtpilot_rules_count", "Rules in force.", "gauge", lambda: len(made.rulebook.ruleset.rules))
    exporter.watch("virtpilot_rules_refused_total", "Rule files refused.", "counter", lambda: made.rulebook.refusals)
    exporter.watch("virtpilot_state_save_failures_total", "State not saved.", "counter", lambda: made.save_failures)
    exporter.watch(
        "virtpilot_matcher_info",
        "The second stage's matcher.",
        "gauge",
        lambda: {made.pilot.decider.matcher: 1},
        "matcher",
    )
    exporter.check("rules", lambda: not made.rulebook.problems)
    _watch_streams(exporter, made)
    return exporter


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


def watch_writer(exporter: Exporter, made: Writer) -> Exporter:
    """Export what a writer knows of itself."""
    exporter.watch("virtpilot_writer_messages_total", "Messages stored.", "counter", lambda: made.written)
    exporter.watch(
        "virtpilot_writer_retries_total", "Attempts that the store did not take.", "counter", lambda: made.retries
    )
    exporter.watch("virtpilot_writer_dead_lines_total", "Lines put aside.", "counter", lambda: made.dead_lines)
    exporter.watch("virtpilot_writer_series_count", "Series of each host.", "gauge", made.series.counts, "host")
    exporter.watch(
        "virtpilot_writer_series_refused_total",
        "Lines put aside: series beyond the host's limit.",
        "counter",
        made.series.refused,
        "host",
    )
    exporter.watch("virtpilot_writer_reported_total", "Messages reported stored.", "counter", lambda: made.reported)
    exporter.check("store", lambda: made.store_takes)
    return exporter


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
    _watch_agents(exporter, agents)
    exporter.check("bus", lambda: all(made.bus.generation > 0 for made in agents))


def _simulated(config: FleetConfig, simulated: Fleet, host: str, clock: Clock) -> Agent:
    boot = boot_id()
    will = last_will(Topics(config.cluster), host, boot, clock.now_ns())
    return assembly.agent(
        cluster=config.cluster,
        host=host,
        boot=boot,
        bus=lambda: assembly.mqtt(config.bus, f"virtpilot-{config.cluster}-agent-{host}", will),
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
