"""What is begun often, or stays, is begun without the libraries that it has no use for, and answers as ever."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.command_line import said
from virtpilot.pipeline import plain, starting
from virtpilot.pipeline.commands import app
from virtpilot.pipeline.config import CONFIGS, PROCESSES

READERS = ["annotated_types", "pydantic", "pygments", "rich.console", "rich.pretty", "typer"]
SERVERS = ["influxdb_client", "paho", "prometheus_client", "reactivex", "urllib3"]
RULES = ["cryptography", "durable", "lark", "numpy", "ruamel", "virtpilot.rules"]
PARTS = ["virtpilot.planner", "virtpilot.simulator", "virtpilot.pipeline.controller", "virtpilot.pipeline.agent"]
RULE_FILE = """\
virtpilot: 1
rules:
  - name: a
    on: vm
    when: avg(cpu_steal_ratio, 1m) > 10% and tags.tier != "batch"
    clear: cpu_steal_ratio < 5%
    remedies: [{set: {cpu_shares: current * 2}, lease: 5m}, {set: {cpu_shares: 2048 / 2}, lease: 5m}]
"""
# What each is not to load, though it comes as far as it can without a config.
FOREIGN = {
    "--version": [*READERS, *SERVERS, *RULES, *PARTS, "structlog"],
    "rules check a.yaml": [*READERS, *SERVERS, *PARTS, "cryptography", "durable", "numpy", "structlog"],
    "rules test a.yaml": [*READERS, *SERVERS, "virtpilot.simulator", "virtpilot.collectors"],
    "config check writer.toml": [*READERS, *SERVERS, *RULES, *PARTS],
    "writer": [*READERS, *RULES, *PARTS, "influxdb_client", "attr", "asyncio"],
    "controller": [*READERS, "influxdb_client", "urllib3", "virtpilot.simulator", "virtpilot.collectors", "asyncio"],
    "fleet": [*READERS, "influxdb_client", "urllib3", "lark", "ruamel", "virtpilot.pipeline.controller", "asyncio"],
}


def loaded(folder: Path, words: str) -> set[str]:
    """Return every module that a command has read."""
    begun = [sys.executable, "-X", "importtime", "-m", "virtpilot.pipeline", *words.split()]
    done = subprocess.run(begun, capture_output=True, text=True, timeout=600, cwd=folder, check=False)
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}


@pytest.mark.parametrize("words", FOREIGN)
def test_a_command_has_not_loaded_what_it_has_no_use_for(tmp_path: Path, words: str) -> None:
    (tmp_path / "a.yaml").write_text(RULE_FILE)
    (tmp_path / "writer.toml").write_text('cluster = "c"\n')
    found = loaded(tmp_path, words if words not in PROCESSES else f"{words} --config nowhere.toml")
    assert "virtpilot.pipeline.plain" in found
    assert sorted(found.intersection(FOREIGN[words])) == []


def test_where_processes_and_their_configs_are_said_to_be_they_are() -> None:
    assert set(plain.PROCESSES) == set(PROCESSES)
    assert {process: plain.config_type(process) for process in plain.CONFIGS} == CONFIGS


@pytest.mark.parametrize(
    "words",
    [
        [], ["--help"], ["agent", "--help"], ["controller", "--config"], ["controller", "--config", "-x"], ["demo"],
        ["writer", "a.toml"], ["rules", "check"], ["rules", "check", "--strict", "a.yaml"], ["rules", "test", "-x"],
        ["config", "check", "nobody.toml"], ["config", "check", ""], ["stop"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_what_is_not_plain_is_left_alone(words: list[str]) -> None:
    assert not plain.done(words)


@pytest.mark.parametrize("words", ["--version", "rules check a.yaml", "rules check b.yaml", "config check fleet.toml"])
def test_plain_words_are_answered_as_all_words_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text(RULE_FILE)
    (tmp_path / "b.yaml").write_text(RULE_FILE.replace("when", "whn"))
    (tmp_path / "fleet.toml").write_text('cluster = "c"\n')
    read = CliRunner().invoke(app, words.split())
    done = said(*words.split())
    status = 2 if read.exception is not None and str(read.exception) == done.stderr.strip() else read.exit_code
    assert (done.returncode, done.stdout) == (status, read.stdout)
    assert bool(done.stdout) == (words != "rules check b.yaml")


def test_a_process_named_alone_has_its_config_where_the_manual_says(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[tuple[str, Path]] = []
    monkeypatch.setattr(plain, "run", lambda process, config: begun.append((process, config)))
    assert plain.done(["writer"])
    assert plain.done(["agent", "--config", "there.toml"])
    assert begun == [("writer", Path("/etc/virtpilot/writer.toml")), ("agent", Path("there.toml"))]


def test_garbage_is_looked_for_again_once_a_start_is_over() -> None:
    frozen = gc.get_freeze_count()
    with starting.soon():
        assert not gc.isenabled()
        starting.over()
        assert gc.isenabled()
        assert gc.get_freeze_count() > frozen
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


SPARED = """
import sys
from virtpilot.pipeline import starting
starting.import_spared("structlog")
import structlog, rich.console
print("rich.traceback" in sys.modules, structlog.dev.rich, rich.console.Console.__name__)
"""


def test_what_a_library_is_spared_others_have_as_ever() -> None:
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    done = subprocess.run(
        [sys.executable, "-c", SPARED], capture_output=True, text=True, timeout=600, check=True, env=environment
    )
    assert done.stdout.split() == ["False", "None", "Console"]
