"""The guards' options."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from virtpilot.calendar import Calendar

Seconds = Annotated[float, Meta(ge=0, le=86400)]
Places = Annotated[int, Meta(ge=0, le=1000)]


class Bounds(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The floor and the cap of a knob."""

    least: Annotated[int, Meta(description="No guest is set lower.")] = -(2**63)
    most: Annotated[int, Meta(description="No guest is set higher.")] = 2**63 - 1

    def __post_init__(self) -> None:
        """Refuse bounds that nothing is within."""
        if self.least > self.most:
            raise ValueError("least is above most")


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
    guest_cooldown_down_s: Annotated[Seconds, Meta(description="Likewise after a knob of the guest went down.")] = 60.0
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

    breaker_failures: Annotated[
        int,
        Meta(
            description="So many failures in a row open the breaker of a rule or a host; 0: no breakers.",
            ge=0,
            le=1000,
        ),
    ] = 5
    breaker_open_s: Annotated[
        float,
        Meta(description="An open breaker lets nothing through for so long, then one try; doubled if it fails.", gt=0),
    ] = 600.0
    breaker_open_max_s: Annotated[float, Meta(description="No breaker stays open for longer.", gt=0)] = 21600.0
    foreign_backoff_s: Annotated[
        Seconds,
        Meta(description="A guest that somebody else has moved, or set a knob of, is left alone so long."),
    ] = 1800.0
    oscillation_window_s: Annotated[
        Seconds,
        Meta(description="A return to a host or a knob's turn within this time is an oscillation; 0: none."),
    ] = 7200.0
    oscillation_backoff_s: Annotated[
        Seconds,
        Meta(description="The first return has to wait for so long, each further one twice as long as the one before."),
    ] = 600.0
    bounds: Annotated[
        dict[str, Bounds], Meta(description="Floors and caps by knob, such as `cpu_shares = {least = 256}`.")
    ] = {}
    stale_inputs_ratio: Annotated[
        float,
        Meta(
            description="No larger share of the hosts or guests that a rule sums up may be stale.",
            ge=0,
            le=1,
        ),
    ] = 0.2
    engine_guests: Annotated[
        list[str],
        Meta(
            description="UUIDs or names of guests that run the controller, the broker or the store: nothing is done to "
            "them. The controller finds its own by itself; the tag `virtpilot_engine` says so too."
        ),
    ] = []

    def __post_init__(self) -> None:
        """Refuse freezes that are no times."""
        for text in self.freezes:
            Calendar(text)
