"""virtpilot in the lab: an agent on each host, a controller and a writer beside them, each a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from deploy.lab.lab import Lab
from virtpilot.actuators.command import generate

CLUSTER = "lab"
RULES = Path(__file__).parent / "rules"
_START = [sys.executable, "-m", "virtpilot.pipeline"]

_AGENT = """
cluster = "{cluster}"
host = "{host}"
state_folder = "{folder}/{host}-agent"
[timing]
tick_s = 2.0
[hypervisor]
migration_uri = "{uri}"
tags = ["tier", "virtpilot_weight"]
[bus]
host = "{broker}"
port = {port}
reconnect_max_s = 2.0
[commands]
public_key_files = ["{folder}/keys/controller.pub"]
[[hooks.allowed]]
name = "note"
command = ["/usr/bin/touch", "{folder}/note-{{name}}"]
[caps]
{caps}
"""
_CONTROLLER = """
cluster = "{cluster}"
state_folder = "{folder}/controller"
[rules]
paths = ["{rules}"]
[guards]
warm_up_s = 5.0
{guards}
[reserve]
cpu_ratio = 0.0
memory_bytes = 0
[bus]
host = "{broker}"
port = {port}
reconnect_max_s = 2.0
[commands]
private_key_file = "{folder}/keys/controller.key"
[operators]
public_key_files = ["{folder}/keys/operator.pub"]
"""
_OPERATOR = """
cluster = "{cluster}"
name = "the lab's operator"
private_key_file = "{folder}/keys/operator.key"
[bus]
host = "{broker}"
port = {port}
"""
_WRITER = """
cluster = "{cluster}"
state_folder = "{folder}/writer"
[store]
url = "{store}"
[bus]
host = "{broker}"
port = {port}
reconnect_max_s = 2.0
"""


class LabPilot:
    """Starts the processes in a lab that is up; they end with it."""

    def __init__(self, lab: Lab, rules: Path = RULES, guards: str = "", caps: str = "") -> None:
        """Take a lab, the controller's rules, and more lines for the options of its guards and of the hosts' caps."""
        self._lab = lab
        self._guards = guards
        self._caps = caps
        self._rules = rules
        self.folder = lab.folder / "virtpilot"
        self._controller: subprocess.Popen[bytes] | None = None

    @property
    def records(self) -> Path:
        """The controller's record log."""
        return self.folder / "controller" / "records.jsonl"

    def start(self) -> None:
        """Make keys and configs, then start agents, writer and controller."""
        lab, folder = self._lab, self.folder
        folder.mkdir(parents=True, exist_ok=True)
        generate(folder / "keys")
        generate(folder / "keys", "operator")
        values = {
            "cluster": CLUSTER, "folder": folder, "broker": lab.broker_host, "port": lab.broker_port,
            "store": lab.store_url, "rules": self._rules, "guards": self._guards, "caps": self._caps,
        }  # fmt: skip
        self._write("operator", _OPERATOR.format(**values))
        for name, host in lab.hosts.items():
            config = self._write(f"agent-{name}", _AGENT.format(host=name, uri=host.uri, **values))
            with self._log(f"agent-{name}") as log:
                host.popen([*_START, "agent", "--config", str(config)], output=log)
        self._write("writer", _WRITER.format(**values))
        self._write("controller", _CONTROLLER.format(**values))
        self._popen("writer")
        self.start_controller()

    def start_controller(self) -> None:
        """Start the controller, for the first time or after it was killed."""
        self._controller = self._popen("controller")

    def kill_controller(self) -> None:
        """End the controller as a crash would."""
        if self._controller is not None:
            self._controller.kill()
            self._controller.wait(10)

    def _popen(self, process: str) -> subprocess.Popen[bytes]:
        with self._log(process) as log:
            return self._lab.popen([*_START, process, "--config", str(self.folder / f"{process}.toml")], output=log)

    def _write(self, name: str, text: str) -> Path:
        path = self.folder / f"{name}.toml"
        path.write_text(text, encoding="utf-8")
        return path

    def _log(self, name: str):  # type: ignore[no-untyped-def]  # an open binary file
        return (self.folder / f"{name}.log").open("ab")

    def logs(self, lines: int = 12) -> str:
        """Return the end of each process's log."""
        found = []
        for path in sorted(self.folder.glob("*.log")):
            tail = path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
            found.append("\n".join([f"--- {path.name}", *tail]))
        return os.linesep.join(found)
