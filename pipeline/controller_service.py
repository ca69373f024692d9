"""The controller as a process; it imports neither stores nor the simulator."""

from __future__ import annotations

import threading
from pathlib import Path

import msgspec

from virtpilot.actuators.command import Signer, load_private
from virtpilot.clock import Clock, SystemClock
from virtpilot.pipeline import assembly, settings
from virtpilot.pipeline.bus.mqtt import MqttBus
from virtpilot.pipeline.controller import Controller
from virtpilot.pipeline.controller_config import ControllerConfig
from virtpilot.pipeline.exporter import Exporter
from virtpilot.pipeline.own_machine import machine_uuids
from virtpilot.pipeline.service import run


def controller(path: Path) -> None:
    """Run the controller of a cluster until it is told to stop; SIGHUP reloads the rules."""
    config = settings.load(path, ControllerConfig)

    def make(hangup: threading.Event) -> Controller:
        made = controller_from(config, SystemClock())
        made.reload_asked = hangup
        return made

    run(config, make, watch_controller)


def controller_from(config: ControllerConfig, clock: Clock) -> Controller:
    """Put the controller of a cluster together."""
    return assembly.controller(
        _knowing_this_machine(config),
        bus=lambda will: MqttBus(config.bus, f"virtpilot-{config.cluster}-controller", will),
        clock=clock,
        signer=Signer(load_private(Path(config.commands.private_key_file))),
        folder=Path(config.state_folder),
    )


def _knowing_this_machine(config: ControllerConfig) -> ControllerConfig:
    """Return the config with this machine among those that nothing is done to, should it be a guest."""
    limits, own = config.guards, sorted(machine_uuids())
    guards = msgspec.structs.replace(limits, engine_guests=[*limits.engine_guests, *own])
    return msgspec.structs.replace(config, guards=guards)


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
