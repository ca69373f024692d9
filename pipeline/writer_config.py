"""The writer's config file, apart from the others: a writer loads none of what they are composed of."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from virtpilot.pipeline.bus.mqtt_options import MqttOptions
from virtpilot.pipeline.cardinality import LimitOptions
from virtpilot.pipeline.exporter_options import ExporterOptions
from virtpilot.pipeline.process import Cluster, LogOptions, Name, StateFolder
from virtpilot.pipeline.store.options import StoreOptions


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
