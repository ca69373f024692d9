"""virtpilot's processes as an operator runs them: config files, arguments, signals, output, pages."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests.command_line import said
from tests.services import free_port, http, lack, until
from virtpilot.pipeline import agent_process, agent_service
from virtpilot.pipeline.rulebook import LIBRARY

Table = Mapping[str, Any]
_SERIES = re.compile(r"^([a-z_]+(?:\{[^}]*\})?) (\S+)$", re.MULTILINE)


def toml(document: Table) -> str:
    """Return a config as TOML: values first, then its sections; JSON's scalars and lists are TOML's."""
    values = [f"{key} = {json.dumps(value)}" for key, value in document.items() if not isinstance(value, Mapping)]
    sections = [f"\n[{key}]\n{toml(value)}" for key, value in document.items() if isinstance(value, Mapping) and value]
    return "\n".join([*values, *sections]) + "\n"


class Process:
    """One `virtpilot COMMAND --config FILE`; it can be started again."""

    def __init__(self, command: str, config: Path, port: int) -> None:
        self.command = command
        self.config = config
        self.port = port
        self.log = config.with_suffix(".log")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    def start(self, **environment: str) -> Process:
        """Start it; it dies with the test run that is killed."""
        dies_with_us = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
        arguments = [sys.executable, "-m", "virtpilot.pipeline", self.command, "--config", str(self.config)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*dies_with_us, *arguments],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **environment},
                cwd=self.config.parent,
            )  # fmt: skip
        return self

    def up(self, within_s: float = 60.0) -> Process:
        """Wait until it works: what it exports of its own comes last before that."""
        made = until(lambda: "virtpilot_bus_takeovers_total" in self.metrics() or not self.alive, within_s, 0.1)
        assert made, self.output()
        assert self.alive, self.output()
        return self

    def hears(self, within_s: float = 60.0) -> Process:
        """Wait until it hears what is published: it is up a little before its broker has subscribed it."""
        self.up(within_s)
        assert until(lambda: self.health()[1]["bus"], within_s, 0.1), self.output()
        return self

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def ended(self, within_s: float = 30.0) -> int:
        """Wait for its end and return its status; raises TimeoutExpired."""
        assert self._process is not None
        return self._process.wait(within_s)

    def terminate(self) -> None:
        """End it as systemd does: SIGTERM, status 0."""
        self.signal(signal.SIGTERM)
        assert self.ended() == 0, self.output()
        assert "Traceback" not in self.output()

    def refused(self, status: int) -> str:
        """Return what it says where it must not start: its command is run in this process (which no agent becomes)."""
        with patch.object(agent_process, "become", agent_service.agent):
            done = said(self.command, "--config", self.config)
        assert done.returncode == status, done.stderr
        assert not done.stdout
        assert "Traceback" not in done.stderr
        assert "started" not in done.stderr
        return done.stderr

    def kill(self) -> None:
        """End it as a power cut would."""
        if self.alive:
            self.signal(signal.SIGKILL)
            self.ended()

    def output(self) -> str:
        """Return all that it has written since its first start."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def arguments(self) -> str:
        """Return its command line as everybody on the machine sees it."""
        return Path(f"/proc/{self.pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()

    def metrics(self) -> dict[str, float]:
        """Return what it exports, nothing while it does not answer."""
        try:
            page = http(f"http://127.0.0.1:{self.port}/metrics", timeout_s=5.0).decode()
        except OSError:
            return {}
        return {name: float(value) for name, value in _SERIES.findall(page)}

    def number(self, name: str) -> float:
        """Return one exported number, -1 while it is not there."""
        return self.metrics().get(name, -1.0)

    def reaches(self, name: str, value: float, within_s: float = 40.0) -> None:
        """Wait until an exported number has come so far."""
        assert until(lambda: self.number(name) >= value, within_s, 0.1), (name, self.number(name), self.output())

    def health(self) -> tuple[int, dict[str, bool]]:
        """Return the status of /healthz and its checks."""
        try:
            return 200, json.loads(http(f"http://127.0.0.1:{self.port}/healthz"))["checks"]
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())["checks"]


class Site:
    """The processes of one cluster, their configs in one folder; all of them end with it."""

    def __init__(self, folder: Path, cluster: str, broker_port: int) -> None:
        self.folder = folder
        self.cluster = cluster
        self.broker_port = broker_port
        self._processes: list[Process] = []

    def process(self, command: str, name: str = "", **sections: Any) -> Process:
        """Return a process with a config of its own; `sections` come on top of what it needs to run here."""
        name = name or command
        port = free_port()
        document: dict[str, Any] = {
            "cluster": self.cluster,
            "state_folder": str(self.folder / name),
            "bus": {"port": self.broker_port, "reconnect_min_s": 0.1, "reconnect_max_s": 0.5},
            "exporter": {"port": port},
        }
        if command == "writer":
            document["name"] = name
        for section, options in sections.items():
            former = document.get(section)
            document[section] = {**former, **options} if isinstance(former, dict) else options
        config = self.folder / f"{name}.toml"
        config.write_text(toml(document))
        made = Process(command, config, port)
        self._processes.append(made)
        return made

    def agent(self, host: str = "h1", name: str = "", **sections: Any) -> Process:
        """Return an agent on libvirt's own fake host that measures five times a second and resends soon."""
        try:
            import libvirt  # noqa: F401
        except ImportError:
            lack("libvirt-python is not installed")
        given: dict[str, Any] = {
            "host": host,
            "timing": {"tick_s": 0.2},
            "hypervisor": {"uri": "test:///default"},
            "spool": {"resend_after_s": 3.0},
        }
        return self.process("agent", name or f"agent-{host}", **(given | sections))

    def flush(self, host: str = "h1") -> None:
        """Let an agent that measures once an hour send all that the one before it has left, until it is stored."""
        last = self.agent(host, timing={"tick_s": 3600}, spool={"resend_after_s": 1.0}).start().up()
        last.reaches("virtpilot_agent_ticks_total", 1)
        assert until(lambda: last.number("virtpilot_spool_messages_count") == 0, 40.0, 0.1), last.output()
        last.terminate()

    def file_writer(self, name: str = "writer", **sections: Any) -> Process:
        """Return a writer whose store is `self.stored`: it knows every message by its id."""
        return self.process("writer", name, file_store=str(self.stored), **sections)

    @property
    def stored(self) -> Path:
        """The folder of the file store."""
        return self.folder / "store"

    def keys(self) -> dict[str, str]:
        """Make a controller's keys, once, and return its section of them."""
        if not (self.folder / "keys").exists():
            assert said("keys", self.folder / "keys").returncode == 0
        return {"private_key_file": str(self.folder / "keys" / "controller.key")}

    def controller(self, rules: Path, **sections: Any) -> Process:
        """Return a controller with these rules that saves its state often."""
        given: dict[str, Any] = {
            "rules": {"paths": [str(rules)]},
            "commands": self.keys(),
            "timing": {"tick_s": 0.2, "save_s": 0.2},
        }
        return self.process("controller", **(given | sections))

    def usual(self, command: str) -> Process:
        """Return the agent, the controller with the shipped rules on hosts, or the writer to files."""
        match command:
            case "agent":
                return self.agent()
            case "controller":
                return self.controller(LIBRARY / "host.yaml")
            case "writer":
                return self.file_writer()
        raise ValueError(command)

    def close(self) -> None:
        """End what still runs."""
        for process in self._processes:
            process.kill()
