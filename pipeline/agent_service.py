"""The agent as a process; it imports what an agent needs and nothing more, for there is one on each host."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from virtpilot.clock import SystemClock
from virtpilot.pipeline import agent_assembly, settings
from virtpilot.pipeline.agent import Agent
from virtpilot.pipeline.agent_config import AgentConfig
from virtpilot.pipeline.exporter import Exporter
from virtpilot.pipeline.service import run


def agent(path: Path) -> None:
    """Run the agent of this host until it is told to stop."""
    config = settings.load(path, AgentConfig)
    run(config, lambda _hangup: agent_assembly.agent_from(config, SystemClock()), watch_agent)


def watch_agent(exporter: Exporter, made: Agent) -> Exporter:
    """Export what an agent knows of itself."""
    return watch_agents(exporter, [made])


def watch_agents(exporter: Exporter, agents: Sequence[Agent]) -> Exporter:
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
        lambda made: made.commands.refused,
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

    watch(
        "virtpilot_agent_stopped_count",
        "Agents that begin nothing new after a stop.",
        "gauge",
        lambda made: bool(made.commands.stopped),
    )
    watch("virtpilot_agent_events_published_total", "Events published.", "counter", lambda made: made.desk.published)
    watch("virtpilot_agent_events_dropped_total", "Events lost.", "counter", lambda made: made.desk.dropped)
    watch("virtpilot_agent_sampling_orders_total", "Orders to sample.", "counter", lambda made: made.cadence.orders)
    watch("virtpilot_agent_sampling_refused_total", "Orders not taken.", "counter", lambda made: made.cadence.refused)
    watch("virtpilot_agent_guests_fast_count", "Guests sampled faster.", "gauge", lambda made: len(made.cadence.fast))
    watch("virtpilot_agent_guests_calm_count", "Guests told less often.", "gauge", lambda made: len(made.cadence.calm))
    exporter.watch(
        "virtpilot_agent_controller_silent_seconds",
        "How long ago a controller was last heard of.",
        "gauge",
        lambda: max((made.attention.controller.silent_s for made in agents), default=0.0),
    )
    exporter.watch("virtpilot_agent_events_total", "Events.", "counter", lambda: _event_counts(agents), "kind")


def _event_counts(agents: Sequence[Agent]) -> Counter[str]:
    return sum((made.desk.by_kind for made in agents), Counter())
