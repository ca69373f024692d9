"""The agent's config file; what it imports an agent has in memory, so nothing of rules, planner and stores."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from virtpilot.actuators.caps import Caps
from virtpilot.actuators.hooks.hook import HookOptions
from virtpilot.pipeline.agent import AgentTiming
from virtpilot.pipeline.bus.mqtt_options import MqttOptions
from virtpilot.pipeline.cadence import CadenceOptions
from virtpilot.pipeline.exporter_options import ExporterOptions
from virtpilot.pipeline.process import NAME, Cluster, LogOptions, StateFolder
from virtpilot.pipeline.spool import SpoolOptions
from virtpilot.pipeline.switch import OperatorOptions

_NAME_OR_NONE: Final = f"^({NAME})?$"


class HypervisorOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The libvirt of this host."""

    uri: Annotated[str, Meta(description="The libvirt connection.")] = "qemu:///system"
    migration_uri: Annotated[
        str, Meta(description="Where other hosts' libvirt reaches this one for live migration; empty: takes no guests.")
    ] = ""
    deadline_s: Annotated[
        float, Meta(description="A libvirt call without an answer is left behind after this.", gt=0)
    ] = 5.0
    tags: Annotated[
        list[str], Meta(description="Attributes of the guests' metadata element that become tags of their samples.")
    ] = msgspec.field(default_factory=lambda: ["tier", "role", "team"])
    dirty_rate_every_s: Annotated[
        float,
        Meta(
            description="How often each guest's dirty rate is measured, never while a job runs on it; 0: never.", ge=0
        ),
    ] = 300.0
    guest_agent_every_s: Annotated[
        float, Meta(description="How often agents inside guests are asked for their file systems; 0: never.", ge=0)
    ] = 60.0


class AgentKeys(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who may command this host."""

    public_key_files: Annotated[
        list[str],
        Meta(description="Public keys of the controllers to obey; two while a key is rotated, none: observe only."),
    ] = []


class AgentConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`virtpilot agent`: one per host."""

    cluster: Cluster
    host: Annotated[
        str,
        Meta(pattern=_NAME_OR_NONE, description="This host's name in topics and tags; empty: the machine's own."),
    ] = ""
    state_folder: StateFolder = "/var/lib/virtpilot/agent"
    root_folder: Annotated[str, Meta(description="Where the host's /proc and /sys are: its root folder.")] = "/"
    timing: AgentTiming = AgentTiming()
    sampling: CadenceOptions = CadenceOptions()
    hypervisor: HypervisorOptions = HypervisorOptions()
    bus: MqttOptions = MqttOptions()
    spool: SpoolOptions = SpoolOptions()
    commands: AgentKeys = AgentKeys()
    operators: OperatorOptions = OperatorOptions()
    caps: Caps = Caps()
    hooks: HookOptions = HookOptions()
    exporter: ExporterOptions = ExporterOptions()
    log: LogOptions = LogOptions()
