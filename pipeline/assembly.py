"""How the processes are put together from their options: the wiring, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from virtpilot.actuators.command import Signer, load_public
from virtpilot.actuators.guards.chain import Guards
from virtpilot.actuators.order import Operators
from virtpilot.clock import Clock, seconds
from virtpilot.model import Bus, Message
from virtpilot.pipeline import state, window_files
from virtpilot.pipeline.alerts import Alerts
from virtpilot.pipeline.approvals import ApprovalDesk
from virtpilot.pipeline.asking import Asking
from virtpilot.pipeline.audit.log import AuditLog, NoAudit
from virtpilot.pipeline.books import Books
from virtpilot.pipeline.controller import Controller
from virtpilot.pipeline.controller_config import ControllerConfig
from virtpilot.pipeline.evaluations import EVALUATIONS, EvaluationLog, Tracer
from virtpilot.pipeline.maintenance import MaintenanceDesk
from virtpilot.pipeline.measured_fleet import MeasuredFleet
from virtpilot.pipeline.operations.announced import located
from virtpilot.pipeline.operations.desk import Desk
from virtpilot.pipeline.operations.page import OperationsPage
from virtpilot.pipeline.pilot import Pilot
from virtpilot.pipeline.presence import presence
from virtpilot.pipeline.records import RECORDS, RecordLog
from virtpilot.pipeline.rulebook import Rulebook
from virtpilot.pipeline.switch import SWITCH, Switch
from virtpilot.pipeline.window_files import WindowFiles
from virtpilot.rules.decisions.decider import Decider
from virtpilot.rules.decisions.matcher import choose
from virtpilot.topics import Topics


def controller(
    config: ControllerConfig,
    *,
    bus: Callable[[Message], Bus],
    clock: Clock,
    signer: Signer,
    folder: Path | None,
    rulebook: Rulebook | None = None,
) -> Controller:
    """Put a controller together and let it take up where it left; raises RuleError and StateError.

    `bus` is given its last will. Its state is kept in `folder`, None for one in memory; `rulebook` takes the
    place of the config's rules.
    """
    state_path = _state_path(folder)
    saved = None if state_path is None else state.load(state_path)
    rulebook = rulebook or Rulebook(config.rules)
    topics, pilot = Topics(config.cluster), _pilot(config, rulebook, _epoch(saved, clock))
    made = Controller(
        topics=topics,
        bus=bus(presence(topics, pilot.epoch, clock.now_ns(), online=False)),
        rulebook=rulebook,
        pilot=pilot,
        operations=OperationsPage(config.operations, pilot.desk, lambda work: located(work, pilot.fleet)),
        signer=signer,
        alerts=Alerts(config.alerts, clock, config.cluster),
        books=_books(folder, clock),
        tracer=Tracer(rulebook, EvaluationLog(folder / EVALUATIONS if folder is not None else None)),
        clock=clock,
        timing=config.timing,
        state=None if state_path is None else state.StateLog(state_path),
        windows=WindowFiles(folder, clock, seconds(config.timing.save_s)),
        sampling=config.sampling,
        switch=_switch(config, folder),
    )
    if saved is not None and folder is not None:
        made.restore(saved, window_files.load(folder))
    return made


def _pilot(config: ControllerConfig, rulebook: Rulebook, epoch: int) -> Pilot:
    limits = config.guards
    fleet = MeasuredFleet(rulebook.evaluator, seconds(limits.max_sample_age_s))
    # The queue has as many places as the guard of concurrency.
    moves = {"out": limits.migrations_out, "in": limits.migrations_in, "cluster": limits.migrations_cluster}
    return Pilot(
        fleet=fleet,
        decider=Decider(rulebook.ruleset, choose(rulebook.matcher), config.decisions),
        guards=Guards(limits),
        desk=Desk(config.scheduling, moves),
        approvals=ApprovalDesk(config.approvals, _operators(config), config.cluster),
        asking=Asking(fleet, rulebook.ruleset, config.reserve, limits),
        reserve=config.reserve,
        options=config.pilot,
        moving=config.moving,
        maintenance=MaintenanceDesk(_operators(config), config.cluster),
        epoch=epoch,
    )


def _books(folder: Path | None, clock: Clock) -> Books:
    """Return what is kept of what happens, in a folder; in memory alone without one."""
    if folder is None:
        return Books(RecordLog(), NoAudit(), clock)
    return Books(RecordLog(folder / RECORDS), AuditLog(folder), clock)


def _switch(config: ControllerConfig, folder: Path | None) -> Switch:
    return Switch(folder / SWITCH if folder is not None else None, _operators(config), config.cluster)


def _operators(config: ControllerConfig) -> Operators:
    return Operators(load_public(map(Path, config.operators.public_key_files)))


def _state_path(folder: Path | None) -> Path | None:
    """Return where the state is kept, in a folder that is there from now on; None for a controller in memory."""
    if folder is None:
        return None
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder / "state.json"


def _epoch(saved: Mapping[str, Any] | None, clock: Clock) -> int:
    """Return an epoch newer than any before it, also on a machine that has lost its state."""
    return max(int(saved["epoch"]) + 1 if saved else 0, clock.now_ns() // seconds(1))
