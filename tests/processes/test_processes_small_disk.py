"""An agent whose disk is full: it starts, measures, says what it loses, and takes up spooling when there is room."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.processes.running import Site
from tests.services import Mosquitto, lack, needs, until

pytestmark = pytest.mark.server


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    if os.geteuid():
        lack("only root can mount a small disk")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        [needs("mount"), "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)],
        capture_output=True, check=False, timeout=20,
    )  # fmt: skip
    if mounted.returncode:
        lack(f"no disk can be mounted here: {mounted.stderr.decode()}")
    yield folder
    subprocess.run([needs("umount"), "--lazy", str(folder)], check=True, timeout=20)


def fill(path: Path) -> None:
    with path.open("ab", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass


def test_an_agent_lives_through_a_full_disk(site: Site, broker: Mosquitto, disk: Path) -> None:
    ballast = disk / "ballast"
    fill(ballast)
    agent = site.agent(state_folder=str(disk / "agent")).start().up()
    agent.reaches("virtpilot_spool_unspooled_total", 3)
    assert agent.health() == (503, {"bus": True, "spool": False})
    assert agent.output().count("measurements are published without a spool") == 1

    broker.stop()
    ballast.unlink()
    assert until(lambda: agent.health()[1]["spool"])
    agent.reaches("virtpilot_spool_messages_count", 3)
    fill(ballast)
    agent.reaches("virtpilot_spool_dropped_total", 5)
    assert agent.health() == (503, {"bus": False, "spool": False})
    assert agent.number("virtpilot_spool_size_bytes") < 1 << 20
    assert agent.output().count("spool is full: the oldest messages go") == 1

    broker.start()
    ballast.unlink()
    site.file_writer().start().up()
    assert until(lambda: agent.health() == (200, {"bus": True, "spool": True}), 20), agent.output()
    assert "spool has room again" in agent.output()
    agent.terminate()
