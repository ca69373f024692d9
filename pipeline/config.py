"""The config files: one TOML file per process, composed of the options that each part declares."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from virtpilot.actuators.guards.options import GuardOptions
from virtpilot.pipeline.agent import AgentTiming
from virtpilot.pipeline.agent_config import AgentConfig, AgentKeys
from virtpilot.pipeline.alerts import AlertOptions
from virtpilot.pipeline.approvals import ApprovalOptions
from virtpilot.pipeline.bus.mqtt_options import MqttOptions
from virtpilot.pipeline.cadence import CadenceOptions
from virtpilot.pipeline.controller import ControllerTiming
from virtpilot.pipeline.exporter import ExporterOptions
from virtpilot.pipeline.operations.desk import SchedulingOptions
from virtpilot.pipeline.operations.page import PageOptions
from virtpilot.pipeline.pilot import PilotOptions
from virtpilot.pipeline.process import Cluster, LogOptions, StateFolder
from virtpilot.pipeline.rulebook import RuleOptions
from virtpilot.pipeline.spool import SpoolOptions
from virtpilot.pipeline.steering import SteeringOptions
from virtpilot.pipeline.switch import OperatorOptions
from virtpilot.pipeline.writer_config import WriterConfig
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


class FleetConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`virtpilot fleet`: a simulated fleet whose agents speak to a real broker."""

    cluster: Cluster
    scenario: Annotated[str, Meta(description="A scenario file; empty for the one that the demo plays.")] = ""
    state_folder: StateFolder = "/var/lib/virtpilot/fleet"
    timing: AgentTiming = AgentTiming()
    sampling: CadenceOptions = CadenceOptions()
    bus: MqttOptions = MqttOptions()
    spool: SpoolOptions = SpoolOptions()
    commands: AgentKeys = AgentKeys()
    operators: OperatorOptions = OperatorOptions()
    exporter: ExporterOptions = ExporterOptions()
    log: LogOptions = LogOptions()


class OperatorConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`virtpilot stop`, `resume`, `maintenance` and `approvals`: one per operator, wherever they sit."""

    cluster: Cluster
    name: Annotated[str, Meta(description="Who this is, as others are told.", min_length=1, max_length=128)] = (
        "operator"
    )
    private_key_file: Annotated[
        str,
        Meta(
            description="The key that signs (`virtpilot keys FOLDER --name operator` makes a pair); a stop needs none."
        ),
    ] = "/etc/virtpilot/operator.key"
    bus: MqttOptions = MqttOptions()


Config = AgentConfig | ControllerConfig | WriterConfig | FleetConfig

PROCESSES: Final[dict[str, type[Config]]] = {
    "agent": AgentConfig,
    "controller": ControllerConfig,
    "writer": WriterConfig,
    "fleet": FleetConfig,
}

CONFIGS: Final[dict[str, type[Config | OperatorConfig]]] = {**PROCESSES, "operator": OperatorConfig}
"""Every config file that there is."""
