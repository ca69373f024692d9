"""The lab's servers: mosquitto on the bridge and on loopback, VictoriaMetrics on loopback."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.error import URLError
from urllib.request import urlopen

from deploy.lab.errors import LabError
from deploy.lab.wait import until

_MOSQUITTO: Final = """\
listener {port} 127.0.0.1
listener {port} {address}
# The bridge is closed: only this machine and the lab's hosts are on it.
allow_anonymous true
user root
persistence true
persistence_location {folder}/
autosave_interval 5
max_queued_messages 100000
"""
# How a server is started: its command, and the open file that takes its output.
Start = Callable[[Sequence[str], int], subprocess.Popen[bytes]]


def start_broker(folder: Path, address: str, port: int, start: Start) -> subprocess.Popen[bytes]:
    """Start mosquitto and wait until it takes connections; raises LabError with its log."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "mosquitto.conf"
    config.write_text(_MOSQUITTO.format(port=port, address=address, folder=folder))
    return _started(folder, ["mosquitto", "-c", str(config)], lambda: _listens(address, port), start)


def start_store(folder: Path, port: int, start: Start) -> subprocess.Popen[bytes]:
    """Start VictoriaMetrics and wait until it is healthy; equal samples written twice are kept once."""
    folder.mkdir(parents=True, exist_ok=True)
    argv = [
        "victoria-metrics",
        f"-storageDataPath={folder / 'data'}",
        f"-httpListenAddr=127.0.0.1:{port}",
        "-retentionPeriod=12",
        "-search.latencyOffset=0s",
        "-dedup.minScrapeInterval=1ms",
    ]
    return _started(folder, argv, lambda: _healthy(f"http://127.0.0.1:{port}/health"), start)


def _started(folder: Path, argv: Sequence[str], ready: Callable[[], bool], start: Start) -> subprocess.Popen[bytes]:
    log = folder / f"{argv[0]}.log"
    with log.open("ab") as stream:
        child = start(argv, stream.fileno())

    def answers() -> bool:
        if child.poll() is not None:
            raise LabError(f"{argv[0]} ended: {log.read_text(errors='replace')[-800:]}")
        return ready()

    until(answers, 15, f"{argv[0]} is ready")
    return child


def _listens(address: str, port: int) -> bool:
    with suppress(OSError), socket.create_connection((address, port), timeout=2):
        return True
    return False


def _healthy(url: str) -> bool:
    with suppress(URLError, OSError), urlopen(url, timeout=2) as answer:  # noqa: S310 - a loopback address of our own
        return bool(answer.status == 200)
    return False
