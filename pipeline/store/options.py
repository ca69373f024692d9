"""Which time-series store there is and how it is reached: the options, apart from what writes."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta


class StoreOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The time-series store."""

    kind: Annotated[
        Literal["victoriametrics", "influxdb2"],
        Meta(description="Which store it is; InfluxDB has on disk what it takes, VictoriaMetrics after `hold_s`."),
    ] = "victoriametrics"
    url: Annotated[str, Meta(description="Its address.", pattern="^https?://")] = "http://127.0.0.1:8428"
    org: Annotated[str, Meta(description="InfluxDB's organisation.")] = "virtpilot"
    bucket: Annotated[str, Meta(description="InfluxDB's bucket.")] = "virtpilot"
    token_file: Annotated[str, Meta(description="A file that holds InfluxDB's token alone.")] = ""
    token_env: Annotated[str, Meta(description="Or the environment variable that does.")] = ""
    timeout_s: Annotated[float, Meta(description="A request without an answer ends after this.", gt=0, le=300)] = 4.0
    gzip: Annotated[bool, Meta(description="Compress what is sent.")] = False
    hold_s: Annotated[
        float,
        Meta(description="Seconds that VictoriaMetrics has what it takes in memory only: stored after this.", ge=0),
    ] = 12.0
