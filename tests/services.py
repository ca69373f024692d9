"""Real servers for tests: each on a free loopback port, with a folder of its own, stopped by its pid."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import signal
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Final, NoReturn

import pytest

from deploy.lab.wait import pause_s
from virtpilot.clock import SECOND, SystemClock, seconds

# Servers live in sbin, which a person's PATH may lack; VIRTPILOT_SERVER_PATH names the only folders to look in.
_SEARCH_PATH: Final = (
    os.environ.get("VIRTPILOT_SERVER_PATH") or f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
)
_READY_S: Final = 20.0
_STOP_S: Final = 10.0


def needs(binary: str) -> str:
    """Return the path of `binary`; where it is absent the test is skipped, and failed under CI=true."""
    path = shutil.which(binary, path=_SEARCH_PATH)
    if path is None:
        lack(f"{binary} is not installed on this machine")
    return path


def lack(reason: str) -> NoReturn:
    """Skip a test for want of something; under CI=true that fails it."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason}, and CI must run every test")
    pytest.skip(reason)


def until(condition: Callable[[], object], within_s: float = 20.0, every_s: float = 0.02) -> bool:
    """Return whether `condition` became true within `within_s` seconds, asking every `every_s` where that is cheap."""
    clock, never = SystemClock(), Event()
    began_ns = clock.monotonic_ns()
    deadline_ns = began_ns + seconds(within_s)
    while not condition():
        asked_ns = clock.monotonic_ns()
        if asked_ns >= deadline_ns:
            return False
        never.wait(pause_s(every_s, (asked_ns - began_ns) / SECOND))
        began_ns = clock.monotonic_ns()
    return True


# Below what the kernel hands to whoever asks for any, so that no connection takes one before its server does; each
# worker of a session from a share of its own, and another session from elsewhere in it.
_PORTS_EACH: Final = 1000
_port = itertools.count(random.SystemRandom().randrange(_PORTS_EACH))


def free_port() -> int:
    """Return a TCP port of the loopback that nobody listens on just now, and that nobody else is given."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    for number in itertools.islice(_port, _PORTS_EACH):
        port = 20_000 + _PORTS_EACH * (worker % 10) + number % _PORTS_EACH
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
    raise RuntimeError("no port is free")


def http(url: str, query: dict[str, str] | None = None, body: bytes | None = None, timeout_s: float = 10.0) -> bytes:
    """Return the answer of a loopback server to a GET, or to a POST where there is a body."""
    asked = f"{url}?{urllib.parse.urlencode(query)}" if query else url
    request = urllib.request.Request(asked, data=body)  # noqa: S310 # our own loopback servers only
    with urllib.request.urlopen(request, timeout=timeout_s) as answer:  # noqa: S310 # our own loopback servers only
        return bytes(answer.read())


class Server(ABC):
    """One server process; `start` waits until it answers, `stop` ends it in order, `kill` is SIGKILL."""

    name = "server"
    binary = ""
    host = "127.0.0.1"
    end_signal = signal.SIGTERM

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.log = folder / "server.log"
        self._binary = needs(self.binary)
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def url(self) -> str:
        """The server's HTTP address."""
        return f"http://{self.host}:{self.port}"

    @property
    def pid(self) -> int:
        """The process's id; 0 while it is not running."""
        return self._process.pid if self._process is not None and self._process.poll() is None else 0

    @abstractmethod
    def command(self) -> list[str]:
        """Return the arguments after the binary."""

    @abstractmethod
    def ready(self) -> bool:
        """Return whether the server answers."""

    def start(self) -> None:
        """Start on the same port and folder as before and wait until it answers."""
        if self.pid:
            return
        # A test run that is killed must not leave servers behind: they die with the thread that started them.
        dies_with_us = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*dies_with_us, self._binary, *self.command()], stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        process = self._process
        if not until(lambda: process.poll() is not None or self.ready(), _READY_S) or not self.pid:
            self.stop()
            raise RuntimeError(f"{self.name} did not start: {self.log_text()[-2000:]}")

    def stop(self) -> None:
        """End it in order; by SIGKILL where it does not end within 10 seconds."""
        self._end(self.end_signal)

    def kill(self) -> None:
        """End it as a power cut would: SIGKILL."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(_STOP_S)

    def log_text(self) -> str:
        """Return all that the server has logged so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def _answers(self, path: str) -> bool:
        try:
            http(f"{self.url}{path}", timeout_s=2.0)
        except (urllib.error.URLError, OSError):
            return False
        return True


