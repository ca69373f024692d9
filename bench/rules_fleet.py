"""A controller with the shipped rules and 10,000 guests every 10 s, over a real broker: its cost and its delay.

The fleet's agents are one other process (rules_agents.py); half of the hosts are hot in turn, so that signals fire,
decisions are made, commands obeyed and effects measured all the time. The first 50 s are not counted. The controller
begins with windows that are full, as they are in the long run: a first one learns the fleet, then they are filled.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import quantiles
from typing import Final

import msgspec

from bench.measure import Figure, figure, say
from bench.rules_agents import GUESTS, HOSTS, TICK_S, Seen
from bench.rules_load import CLUSTER
from bench.rules_past import fill
from tests.processes.running import Process, Site
from tests.services import Mosquitto, until
from virtpilot.clock import SystemClock
from virtpilot.pipeline.process import LogOptions, set_up_logs
from virtpilot.pipeline.rulebook import LIBRARY

_WARM_S: Final = 50.0
_WINDOW_S: Final = 15.0
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_YARDSTICK: Final = f"{HOSTS * GUESTS:,} guests on {HOSTS} hosts every {TICK_S} s, shipped rules, mosquitto"


class _Usage(msgspec.Struct):
    """What a process has used so far."""

    cpu_s: float
    rss_mb: float


def measure(runs: int) -> dict[str, Figure]:
    """Run the fleet for so many windows of 15 s after the first 50 s."""
    set_up_logs(LogOptions())
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        broker = Mosquitto(Path(folder) / "broker")
        broker.start()
        stack.callback(broker.stop)
        site = Site(Path(folder), CLUSTER, broker.port)
        stack.callback(site.close)
        controller = site.process("controller", rules={"paths": [str(LIBRARY)]}, commands=site.keys())
        with controller.config.open("a") as config:
            config.write('\n[rules.modes]\n"*" = "act"\n')
        controller.start().up()
        _learnt(controller, broker.port)
        fill(Path(folder) / "controller")
        controller.start().up()
        ratios, rss, seen = _watched(controller, broker.port, runs)
        for name in ("virtpilot_controller_samples_total", "virtpilot_signals_total", "virtpilot_commands_total"):
            say(f"{name} {controller.number(name):.0f}")
        controller.signal(signal.SIGTERM)
        controller.ended(30.0)
    return _figures(ratios, rss, seen)


def _learnt(controller: Process, port: int) -> None:
    """Let a controller hear of all hosts once, and end in order."""
    command = [sys.executable, "-m", "bench.rules_agents", str(port), str(TICK_S + 1.0)]
    subprocess.run(command, capture_output=True, check=True)
    controller.reaches("virtpilot_controller_messages_total", HOSTS)
    controller.signal(signal.SIGTERM)
    controller.ended(60.0)


def _watched(controller: Process, port: int, runs: int) -> tuple[list[float], list[float], Seen]:
    clock = SystemClock()
    duration_s = _WARM_S + runs * _WINDOW_S
    command = [sys.executable, "-m", "bench.rules_agents", str(port), str(duration_s)]
    agents = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert agents.stderr is not None
        agents.stderr.readline()
        begun_ns = clock.monotonic_ns()
        ratios, rss = [], []
        for run in range(runs + 1):
            before, at_ns = _usage(controller.pid), clock.monotonic_ns()
            end_s = _WARM_S + run * _WINDOW_S
            until(lambda end_s=end_s: (clock.monotonic_ns() - begun_ns) / 1e9 >= end_s, duration_s, 0.1)  # type: ignore[misc]
            after = _usage(controller.pid)
            if run:
                ratios.append((after.cpu_s - before.cpu_s) / ((clock.monotonic_ns() - at_ns) / 1e9))
                rss.append(after.rss_mb)
        output, _ = agents.communicate(timeout=60)
    finally:
        agents.kill()
    return ratios, rss, msgspec.json.decode(output.splitlines()[-1], type=Seen)


def _usage(pid: int) -> _Usage:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    rss_kb = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    return _Usage((int(fields[11]) + int(fields[12])) / _TICKS_PER_S, rss_kb / 1024)


def _figures(ratios: list[float], rss: list[float], seen: Seen) -> dict[str, Figure]:
    windows: list[list[float]] = [[] for _ in ratios]
    for at_s, took_ms in seen.decided:
        if at_s >= _WARM_S:
            windows[min(int((at_s - _WARM_S) // _WINDOW_S), len(windows) - 1)].append(took_ms)
    every = [took for window in windows for took in window]
    measured = {
        "messages": seen.messages, "mb": seen.bytes / 1e6, "decisions": len(every), "accepted": seen.accepted,
        "commands": seen.commands, "publisher_late_ms": seen.late_ms,
        "p50_ms": quantiles(every, n=100)[49] if len(every) > 1 else 0.0, "max_ms": max(every, default=0.0),
    }  # fmt: skip
    # Of a window with a decision or none there is no percentile to tell.
    p99 = [quantiles(window, n=100)[98] for window in windows if len(window) > 1]
    found = {
        "fleet10k_core_ratio": figure(ratios, "cores", _YARDSTICK, at_most=0.15, measured=measured),
        "fleet10k_rss_mb": figure(rss, "MB", _YARDSTICK, at_most=400.0),
    }
    if p99:
        found["sample_to_decision_p99_ms"] = figure(p99, "ms", _YARDSTICK, at_most=50.0, measured=measured)
    return found


if __name__ == "__main__":
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(measure(int(sys.argv[1]))), indent=2).decode() + "\n")
