"""Every config file that there is: one TOML file per process, composed of the options that each part declares."""

from __future__ import annotations

from typing import Final

from virtpilot.pipeline.agent_config import AgentConfig
from virtpilot.pipeline.controller_config import ControllerConfig
from virtpilot.pipeline.fleet_config import FleetConfig
from virtpilot.pipeline.operator_config import OperatorConfig
from virtpilot.pipeline.writer_config import WriterConfig

Config = AgentConfig | ControllerConfig | WriterConfig | FleetConfig

PROCESSES: Final[dict[str, type[Config]]] = {
    "agent": AgentConfig,
    "controller": ControllerConfig,
    "writer": WriterConfig,
    "fleet": FleetConfig,
}

CONFIGS: Final[dict[str, type[Config | OperatorConfig]]] = {**PROCESSES, "operator": OperatorConfig}
"""Every config file that there is."""
