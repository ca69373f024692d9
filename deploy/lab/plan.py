"""The labs that there are plans of: which guests, on which hosts, with what load."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from deploy.lab.guest import GuestPlan

_WEB: Final = {"tier": "web"}
_BATCH: Final = {"tier": "batch"}
_DB: Final = {"tier": "db"}

TWO: Final = (
    GuestPlan("web-1", "host-1", load=0, tags=_WEB),
    GuestPlan("batch-1", "host-1", load=100, tags=_BATCH),
    GuestPlan("batch-2", "host-1", load=100, tags=_BATCH),
    GuestPlan("web-2", "host-2", load=0, tags=_WEB),
)
# Where there are but two cores host-3 shares that of host-1. db-1 begins with less memory than it may have: there is
# some to give it.
THREE: Final = (
    *TWO,
    GuestPlan("batch-3", "host-2", load=0, tags=_BATCH),
    GuestPlan("db-1", "host-2", load=0, tags=_DB, memory_mib=192, balloon_mib=128),
    GuestPlan("db-2", "host-2", load=0, tags=_DB),
    GuestPlan("web-3", "host-3", load=0, tags=_WEB),
)
PLANS: Final[Mapping[str, tuple[GuestPlan, ...]]] = {"two": TWO, "three": THREE}
