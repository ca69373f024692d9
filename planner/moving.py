"""How a guest is to be moved, and how long that will take: from its memory, how fast it changes it, and the links.

Pre-copy sends the memory M in use at the rate R, then what has changed meanwhile, round after round:

    V(0) = M,  V(i+1) = V(i) · D / R,  stop at the first n with V(n) / R ≤ the pause allowed
    time = M / R · (1 - x^(n+1)) / (1 - x) + overhead,  x = D / R;  pause = V(n) / R + switch-over

R is the slower link's share, divided among the migrations that use it. Where x is near 1 or above, that never ends:
the hypervisor slows the guest down (auto-converge) until it changes half of what is sent, at most so far as the config
allows; else it is post-copy, or no move at all.
"""

from __future__ import annotations

import math
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from virtpilot.action import Stuck, Way

Ratio = Annotated[float, Meta(gt=0, le=1)]
_UNKNOWN_LINK: Final = 125_000_000.0
_OVERHEAD_S: Final = 1.0
_SWITCH_S: Final = 0.05
_PAUSES_S: Final = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0)
_ROUNDS: Final = 20
_CONVERGES: Final = 0.8
# QEMU slows a guest down by 20 %, then by 10 % more, each time after two rounds in vain.
_FIRST_STEP: Final = 0.2
_STEP: Final = 0.1
_ROUNDS_A_STEP: Final = 2
_PATIENT: Final = 60.0


class MovingOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How guests are moved."""

    peer_to_peer: Annotated[
        bool,
        Meta(description="The hosts' daemons speak to each other; false: the source's agent speaks to both."),
    ] = True
    link_bytes_per_second: Annotated[
        float,
        Meta(description="What a host's link carries; 0: as measured, a gigabit where it is not.", ge=0),
    ] = 0.0
    link_ratio: Annotated[Ratio, Meta(description="The share of a link that migrations may use, all together.")] = 0.8
    connection_bytes_per_second: Annotated[
        float, Meta(description="What one connection carries; where more is free several are used at once.", gt=0)
    ] = 1_000_000_000.0
    pause_max_s: Annotated[
        float, Meta(description="A guest may be paused for so long at the end of its move.", gt=0, le=60)
    ] = 0.5
    slow_down_max_ratio: Annotated[
        float,
        Meta(description="A guest may be slowed down so far for its move; 0: not at all.", ge=0, lt=1),
    ] = 0.8
    when_stuck: Annotated[
        Stuck,
        Meta(
            description="A migration without progress is given up (`abort`), or the guest is let run on the target and "
            "its memory fetched afterwards (`post-copy`): it ends for sure, but a link that breaks costs the guest."
        ),
    ] = Stuck.ABORT
    stall_s: Annotated[float, Meta(description="A migration without progress for so long is stuck.", gt=0, le=3600)] = (
        60.0
    )
    time_factor: Annotated[
        float,
        Meta(description="It is stuck as well after so many times what is predicted, and a minute.", ge=1),
    ] = 4.0
    copy_disks: Annotated[
        bool, Meta(description="Disks that only the source can see (files on its own file systems) are copied along.")
    ] = True


class MoveLoad(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be moved, and over what: bytes, and bytes per second; None where nobody knows.

    `sharing` counts the migrations that use one of the links already.
    """

    memory_bytes: float
    dirty_bytes_s: float | None = None
    source_link_bytes_s: float | None = None
    target_link_bytes_s: float | None = None
    sharing: int = 0


class MovePlan(msgspec.Struct, frozen=True, kw_only=True):
    """How a guest is moved, with what is predicted."""

    way: Way
    reason: str


class Hopeless(msgspec.Struct, frozen=True):
    """The move would not come to an end, and why."""

    reason: str


class Forecast(msgspec.Struct, frozen=True, kw_only=True):
    """What is predicted of a move: its time, the pause at its end, the rounds, how far the guest is slowed down."""

    time_s: float
    pause_s: float
    rounds: int
    slowed_ratio: float = 0.0


def precopy(memory: float, dirty: float, rate: float, pause_s: float) -> Forecast | None:
    """Return how a pre-copy at these rates goes, None where it takes too many rounds."""
    left, sent = memory, 0.0
    for rounds in range(_ROUNDS + 1):
        sent += left
        if left / rate <= pause_s:
            return Forecast(time_s=sent / rate + _OVERHEAD_S, pause_s=left / rate + _SWITCH_S, rounds=rounds)
        left = min(left * dirty / rate, memory)
    return None


