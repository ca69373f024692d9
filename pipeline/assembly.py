"""How the processes are put together from their options: the wiring, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from virtpilot.actuators.command import Signer, load_private
from virtpilot.actuators.guards.chain import Guards
from virtpilot.actuators.guards.options import GuardOptions
from virtpilot.clock import Clock, seconds
from virtpilot.model import Bus, Store
from virtpilot.pipeline import state
from virtpilot.pipeline.alerts import AlertOptions, Alerts
from virtpilot.pipeline.asking import Asking
from virtpilot.pipeline.bus.mqtt import MqttBus
from virtpilot.pipeline.config import ControllerConfig, WriterConfig
from virtpilot.pipeline.controller import Controller, ControllerTiming
from virtpilot.pipeline.evaluations import EVALUATIONS, EvaluationLog, Tracer
from virtpilot.pipeline.measured_fleet import MeasuredFleet
from virtpilot.pipeline.own_machine import machine_uuids
from virtpilot.pipeline.pilot import Pilot, PilotOptions
from virtpilot.pipeline.records import RECORDS, RecordLog
from virtpilot.pipeline.rulebook import Rulebook, RuleOptions
from virtpilot.pipeline.steering import SteeringOptions
from virtpilot.pipeline.store.file import FileStore
from virtpilot.pipeline.store.influx import InfluxStore
from virtpilot.pipeline.writer import Writer
from virtpilot.planner.placement import Reserve
from virtpilot.rules.decisions.decider import Decider, DecisionOptions
from virtpilot.rules.decisions.matcher import choose
from virtpilot.topics import Topics


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
    flown = _pilot(rulebook, decisions, guards, reserve, pilot, _epoch(saved, clock))
    made = Controller(
        topics=Topics(cluster),
        bus=bus(),
        rulebook=rulebook,
        pilot=flown,
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


def _pilot(
    rulebook: Rulebook,
    decisions: DecisionOptions,
    limits: GuardOptions,
    reserve: Reserve,
    options: PilotOptions,
    epoch: int,
) -> Pilot:
    fleet = MeasuredFleet(rulebook.evaluator, seconds(limits.max_sample_age_s))
    asking = Asking(fleet, rulebook.ruleset, reserve, limits)
    decider = Decider(rulebook.ruleset, choose(rulebook.matcher), decisions)
    return Pilot(fleet, decider, Guards(limits), asking, reserve, options, epoch)


def _state_path(folder: Path | None) -> Path | None:
    """Return where the state is kept, in a folder that is there from now on; None for a controller in memory."""
    if folder is None:
        return None
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder / "state.json"


def _epoch(saved: Mapping[str, Any] | None, clock: Clock) -> int:
    """Return an epoch newer than any before it, also on a machine that has lost its state."""
    return max(int(saved["epoch"]) + 1 if saved else 0, clock.now_ns() // seconds(1))


def _knowing_this_machine(limits: GuardOptions) -> GuardOptions:
    """Return the guards' options with this machine among those that nothing is done to, should it be a guest."""
    return msgspec.structs.replace(limits, engine_guests=[*limits.engine_guests, *sorted(machine_uuids())])


def controller_from(config: ControllerConfig, clock: Clock) -> Controller:
    """Put the controller of a cluster together."""
    return controller(
        cluster=config.cluster,
        bus=lambda: MqttBus(config.bus, f"virtpilot-{config.cluster}-controller"),
        clock=clock,
        signer=Signer(load_private(Path(config.commands.private_key_file))),
        folder=Path(config.state_folder),
        rules=config.rules,
        decisions=config.decisions,
        guards=_knowing_this_machine(config.guards),
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
    bus = MqttBus(config.bus, f"virtpilot-{config.cluster}-writer-{config.name}")
    return Writer(bus, store, Topics(config.cluster), clock, dead_letters=folder / "dead-letters", limits=config.limits)
