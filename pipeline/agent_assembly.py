"""How an agent is put together from its options: the wiring, and nothing else."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

from virtpilot.actuators.caps import Caps
from virtpilot.actuators.command import Verifier, load_public
from virtpilot.actuators.executor import Executor
from virtpilot.actuators.hooks.hook import HookOptions
from virtpilot.actuators.journal import Journal
from virtpilot.actuators.order import Operators
from virtpilot.clock import Clock
from virtpilot.collectors.collector import HostCollector
from virtpilot.collectors.tree import FileTree, Tree
from virtpilot.hypervisor import Hypervisor
from virtpilot.model import Bus
from virtpilot.pipeline.agent import Agent, AgentTiming, last_will
from virtpilot.pipeline.agent_config import AgentConfig
from virtpilot.pipeline.attention import Attention
from virtpilot.pipeline.audit.commands import CommandAudit
from virtpilot.pipeline.audit.log import AuditLog
from virtpilot.pipeline.bus.mqtt import MqttBus
from virtpilot.pipeline.cadence import CadenceOptions
from virtpilot.pipeline.command_desk import CommandDesk
from virtpilot.pipeline.presence import ControllerWatch
from virtpilot.pipeline.process import boot_id
from virtpilot.pipeline.spool import Spool, SpoolOptions
from virtpilot.pipeline.switch import SWITCH, Switch
from virtpilot.pipeline.uplink import Uplink
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
    hooks: HookOptions = HookOptions(),  # noqa: B008 - frozen
    operators: Operators = Operators({}),  # noqa: B008 - has no state
) -> Agent:
    """Put an agent together; the bus comes last: a start that fails must not take the place of one that runs."""
    executor = Executor(hypervisor, _journal(folder), host=host, caps=caps, hooks=hooks, clock=clock)
    tags, now, leased = {"cluster": cluster, "host": host}, clock.monotonic_ns, executor.leased
    collector = HostCollector(hypervisor, tree, tags, cpus, monotonic_ns=now, leased=leased, budget_s=timing.budget_s)
    switch = Switch(folder / SWITCH, operators, cluster)
    audit, topics, spooled = CommandAudit(AuditLog(folder)), Topics(cluster), Spool(folder / "spool", boot, spool)
    return Agent(
        host=host,
        boot=boot,
        topics=topics,
        bus=(session := bus()),
        uplink=Uplink(session, spooled, topics, host, clock),
        collector=collector,
        hypervisor=hypervisor,
        commands=CommandDesk(_attention(executor, caps, clock), verifier, switch, audit, clock, timing.settle_ns),
        clock=clock,
        migration_uri=migration_uri,
        timing=timing,
        sampling=sampling,
    )


def _attention(executor: Executor, caps: Caps, clock: Clock) -> Attention:
    return Attention(executor, ControllerWatch(caps.controller_grace_s, clock))


def _journal(folder: Path) -> Journal:
    """Return the journal in the agent's folder, which is there from now on; raises StateError."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return Journal(folder / "journal.jsonl")


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
        bus=lambda: MqttBus(config.bus, f"virtpilot-{config.cluster}-agent-{host}", will),
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
        operators=Operators(load_public(map(Path, config.operators.public_key_files))),
        hooks=config.hooks,
    )
