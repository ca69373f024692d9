"""What befalls a fleet in a night by itself: three hosts with eight guests, and faults at moments of chance."""

from __future__ import annotations

import random
from typing import Final

from virtpilot.simulator.scenario import (
    Event,
    GuestSpec,
    GuestStop,
    HostDeath,
    HostSpec,
    HypervisorDown,
    HypervisorSlow,
    LinkDown,
    MigrationSpec,
    Scenario,
)

HOSTS: Final = ("host-1", "host-2", "host-3")
NIGHT_S: Final = 200
LONGEST_NIGHT_S: Final = 600
DAWN_S: Final = 250
ENOUGH: Final = 4


def scenario(chance: random.Random) -> Scenario:
    """Return three hosts with eight guests, some of them busy, and what befalls them by itself."""
    guests = [
        GuestSpec(name=f"guest-{number}", host=chance.choice(HOSTS), vcpus=2, memory_mib=2048,
                  memory_used_mib=chance.choice([256.0, 1500.0]), cpu_cores=chance.choice([0.2, 1.0, 2.0, 2.0]),
                  dirty_mib_s=chance.choice([0.0, 50.0, 2000.0]))
        for number in range(8)
    ]  # fmt: skip
    hosts = [HostSpec(name=name, cpus=4, memory_mib=16384, link_mib_s=chance.choice([100.0, 1000.0])) for name in HOSTS]
    migration = MigrationSpec(auto_converge=False, max_rounds=10_000)
    events = sorted((_event(chance) for _ in range(chance.randrange(7))), key=lambda event: event.at_s)
    return Scenario(name="night", hosts=hosts, guests=guests, events=events, migration=migration)


def _event(chance: random.Random) -> Event:
    at_s, for_s, host = chance.uniform(10, NIGHT_S - 60), chance.uniform(1, 50), chance.choice(HOSTS)
    kinds: list[Event] = [
        HypervisorDown(at_s=at_s, host=host, for_s=for_s),
        HypervisorSlow(at_s=at_s, host=host, answer_s=9.0, for_s=for_s),
        LinkDown(at_s=at_s, host=host, for_s=for_s),
        HostDeath(at_s=at_s, host=host, for_s=for_s),
        GuestStop(at_s=at_s, guest=f"guest-{chance.randrange(8)}", for_s=for_s),
    ]
    return chance.choice(kinds)
