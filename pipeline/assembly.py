"""How the processes are put together from their options: the wiring, and nothing else."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from virtpilot.actuators.command import Signer, Verifier, load_private, load_public
from virtpilot.actuators.executor import Executor
from virtpilot.actuators.guard import GuardOptions, Guards
from virtpilot.actuators.journal import Journal
from virtpilot.actuators.knob import Caps
from virtpilot.clock import Clock, seconds
from virtpilot.collectors.collector import HostCollector
from virtpilot.collectors.tree import FileTree, Tree
from virtpilot.hypervisor import Hypervisor
from virtpilot.model import Bus, Message, Store
from virtpilot.pipeline import state
from virtpilot.pipeline.agent import Agent, AgentTiming, last_will
from virtpilot.pipeline.alerts import AlertOptions, Alerts
from virtpilot.pipeline.bus.mqtt import MqttBus
from virtpilot.pipeline.bus.mqtt_options import MqttOptions
from virtpilot.pipeline.cadence import CadenceOptions
from virtpilot.pipeline.config import AgentConfig, ControllerConfig, WriterConfig
from virtpilot.pipeline.controller import Controller, ControllerTiming
from virtpilot.pipeline.evaluations import EVALUATIONS, EvaluationLog, Tracer
from virtpilot.pipeline.measured_fleet import MeasuredFleet
from virtpilot.pipeline.pilot import Pilot, PilotOptions
from virtpilot.pipeline.process import boot_id
from virtpilot.pipeline.records import RECORDS, RecordLog
from virtpilot.pipeline.rulebook import Rulebook, RuleOptions
from virtpilot.pipeline.spool import Spool, SpoolOptions
from virtpilot.pipeline.steering import SteeringOptions
from virtpilot.pipeline.store.file import FileStore
from virtpilot.pipeline.store.influx import InfluxStore
from virtpilot.pipeline.uplink import Uplink
from virtpilot.pipeline.writer import Writer
from virtpilot.planner.placement import Reserve
from virtpilot.rules.decisions.decider import Decider, DecisionOptions
from virtpilot.rules.decisions.matcher import choose
from virtpilot.topics import Topics


def agent(
    *,
    cluster: str,
    host: str,
    boot: str,
    bus: Callable[[], Bus],
    clock: Clock,
    hypervisor: Hypervisor,
    tree: Tree,
    cpus: frozenset[int],
    folder: Path,
    verifier: Verifier,
    migration_uri: str,
    timing: AgentTiming,
    sampling: CadenceOptions,
    spool: SpoolOptions,
    caps: Caps,
) -> Agent:
    """Put an agent together; the bus comes last: a start that fails must not take the place of one that runs."""
    topics = Topics(cluster)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    executor = Executor(hypervisor, Journal(folder / "journal.jsonl"), host=host, caps=caps)
    tags, now, leased = {"cluster": cluster, "host": host}, clock.monotonic_ns, executor.leased
    collector = HostCollector(hypervisor, tree, tags, cpus, monotonic_ns=now, leased=leased, budget_s=timing.budget_s)
    spooled, session = Spool(folder / "spool", boot, spool), bus()
    return Agent(
        host=host,
        boot=boot,
        topics=topics,
        bus=session,
        uplink=Uplink(session, spooled, topics, host, clock),
        collector=collector,
        hypervisor=hypervisor,
        executor=executor,
        verifier=verifier,
        clock=clock,
        migration_uri=migration_uri,
        timing=timing,
        sampling=sampling,
    )


def agent_from(config: AgentConfig, clock: Clock) -> Agent:
    """Put the agent of this machine together; raises InputError for what the config names and is not there."""
    from virtpilot.libvirt_host import LibvirtHypervisor  # the libvirt extra: only a real agent needs it

    host = config.host or socket.gethostname()
    boot = boot_id()
    topics = Topics(config.cluster)
    will = last_will(topics, host, boot, clock.now_ns())
    options = config.hypervisor
    return agent(
        cluster=config.cluster,
        host=host,
        boot=boot,
        bus=lambda: mqtt(config.bus, f"virtpilot-{config.cluster}-agent-{host}", will),
        clock=clock,
        hypervisor=LibvirtHypervisor(
            options.uri,
            clock=clock,
            deadline_s=options.deadline_s,
            tag_names=frozenset(options.tags),
            dirty_rate_every_s=options.dirty_rate_every_s,
            guest_agent_every_s=options.guest_agent_every_s,
        ),
        tree=FileTree(Path(config.root_folder)),
        cpus=frozenset(os.sched_getaffinity(0)),
        folder=Path(config.state_folder),
        verifier=Verifier(load_public(map(Path, config.commands.public_key_files)), host),
        migration_uri=options.migration_uri,
        timing=config.timing,
        sampling=config.sampling,
        spool=config.spool,
        caps=config.caps,
    )


def mqtt(options: MqttOptions, client_id: str, will: Message | None = None) -> MqttBus:
    """Open a session on the broker; the broker need not be there yet."""
    return MqttBus(options, client_id, will=will)


def controller(
    *,
    cluster: str,
    bus: Callable[[], Bus],
    clock: Clock,
    signer: Signer,
    folder: Path | None,
    rules: RuleOptions | Rulebook,
    decisions: DecisionOptions,
    guards: GuardOptions,
    reserve: Reserve,
    pilot: PilotOptions,
    alerts: AlertOptions,
    timing: ControllerTiming,
    sampling: SteeringOptions = SteeringOptions(),  # noqa: B008 - frozen
) -> Controller:
    """Put a controller together and let it take up where it left; raises RuleError and StateError."""
    state_path = _state_path(folder)
    saved = None if state_path is None else state.load(state_path)
    rulebook = rules if isinstance(rules, Rulebook) else Rulebook(rules)
    fleet = MeasuredFleet(rulebook.evaluator, seconds(guards.max_sample_age_s))
    epoch = _epoch(saved, clock)
    decider = Decider(rulebook.ruleset, choose(rulebook.matcher), decisions)
    made = Controller(
        topics=Topics(cluster),
        bus=bus(),
        rulebook=rulebook,
        pilot=Pilot(fleet=fleet, decider=decider, guards=Guards(guards), reserve=reserve, options=pilot, epoch=epoch),
        signer=signer,
        alerts=Alerts(alerts, clock, cluster),
        records=RecordLog(folder / RECORDS if folder is not None else None),
        tracer=Tracer(rulebook, EvaluationLog(folder / EVALUATIONS if folder is not None else None)),
        clock=clock,
        timing=timing,
        state=None if state_path is None else state.StateLog(state_path),
        sampling=sampling,
    )
    if saved is not None:
        made.restore(saved)
    return made


def _state_path(folder: Path | None) -> Path | None:
    """Return where the state is kept, in a folder that is there from now on; None for a controller in memory."""
    if folder is None:
        return None
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder / "state.json"


def _epoch(saved: Mapping[str, Any] | None, clock: Clock) -> int:
    """Return an epoch newer than any before it, also on a machine that has lost its state."""
    return max(int(saved["epoch"]) + 1 if saved else 0, clock.now_ns() // seconds(1))


def controller_from(config: ControllerConfig, clock: Clock) -> Controller:
    """Put the controller of a cluster together."""
    return controller(
        cluster=config.cluster,
        bus=lambda: mqtt(config.bus, f"virtpilot-{config.cluster}-controller"),
        clock=clock,
        signer=Signer(load_private(Path(config.commands.private_key_file))),
        folder=Path(config.state_folder),
        rules=config.rules,
        decisions=config.decisions,
        guards=config.guards,
        reserve=config.reserve,
        pilot=config.pilot,
        alerts=config.alerts,
        timing=config.timing,
        sampling=config.sampling,
    )


def store_from(config: WriterConfig, clock: Clock) -> Store:
    """Return the store that a writer's config names."""
    return FileStore(Path(config.file_store)) if config.file_store else InfluxStore(config.store, clock)


def writer_from(config: WriterConfig, clock: Clock) -> Writer:
    """Put a writer together."""
    folder = Path(config.state_folder)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    store = store_from(config, clock)
    bus = mqtt(config.bus, f"virtpilot-{config.cluster}-writer-{config.name}")
    return Writer(bus, store, Topics(config.cluster), clock, dead_letters=folder / "dead-letters", limits=config.limits)
