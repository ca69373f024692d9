"""The config files: one TOML file per process, composed of the options that each part declares."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from virtpilot.actuators.guard import GuardOptions
from virtpilot.actuators.knob import Caps
from virtpilot.pipeline.agent import AgentTiming
from virtpilot.pipeline.alerts import AlertOptions
from virtpilot.pipeline.bus.mqtt_options import MqttOptions
from virtpilot.pipeline.cadence import CadenceOptions
from virtpilot.pipeline.cardinality import LimitOptions
from virtpilot.pipeline.controller import ControllerTiming
from virtpilot.pipeline.exporter import ExporterOptions
from virtpilot.pipeline.pilot import PilotOptions
from virtpilot.pipeline.rulebook import RuleOptions
from virtpilot.pipeline.spool import SpoolOptions
from virtpilot.pipeline.steering import SteeringOptions
from virtpilot.pipeline.store.influx import StoreOptions
from virtpilot.planner.placement import Reserve
from virtpilot.rules.decisions.decider import DecisionOptions

_NAME: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
_NAME_OR_NONE: Final = f"^({_NAME})?$"
Name = Annotated[str, Meta(pattern=f"^{_NAME}$")]
Cluster = Annotated[Name, Meta(description="The cluster's name: part of every topic, and a tag of every sample.")]
StateFolder = Annotated[str, Meta(description="Where this process keeps what must survive a restart.")]


class LogOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is written to standard error."""

    level: Annotated[Literal["debug", "info", "warning", "error"], Meta(description="The least level shown.")] = "info"
    json: Annotated[bool, Meta(description="One JSON object a line, for log shippers.")] = False


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
    caps: Caps = Caps()
    exporter: ExporterOptions = ExporterOptions()
    log: LogOptions = LogOptions()


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
    commands: ControllerKeys = ControllerKeys()
    bus: MqttOptions = MqttOptions()
    alerts: AlertOptions = AlertOptions()
    exporter: ExporterOptions = ExporterOptions()
    log: LogOptions = LogOptions()


class WriterConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`virtpilot writer`: bus to store; several share the load."""

    cluster: Cluster
    name: Annotated[Name, Meta(description="This writer's name, one of its own for each writer of a cluster.")] = (
        "writer-1"
    )
    state_folder: StateFolder = "/var/lib/virtpilot/writer"
    file_store: Annotated[
        str,
        Meta(description="A folder for line-protocol segments in place of the store below; empty: the store below."),
    ] = ""
    store: StoreOptions = StoreOptions()
    limits: LimitOptions = LimitOptions()
    bus: MqttOptions = MqttOptions()
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
    exporter: ExporterOptions = ExporterOptions()
    log: LogOptions = LogOptions()


Config = AgentConfig | ControllerConfig | WriterConfig | FleetConfig

PROCESSES: Final[dict[str, type[Config]]] = {
    "agent": AgentConfig,
    "controller": ControllerConfig,
    "writer": WriterConfig,
    "fleet": FleetConfig,
}
