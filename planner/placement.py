"""Placement of one guest: the host with the most measured headroom after the move, or the reason why none is better."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated

import msgspec

from virtpilot.planner.affinity import Company, unwanted, wishes

MIB = 1024 * 1024


class GuestLoad(msgspec.Struct, frozen=True, kw_only=True):
    """A guest's measured load; `cpu_wanted_cores` is what it used plus what it lacked (its steal), in cores."""

    id: str
    name: str
    host: str
    cpu_cores: float
    cpu_wanted_cores: float
    memory_bytes: int
    vcpus: int
    tags: dict[str, str] = {}


class HostLoad(msgspec.Struct, frozen=True, kw_only=True):
    """A host's measured load; `incoming_*` is promised to guests on their way and in no measurement yet.

    `closed` says why it takes no guests, "" where it does.
    """

    name: str
    cpus: int
    cpu_used_cores: float
    memory_total_bytes: int
    memory_available_bytes: int
    online: bool = True
    closed: str = ""
    fresh: bool = True
    migrations_in_flight: int = 0
    incoming_cores: float = 0.0
    incoming_memory_bytes: int = 0


class Reserve(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a placement leaves free, and how much better than staying it must be."""

    cpu_ratio: Annotated[
        float, msgspec.Meta(description="Share of a target's CPUs left free after the move.", ge=0, lt=1)
    ] = 0.10
    memory_ratio: Annotated[
        float, msgspec.Meta(description="Share of a target's memory left free after the move.", ge=0, lt=1)
    ] = 0.10
    memory_bytes: Annotated[
        int, msgspec.Meta(description="Bytes of a target's memory left free after the move, at least.", ge=0)
    ] = 512 * MIB
    benefit_ratio: Annotated[
        float,
        msgspec.Meta(description="How much more headroom the guest must find than where it is now.", ge=0, le=1),
    ] = 0.10
    migrations_per_host: Annotated[
        int, msgspec.Meta(description="A target with so many migrations under way is left alone.", ge=1)
    ] = 2


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """Where a guest should go and why; ratios of the target after the move, benefit against staying."""

    host: str
    reason: str
    cpu_now_ratio: float
    cpu_after_ratio: float
    memory_free_ratio: float
    benefit_ratio: float


class NoMove(msgspec.Struct, frozen=True, kw_only=True):
    """No host is better than the present one; `refused` says for each host why not."""

    reason: str
    refused: dict[str, str] = {}


class _Candidate(msgspec.Struct, frozen=True):
    """A host projected with the guest on it: busy share of its CPUs, free share of its memory."""

    host: HostLoad
    cpu_after: float
    memory_free: float

    @property
    def headroom(self) -> float:
        """The scarcer of free CPU and free memory, as a share of the host; below 0 when it is overloaded."""
        return min(1.0 - self.cpu_after, self.memory_free)


def best_target(
    guest: GuestLoad,
    hosts: Sequence[HostLoad],
    reserve: Reserve | None = None,
    company: Mapping[str, Company] | None = None,
    *,
    leaving: bool = False,
) -> Placement | NoMove:
    """Return the host with the most headroom once `guest` runs there with all the CPU it wants, or why there is none.

    Headroom is the scarcer of CPU and memory. `company` tells how many of the guest's groups are on each host: it goes
    first where fewest of those are from which it stays apart, and most of those with which it belongs. The order of
    `hosts` does not matter: equal hosts are taken by name. A guest that is `leaving` needs no benefit.
    Raises ValueError when two of them bear one name.
    """
    reserve = reserve or Reserve()
    if len({host.name for host in hosts}) < len(hosts):
        raise ValueError("two hosts bear the same name")
    stay = next((host for host in hosts if host.name == guest.host), None)
    unusable = _unusable_guest(guest, stay)
    if unusable or stay is None:
        return NoMove(reason=f"no beneficial move: {unusable}")
    refused: dict[str, str] = {}
    fitting: list[_Candidate] = []
    floor = -math.inf if leaving else _staying(guest, stay).headroom + reserve.benefit_ratio
    own, others = wishes(guest.tags), company or {}
    here = others.get(guest.host, Company())
    for host in sorted(hosts, key=lambda host: host.name):
        if host.name == guest.host:
            continue
        kept = unwanted(own, host.name, others.get(host.name, Company()), here)
        candidate = kept or _unavailable(guest, host, reserve) or _project(guest, host)
        verdict = candidate if isinstance(candidate, str) else _too_small(candidate, reserve, floor)
        if verdict:
            refused[host.name] = verdict
        elif isinstance(candidate, _Candidate):
            fitting.append(candidate)
    if not fitting:
        return _no_move(refused)
    return _placement(_ranked(fitting, others), _staying(guest, stay).headroom)


def _ranked(fitting: Sequence[_Candidate], company: Mapping[str, Company]) -> list[_Candidate]:
    def rank(candidate: _Candidate) -> tuple[int, int, float, str]:
        there = company.get(candidate.host.name, Company())
        return there.apart, -there.together, -candidate.headroom, candidate.host.name

    return sorted(fitting, key=rank)


def _unusable_guest(guest: GuestLoad, stay: HostLoad | None) -> str:
    """Say what keeps the guest's own figures from being compared, or ""."""
    if stay is None:
        return f"{guest.name}'s present host {guest.host or '(unknown)'} is not measured"
    if not stay.online:
        return f"{guest.name}'s present host {stay.name} is offline"
    if not stay.fresh or not _measured(stay):
        return f"the measurements of {guest.name}'s present host {stay.name} are stale"
    numbers = (guest.cpu_cores, guest.cpu_wanted_cores, float(guest.memory_bytes))
    if not all(math.isfinite(number) and number >= 0 for number in numbers):
        return f"{guest.name}'s own measurements are not usable"
    return ""


def _measured(host: HostLoad) -> bool:
    """Tell whether the figures are numbers that a host can have."""
    numbers = (host.cpu_used_cores, host.incoming_cores, float(host.memory_available_bytes))
    return (
        all(math.isfinite(number) and number >= 0 for number in numbers)
        and host.incoming_memory_bytes >= 0
        and host.cpus > 0
        and host.memory_total_bytes > 0
    )


def _unavailable(guest: GuestLoad, host: HostLoad, reserve: Reserve) -> str:
    """Say why a host is out of the question whatever its load, or ""."""
    if not host.online:
        return "offline"
    if host.closed:
        return host.closed
    if not host.fresh or not _measured(host):
        return "its measurements are stale"
    if host.migrations_in_flight >= reserve.migrations_per_host:
        return f"{host.migrations_in_flight} migrations under way already"
    if guest.vcpus > host.cpus:
        return f"has {host.cpus} CPUs for {guest.vcpus} vCPUs"
    return ""


def _project(guest: GuestLoad, host: HostLoad) -> _Candidate:
    """Return the target with the guest on it, demanding all that it wants."""
    wanted = max(guest.cpu_wanted_cores, guest.cpu_cores)
    cpu = host.cpu_used_cores + host.incoming_cores + wanted
    memory = host.memory_available_bytes - host.incoming_memory_bytes - guest.memory_bytes
    return _Candidate(host, cpu / host.cpus, memory / host.memory_total_bytes)


def _staying(guest: GuestLoad, host: HostLoad) -> _Candidate:
    """Return the present host as it would have to be to give the guest all that it wants."""
    lacking = max(guest.cpu_wanted_cores - guest.cpu_cores, 0.0)
    cpu = host.cpu_used_cores + host.incoming_cores + lacking
    memory = host.memory_available_bytes - host.incoming_memory_bytes
    return _Candidate(host, cpu / host.cpus, memory / host.memory_total_bytes)


def _too_small(candidate: _Candidate, reserve: Reserve, floor: float) -> str:
    """Say what the projected host lacks, or ""."""
    host = candidate.host
    limit = 1.0 - reserve.cpu_ratio
    if candidate.cpu_after > limit:
        return f"CPU would be at {_percent(candidate.cpu_after)}, more than {_percent(limit)}"
    spare = max(reserve.memory_ratio, reserve.memory_bytes / host.memory_total_bytes)
    if candidate.memory_free < spare:
        return f"memory would be {_percent(candidate.memory_free)} free, less than {_percent(spare)}"
    if candidate.headroom < floor:
        gain = candidate.headroom - (floor - reserve.benefit_ratio)
        return f"headroom would change by {gain * 100:+.0f} points, too little to be worth a move"
    return ""


def _no_move(refused: dict[str, str]) -> NoMove:
    told = "; ".join(f"{name}: {why}" for name, why in refused.items())
    return NoMove(reason=f"no beneficial move: {told or 'there is no other host'}", refused=refused)


def _placement(ranked: Sequence[_Candidate], staying: float) -> Placement:
    best = ranked[0]
    now = best.host.cpu_used_cores / best.host.cpus
    reason = (
        f"{best.host.name}: CPU {_percent(now)} now, {_percent(best.cpu_after)} after the move; "
        f"memory {_percent(best.memory_free)} free after it"
    )
    if len(ranked) > 1:
        rival = ranked[1]
        told = f"would be at {_percent(rival.cpu_after)}, memory {_percent(rival.memory_free)} free"
        reason += f"; the next best {rival.host.name} {told}"
    return Placement(
        host=best.host.name,
        reason=reason,
        cpu_now_ratio=now,
        cpu_after_ratio=best.cpu_after,
        memory_free_ratio=best.memory_free,
        benefit_ratio=best.headroom - staying,
    )


def _percent(ratio: float) -> str:
    return f"{ratio * 100:.0f} %"