class Mosquitto(Server):
    """An MQTT 5 broker; with `persistence` it keeps sessions on disk; `extra` is more of its config file."""

    name = "mosquitto"
    binary = "mosquitto"

    def __init__(self, folder: Path, persistence: bool = False, extra: str = "") -> None:
        super().__init__(folder)
        self.persistence = persistence
        self.extra = extra

    def command(self) -> list[str]:
        """Return the arguments after the binary, having written the config file."""
        config = self.folder / "mosquitto.conf"
        config.write_text(
            f"user root\nlistener {self.port} {self.host}\n"
            "log_type all\nlog_dest stderr\nlog_timestamp_format %Y-%m-%dT%H:%M:%S\n"
            "max_queued_messages 0\nmax_inflight_messages 0\nset_tcp_nodelay true\n"
            f"persistence {'true' if self.persistence else 'false'}\npersistence_location {self.folder}/\n"
            f"{'' if 'allow_anonymous' in self.extra else 'allow_anonymous true'}\n{self.extra}\n"
        )
        return ["-c", str(config)]

    def ready(self) -> bool:
        """Return whether the port takes connections."""
        try:
            socket.create_connection((self.host, self.port), timeout=1.0).close()
        except OSError:
            return False
        return True


class VictoriaMetrics(Server):
    """A VictoriaMetrics single node that shows what it took at once and keeps one of each repeated point."""

    name = "victoriametrics"
    binary = "victoria-metrics"
    end_signal = signal.SIGINT

    def command(self) -> list[str]:
        """Return the arguments after the binary."""
        return [
            f"-storageDataPath={self.folder / 'data'}",
            f"-httpListenAddr={self.host}:{self.port}",
            "-retentionPeriod=12",
            "-search.latencyOffset=0s",
            "-dedup.minScrapeInterval=1ms",
        ]

    def ready(self) -> bool:
        """Return whether it answers queries."""
        return self._answers("/health")

    def export(self, match: str, start_s: float, end_s: float) -> bytes:
        """Return the raw samples of the series that match, JSON lines, all that was accepted so far included."""
        http(f"{self.url}/internal/force_flush")
        query = {"match[]": match, "start": str(start_s), "end": str(end_s)}
        return http(f"{self.url}/api/v1/export", query, timeout_s=30.0)


class Alertmanager(Server):
    """An Alertmanager; `config` is its YAML, by default one receiver that does nothing."""

    name = "alertmanager"
    binary = "prometheus-alertmanager"

    def __init__(self, folder: Path, config: str = "route: {receiver: none}\nreceivers: [{name: none}]\n") -> None:
        super().__init__(folder)
        self.config = config

    def command(self) -> list[str]:
        """Return the arguments after the binary, having written the config file."""
        config = self.folder / "alertmanager.yml"
        config.write_text(self.config)
        return [
            f"--config.file={config}",
            f"--storage.path={self.folder / 'data'}",
            f"--web.listen-address={self.host}:{self.port}",
            "--cluster.listen-address=",
        ]

    def ready(self) -> bool:
        """Return whether it takes alerts."""
        return self._answers("/-/ready")


class Prometheus(Server):
    """A Prometheus; `config` is its YAML, by default it scrapes nothing."""

    name = "prometheus"
    binary = "prometheus"

    def __init__(self, folder: Path, config: str = "scrape_configs: []\n") -> None:
        super().__init__(folder)
        self.config = config

    def command(self) -> list[str]:
        """Return the arguments after the binary, having written the config file."""
        config = self.folder / "prometheus.yml"
        config.write_text(self.config)
        return [
            f"--config.file={config}",
            f"--storage.tsdb.path={self.folder / 'data'}",
            f"--web.listen-address={self.host}:{self.port}",
            "--web.enable-lifecycle",
        ]

    def ready(self) -> bool:
        """Return whether it serves queries."""
        return self._answers("/-/ready")
