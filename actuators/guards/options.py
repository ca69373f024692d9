"""The guards' options."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from virtpilot.calendar import Calendar

Seconds = Annotated[float, Meta(ge=0, le=86400)]
Places = Annotated[int, Meta(ge=0, le=1000)]


class GuardOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When an action that a rule wants is refused."""

    max_sample_age_s: Annotated[
        Seconds, Meta(description="No action on a guest whose newest sample is older than this.")
    ] = 60.0
    warm_up_s: Annotated[
        Seconds, Meta(description="No action on a guest that this host has measured for less time than this.")
    ] = 30.0
    guest_cooldown_s: Annotated[
        Seconds, Meta(description="No further action on a guest so long after one; later rungs of its rule are exempt.")
    ] = 60.0
    migrations_out: Annotated[Places, Meta(description="Guests that may leave one host at the same time.")] = 2
    migrations_in: Annotated[Places, Meta(description="Guests that may come to one host at the same time.")] = 2
    migrations_cluster: Annotated[Places, Meta(description="Guests that may be on their way in the whole cluster.")] = 5
    freezes: Annotated[
        list[str],
        Meta(description="Times in which nothing is done, such as `Sat,Sun 22:00-06:00 Europe/Berlin`."),
    ] = []
    guest_actions_per_hour: Annotated[
        int, Meta(description="Actions on one guest in an hour, of all rules together; 0: any.", ge=0, le=3600)
    ] = 0
    host_actions_per_hour: Annotated[
        int, Meta(description="Actions on the guests of one host in an hour; 0: any.", ge=0, le=100_000)
    ] = 0
    cluster_actions_per_hour: Annotated[
        int, Meta(description="Actions in the whole cluster in an hour; 0: any.", ge=0, le=1_000_000)
    ] = 0
    operation_timeout_s: Annotated[
        float, Meta(description="A command whose outcome has not come by then is no longer waited for.", gt=0, le=86400)
    ] = 1200.0

    def __post_init__(self) -> None:
        """Refuse freezes that are no times."""
        for text in self.freezes:
            Calendar(text)