def slowed(memory: float, dirty: float, rate: float, pause_s: float) -> Forecast | None:
    """Return how it goes once the guest is slowed down until it changes half of what is sent."""
    needed = max(1.0 - rate / (2.0 * dirty), 0.0)
    steps = 1 + max(math.ceil((needed - _FIRST_STEP) / _STEP - 1e-9), 0)
    throttle = _FIRST_STEP + (steps - 1) * _STEP
    after = precopy(memory, min(dirty * (1.0 - throttle), rate / 2.0), rate, pause_s)
    if after is None:
        return None
    return msgspec.structs.replace(
        after,
        time_s=after.time_s + steps * _ROUNDS_A_STEP * memory / rate,
        rounds=after.rounds + steps * _ROUNDS_A_STEP,
        slowed_ratio=throttle,
    )


def forecast(memory: float, dirty: float, rate: float, options: MovingOptions) -> Forecast | None:
    """Return the best pre-copy: the shortest pause that it can end with; slowed down only where nothing else ends."""
    pauses = sorted({options.pause_max_s, *(pause for pause in _PAUSES_S if pause < options.pause_max_s)})
    if dirty <= _CONVERGES * rate:
        for pause_s in pauses:
            if (found := precopy(memory, dirty, rate, pause_s)) is not None:
                return found
    if options.slow_down_max_ratio <= 0 or dirty <= 0:
        return None
    found = slowed(memory, dirty, rate, options.pause_max_s)
    return found if found is not None and found.slowed_ratio <= options.slow_down_max_ratio + 1e-9 else None


def plan_move(load: MoveLoad, options: MovingOptions) -> MovePlan | Hopeless:
    """Return how a guest is moved with what is predicted, or why that would not end."""
    rate = _rate(load, options)
    memory, dirty = max(load.memory_bytes, 1.0), load.dirty_bytes_s or 0.0
    found = forecast(memory, dirty, rate, options)
    told = f"{memory / 1e6:.0f} MB at {rate / 1e6:.0f} MB/s"
    told += "" if load.dirty_bytes_s is None else f", {dirty / 1e6:.0f} MB/s of it changed"
    if found is not None:
        slow = f", slowed down by {found.slowed_ratio:.0%}" if found.slowed_ratio else ""
        return MovePlan(
            way=_way(found, rate, options),
            reason=f"{told}: {found.time_s:.0f} s predicted{slow}, {found.pause_s * 1000:.0f} ms of pause",
        )
    if options.when_stuck is Stuck.POST_COPY:
        found = Forecast(time_s=2 * memory / rate + options.stall_s + _OVERHEAD_S, pause_s=_SWITCH_S, rounds=1)
        return MovePlan(way=_way(found, rate, options), reason=f"{told}: only post-copy ends that")
    return Hopeless(f"it would not converge: {told}, and post-copy is not wanted")


def _rate(load: MoveLoad, options: MovingOptions) -> float:
    """Return what a migration can send: the slower link's share, divided among all that use it."""
    known = [speed for speed in (load.source_link_bytes_s, load.target_link_bytes_s) if speed]
    link = options.link_bytes_per_second or min(known, default=_UNKNOWN_LINK)
    return max(link * options.link_ratio / (load.sharing + 1), 1.0)


def _way(found: Forecast, rate: float, options: MovingOptions) -> Way:
    # QEMU knows no post-copy over several connections.
    several = options.when_stuck is Stuck.ABORT and rate > options.connection_bytes_per_second
    return Way(
        peer_to_peer=options.peer_to_peer,
        auto_converge=options.slow_down_max_ratio > 0,
        when_stuck=options.when_stuck,
        copy_disks=options.copy_disks,
        bandwidth_bytes_s=int(rate),
        connections=min(math.ceil(rate / options.connection_bytes_per_second), 16) if several else 0,
        downtime_s=round(max(found.pause_s - _SWITCH_S, _PAUSES_S[0]), 3),
        stall_s=options.stall_s,
        within_s=round(max(found.time_s * options.time_factor, _PATIENT), 1),
        predicted_s=round(found.time_s, 3),
        predicted_pause_s=round(found.pause_s, 3),
    )
