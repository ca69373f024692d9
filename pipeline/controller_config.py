"""The controller's config file, composed of the options that each of its parts declares."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from virtpilot.actuators.guards.options import GuardOptions
from virtpilot.pipeline.alerts import AlertOptions
from virtpilot.pipeline.approvals import ApprovalOptions
from virtpilot.pipeline.bus.mqtt_options import MqttOptions
from virtpilot.pipeline.exporter_options import ExporterOptions
from virtpilot.pipeline.operations.desk import SchedulingOptions
from virtpilot.pipeline.operations.page import PageOptions
from virtpilot.pipeline.pilot import PilotOptions
from virtpilot.pipeline.process import Cluster, LogOptions, StateFolder
from virtpilot.pipeline.rulebook import RuleOptions
from virtpilot.pipeline.steering import SteeringOptions
from virtpilot.pipeline.switch import OperatorOptions
from virtpilot.pipeline.timing import ControllerTiming
from virtpilot.planner.moving import MovingOptions
from virtpilot.planner.placement import Reserve
from virtpilot.rules.decisions.decider import DecisionOptions


class ControllerKeys(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What this controller signs with."""

    private_key_file: Annotated[
        str, Meta(description="The private key (`virtpilot keys FOLDER` makes a pair); readable by its owner only.")
    ] = "/etc/virtpilot/controller.key"


class ControllerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`virtpilot controller`: one per cluster."""

    cluster: Cluster
    state_folder: StateFolder = "/var/lib/virtpilot/controller"
    timing: ControllerTiming = ControllerTiming()
    sampling: SteeringOptions = SteeringOptions()
    rules: RuleOptions = RuleOptions()
    decisions: DecisionOptions = DecisionOptions()
    guards: GuardOptions = GuardOptions()
    reserve: Reserve = Reserve()
    pilot: PilotOptions = PilotOptions()
    moving: MovingOptions = MovingOptions()
    scheduling: SchedulingOptions = SchedulingOptions()
    operations: PageOptions = PageOptions()
    commands: ControllerKeys = ControllerKeys()
    operators: OperatorOptions = OperatorOptions()
    approvals: ApprovalOptions = ApprovalOptions()
    bus: MqttOptions = MqttOptions()
    alerts: AlertOptions = AlertOptions()
    exporter: ExporterOptions = ExporterOptions()
    log: LogOptions = LogOptions()
