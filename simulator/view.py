"""What an observer beside the fleet sees: the truth at this moment, for the demo's screen and for tests."""

from __future__ import annotations

import msgspec
import numpy as np

from virtpilot.hypervisor import GuestState
from virtpilot.simulator.fault import Faults
from virtpilot.simulator.migration import Migration, Migrations
from virtpilot.simulator.world import NOWHERE, Guest, Host, World


class MigrationView(msgspec.Struct, frozen=True, kw_only=True):
    """A guest on its way: to where, in which phase and round, and which share of what is to be sent has been."""

    target: str
    phase: str
    round: int
    progress_ratio: float


class GuestView(msgspec.Struct, frozen=True, kw_only=True):
    """A guest at this moment; `host` is "" once it is gone."""

    uuid: str
    name: str
    host: str
    state: GuestState
    tags: dict[str, str]
    vcpus: int
    cpu_cores: float
    cpu_wanted_cores: float
    cpu_usage_ratio: float
    cpu_steal_ratio: float
    cpu_shares: int
    memory_bytes: int
    memory_used_bytes: int
    migration: MigrationView | None = None


class HostView(msgspec.Struct, frozen=True, kw_only=True):
    """A host at this moment; `reachable`: its libvirt answers, after `answer_s` seconds."""

    name: str
    online: bool
    reachable: bool
    answer_s: float
    cpus: int
    cpu_used_cores: float
    cpu_usage_ratio: float
    memory_bytes: int
    memory_used_bytes: int
    guests: int


class FleetView(msgspec.Struct, frozen=True, kw_only=True):
    """The whole fleet at `now_ns`."""

    now_ns: int
    hosts: tuple[HostView, ...]
    guests: tuple[GuestView, ...]


def fleet_view(world: World, migrations: Migrations, faults: Faults, now_ns: int) -> FleetView:
    """Return what stands now; rates are those of this very moment."""
    moving = {migration.guest: migration for migration in migrations.active}
    return FleetView(
        now_ns=now_ns,
        hosts=tuple(_host(world, faults, host) for host in range(len(world.host_names))),
        guests=tuple(_guest(world, guest, moving.get(guest)) for guest in range(len(world.scenario.guests))),
    )


def _host(world: World, faults: Faults, host: int) -> HostView:
    used = float(world.host_rate[Host.GUEST, host] + world.host_rate[Host.SYSTEM, host])
    spec = world.scenario.hosts[host]
    return HostView(
        name=spec.name,
        online=bool(world.powered[host]),
        reachable=faults.hypervisor_up(host),
        answer_s=float(faults.answer_s[host]),
        cpus=spec.cpus,
        cpu_used_cores=used,
        cpu_usage_ratio=used / spec.cpus,
        memory_bytes=int(world.memory_bytes[host]),
        memory_used_bytes=int(world.host_used_bytes[host]) if world.powered[host] else 0,
        guests=int(np.count_nonzero((world.host == host) & world.running)),
    )


def _guest(world: World, guest: int, migration: Migration | None) -> GuestView:
    spec = world.scenario.guests[guest]
    host = int(world.host[guest])
    cores = float(world.guest_rate[Guest.CPU, guest])
    return GuestView(
        uuid=spec.uuid,
        name=spec.name,
        host="" if host == NOWHERE else world.host_names[host],
        state=world.state_of(guest),
        tags=spec.tags,
        vcpus=spec.vcpus,
        cpu_cores=cores,
        cpu_wanted_cores=float(world.wanted_cores[guest]),
        cpu_usage_ratio=cores / spec.vcpus,
        cpu_steal_ratio=float(world.guest_rate[Guest.DELAY, guest]) / spec.vcpus,
        cpu_shares=int(world.shares[guest]),
        memory_bytes=int(world.balloon_bytes[guest]),
        memory_used_bytes=int(world.used_bytes[guest]),
        migration=_migration(world, migration) if migration else None,
    )


def _migration(world: World, migration: Migration) -> MigrationView:
    progress = migration.status().progress
    total = progress["data_total_bytes"]
    return MigrationView(
        target=world.host_names[migration.target],
        phase=migration.phase.value,
        round=migration.round,
        progress_ratio=progress["data_processed_bytes"] / total if total else 0.0,
    )
