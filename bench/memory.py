"""An agent's memory: whole processes with real libvirt, broker and spool, each of a host with 200 guests."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from bench.measure import Figure, figure
from tests.processes.running import Process, toml
from tests.services import Mosquitto, free_port
from virtpilot.actuators.command import generate

_GUESTS: Final = 200
_TICKS: Final = 20
_TICK_S: Final = 1.0
_PATIENCE_S: Final = 120.0
_STAND_IN: Final = Path(__file__).parent / "stand_in"


def measure(runs: int) -> dict[str, Figure]:
    """Measure the resident set after some ticks, the libraries' shared pages included."""
    with ExitStack() as ends:
        folder = Path(ends.enter_context(tempfile.TemporaryDirectory(prefix="virtpilot-bench-")))
        broker = Mosquitto(folder / "broker")
        ends.callback(broker.stop)
        broker.start()
        _private, key = generate(folder / "keys")
        agents = [_agent(broker, folder, f"node-{number}", key) for number in range(runs)]
        for agent in agents:
            ends.callback(agent.kill)
            agent.start(PYTHONPATH=str(_STAND_IN), STAND_IN_GUESTS=str(_GUESTS)).up()
        for agent in agents:
            agent.reaches("virtpilot_agent_ticks_total", _TICKS, _PATIENCE_S)
        samples = agents[0].number("virtpilot_agent_samples_total") / agents[0].number("virtpilot_agent_ticks_total")
        resident = [_status_mb(agent.pid, "VmRSS") for agent in agents]
        peaks = [_status_mb(agent.pid, "VmHWM") for agent in agents]
        own = [_status_mb(agent.pid, "RssAnon") for agent in agents]
    return {
        "agent_rss_mb": figure(
            resident,
            "MB",
            "60 MB for `virtpilot agent` with 200 guests and a key for commands, as the kernel counts it (VmRSS)",
            at_most=60,
            measured={"peak_mb": max(peaks), "anonymous_mb": max(own), "samples_per_tick": samples},
        )
    }


def _agent(broker: Mosquitto, folder: Path, host: str, public_key: Path) -> Process:
    port = free_port()
    config = folder / f"{host}.toml"
    options = {
        "cluster": "bench",
        "host": host,
        "state_folder": str(folder / host),
        "timing": {"tick_s": _TICK_S},
        "hypervisor": {"uri": "test:///default"},
        "bus": {"port": broker.port},
        "commands": {"public_key_files": [str(public_key)]},
        "exporter": {"port": port},
        "log": {"level": "warning"},
    }
    config.write_text(toml(options))
    return Process("agent", config, port)


def _status_mb(pid: int, name: str) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1000 * 1.024
    raise RuntimeError(f"the kernel does not tell {name}")
