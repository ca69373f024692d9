"""The config file of a simulated fleet: that of its agents, and what is played."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from virtpilot.pipeline.agent import AgentTiming
from virtpilot.pipeline.agent_config import AgentKeys
from virtpilot.pipeline.bus.mqtt_options import MqttOptions
from virtpilot.pipeline.cadence import CadenceOptions
from virtpilot.pipeline.exporter_options import ExporterOptions
from virtpilot.pipeline.process import Cluster, LogOptions, StateFolder
from virtpilot.pipeline.spool import SpoolOptions
from virtpilot.pipeline.switch import OperatorOptions


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
