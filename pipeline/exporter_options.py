"""Where a process tells of itself: the options, apart from what tells."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta


class ExporterOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where this process tells of itself."""

    address: Annotated[str, Meta(description="Address to listen on.", min_length=1)] = "127.0.0.1"
    port: Annotated[int, Meta(description="Port for /metrics and /healthz; 0 for none.", ge=0, le=65535)] = 0
