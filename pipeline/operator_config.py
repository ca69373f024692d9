"""An operator's config file."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from virtpilot.pipeline.bus.mqtt_options import MqttOptions
from virtpilot.pipeline.process import Cluster


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
