"""A simulated host's /proc as Linux writes it, all from one state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from virtpilot.simulator.world import PRESSURES, Host, World

DISK: Final = "sda"
NIC: Final = "eth0"
_SECTOR: Final = 512
_USER_HZ: Final = 100
_KIB: Final = 1024
_FREE_RATIO: Final = 0.6
_EMULATOR_RATIO: Final = 0.05


def proc_text(world: World, host: int, path: str, now_ns: int, elapsed_s: float) -> str:
    """Return the text of /proc/`path` on a host; raises FileNotFoundError where there is no such file."""
    if path == "stat":
        return _stat(world, host, now_ns, elapsed_s)
    if path == "meminfo":
        return _meminfo(world, host)
    if path == "loadavg":
        return _loadavg(world, host)
    if path in _PRESSURE_LINES:
        return "".join(_pressure_line(world, host, kind, row) for kind, row in _PRESSURE_LINES[path].items())
    if path in _COUNTED:
        return _COUNTED[path]([float(value) for value in world.host_total[:, host]])
    raise FileNotFoundError(f"/proc/{path}")


def _cpu_line(name: str, total: list[float], cpus: float) -> str:
    """Return a line of jiffies: user nice system idle iowait irq softirq steal guest guest_nice."""
    guest = total[Host.GUEST] / cpus
    # what the emulator does for the guest counts as the host's system time, the rest as the guest's
    inside = guest * (1 - _EMULATOR_RATIO)
    system = total[Host.SYSTEM] / cpus + guest - inside
    parts = (inside, 0.0, system, total[Host.IDLE] / cpus, total[Host.IOWAIT] / cpus, 0.0, 0.0, 0.0, inside, 0.0)
    return f"{name} " + " ".join(str(int(part * _USER_HZ)) for part in parts) + "\n"


def _stat(world: World, host: int, now_ns: int, elapsed_s: float) -> str:
    total = [float(value) for value in world.host_total[:, host]]
    cpus = int(world.cpus[host])
    lines = [_cpu_line("cpu ", total, 1.0)]
    lines += [_cpu_line(f"cpu{number}", total, float(cpus)) for number in range(cpus)]
    up_s = elapsed_s - float(world.booted_s[host])
    switches = int(total[Host.GUEST] * 2000 + total[Host.SYSTEM] * 5000)
    lines += [
        f"intr {switches // 2}\n",
        f"ctxt {switches}\n",
        f"btime {int(now_ns / 1e9 - up_s)}\n",
        f"processes {1000 + int(up_s)}\n",
        f"procs_running {max(int(world.runnable[host]), 1)}\n",
        f"procs_blocked {int(world.host_rate[Host.IOWAIT, host])}\n",
    ]
    return "".join(lines)


def _meminfo(world: World, host: int) -> str:
    total = int(world.memory_bytes[host]) // _KIB
    used = int(world.host_used_bytes[host]) // _KIB
    swap_total = total // 4
    available = max(total - used, 0)
    swapped = min(max(used - total, 0), swap_total)
    free = int(available * _FREE_RATIO)
    rows = {
        "MemTotal": total,
        "MemFree": free,
        "MemAvailable": available,
        "Buffers": (available - free) // 10,
        "Cached": (available - free) * 9 // 10,
        "SwapCached": 0,
        "SwapTotal": swap_total,
        "SwapFree": swap_total - swapped,
    }
    return "".join(f"{name + ':':<16}{value:>10} kB\n" for name, value in rows.items())


def _loadavg(world: World, host: int) -> str:
    averages = " ".join(f"{float(value):.2f}" for value in world.load[:, host])
    return f"{averages} {max(int(world.runnable[host]), 1)}/{400 + int(world.cpus[host])} 4242\n"


_PRESSURE_LINES: Final[dict[str, dict[str, Host | None]]] = {
    # the kernel has no "full" for the CPU of a whole machine: it writes zeros
    "pressure/cpu": {"some": Host.PSI_CPU_SOME, "full": None},
    "pressure/memory": {"some": Host.PSI_MEMORY_SOME, "full": Host.PSI_MEMORY_FULL},
    "pressure/io": {"some": Host.PSI_IO_SOME, "full": Host.PSI_IO_FULL},
}


def _pressure_line(world: World, host: int, kind: str, row: Host | None) -> str:
    if row is None:
        return f"{kind} avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"
    averages = [float(value) * 100 for value in world.pressure[row - PRESSURES.start, :, host]]
    windows = " ".join(f"avg{name}={value:.2f}" for name, value in zip((10, 60, 300), averages, strict=True))
    return f"{kind} {windows} total={int(world.host_total[row, host] * 1e6)}\n"


def _diskstats(total: list[float]) -> str:
    numbers: list[float] = []
    for first in (Host.READ_BYTES, Host.WRITE_BYTES):
        size, requests, time_s = total[first : first + 3]
        numbers += [requests, 0, size / _SECTOR, time_s * 1000]
    numbers += [0, total[Host.DISK_BUSY] * 1000, (total[Host.READ_SECONDS] + total[Host.WRITE_SECONDS]) * 1000]
    return f"   8       0 {DISK} " + " ".join(str(int(number)) for number in numbers) + "\n"


def _net_dev(total: list[float]) -> str:
    ways = []
    for first in (Host.RECEIVE_BYTES, Host.TRANSMIT_BYTES):
        size, packets, drops = total[first : first + 3]
        ways.append(f"{int(size)} {int(packets)} 0 {int(drops)} 0 0 0 0")
    head = "Inter-|   Receive  |  Transmit\n face |bytes packets errs drop fifo frame compressed multicast|bytes\n"
    return f"{head}    lo: {'0 ' * 16}\n  {NIC}: {' '.join(ways)}\n"


def _vmstat(_total: list[float]) -> str:
    # a guest that swaps does so on its own disk: the host's swap stays as it is
    return "pgmajfault 0\npswpin 0\npswpout 0\noom_kill 0\n"


_COUNTED: Final[dict[str, Callable[[list[float]], str]]] = {
    "diskstats": _diskstats,
    "net/dev": _net_dev,
    "vmstat": _vmstat,
}
