"""A simulated guest as virConnectGetAllDomainStats tells it: libvirt's own names, ns and KiB."""

from __future__ import annotations

from typing import Final

from virtpilot.hypervisor import GuestDetails, GuestState, GuestStats
from virtpilot.simulator.knobs import KnobBook
from virtpilot.simulator.world import Guest, World

_CODES: Final = {GuestState.RUNNING: 1, GuestState.PAUSED: 3, GuestState.SHUTOFF: 5}
_KIB: Final = 1024
_DISK_BYTES: Final = 20 * 1024**3
_USER_RATIO: Final = 0.9
_RUNNING, _OFFLINE = 1, 0
_CACHE_RATIO: Final = 0.3
Stats = dict[str, int | float | str | bool]


def guest_stats(world: World, knobs: KnobBook, guest: int) -> GuestStats:
    """Return one guest's stats; a shut-off one has those of its definition only."""
    spec = world.scenario.guests[guest]
    state = world.state_of(guest)
    stats: Stats = {"state.state": _CODES[state], "state.reason": int(world.reason[guest])}
    stats["balloon.maximum"] = spec.memory_mib * _KIB
    stats["vcpu.maximum"] = spec.vcpus
    stats |= {"block.count": 1, "block.0.name": "vda", "block.0.capacity": _DISK_BYTES}
    if state is not GuestState.SHUTOFF:
        total = [float(value) for value in world.guest_total[:, guest]]
        stats |= _cpu(total, int(world.vcpus[guest])) | _balloon(world, guest, total) | _block(total)
        stats |= _net(total, int(guest))
    run = int(world.run[guest])
    if state is GuestState.SHUTOFF:
        return GuestStats(spec.uuid, spec.name, stats, tags=spec.tags, run=run)
    told = knobs.told(guest)
    configured = GuestDetails(
        {"cpu_shares_count": told["cpu_shares"], "memory_balloon_target_bytes": told["memory_balloon"]}
    )
    return GuestStats(spec.uuid, spec.name, stats, told, spec.tags, run, details=configured)


def _ns(value_s: float) -> int:
    return int(value_s * 1e9)


def _cpu(total: list[float], vcpus: int) -> Stats:
    used = _ns(total[Guest.CPU])
    user = int(used * _USER_RATIO)
    stats: Stats = {"cpu.time": used, "cpu.user": user, "cpu.system": used - user, "vcpu.current": vcpus}
    for number in range(vcpus):
        stats[f"vcpu.{number}.state"] = _RUNNING
        stats[f"vcpu.{number}.time"] = _ns(total[Guest.CPU] / vcpus)
        stats[f"vcpu.{number}.wait"] = _ns(total[Guest.WAIT] / vcpus)
        stats[f"vcpu.{number}.delay"] = _ns(total[Guest.DELAY] / vcpus)
    return stats


def _balloon(world: World, guest: int, total: list[float]) -> Stats:
    available = float(world.available_bytes[guest])
    usable = max(available - float(world.used_bytes[guest]), 0.0)
    return {
        "balloon.current": int(world.balloon_bytes[guest]) // _KIB,
        "balloon.available": int(available) // _KIB,
        "balloon.usable": int(usable) // _KIB,
        "balloon.unused": int(usable * (1 - _CACHE_RATIO)) // _KIB,
        "balloon.rss": int(world.rss_bytes[guest]) // _KIB,
        "balloon.swap_in": int(total[Guest.SWAP_IN_BYTES]) // _KIB,
        "balloon.swap_out": int(total[Guest.SWAP_OUT_BYTES]) // _KIB,
        "balloon.major_fault": int(total[Guest.MAJOR_FAULTS]),
    }


def _block(total: list[float]) -> Stats:
    stats: Stats = {"block.0.allocation": _DISK_BYTES // 2, "block.0.physical": _DISK_BYTES // 2}
    for way, first in (("rd", Guest.READ_BYTES), ("wr", Guest.WRITE_BYTES)):
        stats[f"block.0.{way}.bytes"] = int(total[first])
        stats[f"block.0.{way}.reqs"] = int(total[first + 1])
        stats[f"block.0.{way}.times"] = _ns(total[first + 2])
    stats["block.0.fl.reqs"] = int(total[Guest.FLUSH_REQUESTS])
    stats["block.0.fl.times"] = _ns(total[Guest.FLUSH_SECONDS])
    return stats


def _net(total: list[float], number: int) -> Stats:
    stats: Stats = {"net.count": 1, "net.0.name": f"vnet{number}"}
    for way, first in (("rx", Guest.RECEIVE_BYTES), ("tx", Guest.TRANSMIT_BYTES)):
        stats[f"net.0.{way}.bytes"] = int(total[first])
        stats[f"net.0.{way}.pkts"] = int(total[first + 1])
        stats[f"net.0.{way}.drop"] = int(total[first + 2])
        stats[f"net.0.{way}.errs"] = 0
    return stats
