"""There is an agent on each host, and several writers: what they do not need they do not have in memory."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Of the controller's, the writer's, the demo's and the command line's.
FOREIGN = [
    "_hashlib", "_ssl", "apprise", "attr", "cryptography", "durable", "influxdb_client", "lark", "numpy", "pydantic",
    "reactivex", "typing_extensions", "rich.console", "ruamel", "typer", "virtpilot.planner", "virtpilot.rules",
    "virtpilot.simulator", "virtpilot.pipeline.controller", "virtpilot.pipeline.writer", "virtpilot.pipeline.store",
]  # fmt: skip
LOOK = """
import sys
from virtpilot.pipeline import agent_process
sys.argv = ["agent", "/nowhere/agent.toml"]
try:
    agent_process.main()
except SystemExit:
    pass
import virtpilot.libvirt_host
print("\\n".join(sorted(name for name, module in sys.modules.items() if module is not None)))
"""


@pytest.fixture(scope="module")
def loaded() -> set[str]:
    done = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, timeout=600, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("module", FOREIGN)
def test_an_agent_has_not_loaded_what_others_need(loaded: set[str], module: str) -> None:
    assert not {name for name in loaded if name == module or name.startswith(f"{module}.")}


def test_it_has_loaded_what_it_needs(loaded: set[str]) -> None:
    assert {"virtpilot.pipeline.agent", "virtpilot.collectors.collector", "paho.mqtt.client"} <= loaded


def test_a_writer_has_loaded_neither_rules_nor_the_command_lines_parsers() -> None:
    look = "import sys; from virtpilot.pipeline import writer_service; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, timeout=600, check=True)
    foreign = {
        "lark",
        "numpy",
        "ruamel",
        "typer",
        "virtpilot.rules",
        "virtpilot.planner",
        "virtpilot.pipeline.controller",
    }
    assert "virtpilot.pipeline.writer" in done.stdout.split()
    assert foreign.isdisjoint(done.stdout.split())
