"""A tick of the collector over the bare bulk call for the same guests: QEMU ones on a real host, in the lab."""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import median
from typing import Final

import msgspec

from bench.measure import Figure, Unmeasured, figure, ratios, say
from bench.steady_tick import Round
from deploy.lab import GuestPlan, LabError, bring_up, ended_by_signals

_ROOT: Final = Path(__file__).parent.parent
_HOST: Final = "host-1"
_GUESTS: Final = 6
_PATIENCE_S: Final = 300.0


def measure(runs: int) -> dict[str, Figure]:
    """Measure CPU time on a host of idle guests; raises Unmeasured where no lab can be, as without root."""
    try:
        rounds = _rounds(runs)
    except LabError as error:
        raise Unmeasured(str(error)) from error
    bare = [one.bare.own_s + one.bare.daemon_s for one in rounds]
    tick = [one.tick.own_s + one.tick.daemon_s for one in rounds]
    own = ratios([one.tick.own_s for one in rounds], [one.bare.own_s for one in rounds])
    return {
        "collect_vs_bare": figure(
            ratios(tick, bare),
            "x",
            f"getAllDomainStats of the same {_GUESTS} QEMU guests, same groups, NOWAIT; CPU time of the asking process"
            " and of libvirtd together; for the collector 10 s pass from tick to tick",
            at_most=1.3,
            measured={
                "guests": rounds[-1].guests,
                "samples_per_tick": rounds[-1].samples,
                "bare_us": median(bare) * 1e6,
                "tick_us": median(tick) * 1e6,
                "bare_own_us": median(one.bare.own_s for one in rounds) * 1e6,
                "tick_own_us": median(one.tick.own_s for one in rounds) * 1e6,
                "bare_libvirtd_us": median(one.bare.daemon_s for one in rounds) * 1e6,
                "tick_libvirtd_us": median(one.tick.daemon_s for one in rounds) * 1e6,
                "own_ratio": median(own),
            },
        )
    }


def _rounds(runs: int) -> list[Round]:
    plans = [GuestPlan(f"guest-{number}", _HOST, tags={"tier": "bench"}) for number in range(1, _GUESTS + 1)]
    with ended_by_signals(), bring_up("bench", plans=plans, say=say) as lab:
        host = lab.hosts[_HOST]
        words = [sys.executable, "-m", "bench.steady_tick", str(host.daemons[-1].pid), str(runs)]
        told = host.run(words, timeout_s=_PATIENCE_S, cwd=_ROOT).splitlines()[-1]
    return msgspec.json.decode(told, type=list[Round])
