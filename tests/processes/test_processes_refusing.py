"""What cannot run says why, with the place of the mistake, and has touched nobody; secrets stay secret."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MakeMosquitto
from tests.processes.running import Process, Site
from tests.services import Mosquitto, needs, until
from virtpilot.pipeline.rulebook import LIBRARY

pytestmark = pytest.mark.server

HIDDEN = "correct-horse-battery-staple"


def clients(broker: Mosquitto) -> int:
    """Return how many clients a broker has ever seen."""
    return broker.log_text().count("New client connected")


@pytest.mark.parametrize("command", ["agent", "controller", "writer", "fleet"])
def test_a_wrong_config_is_told_with_every_place_and_nothing_is_started(
    site: Site, broker: Mosquitto, command: str
) -> None:
    process = site.process(command, bus={"hots": "broker", "keepalive_s": "long"})
    told = process.refused(2)
    lines = process.config.read_text().splitlines()
    for wrong in ("hots", "keepalive_s"):
        number = next(number for number, line in enumerate(lines, 1) if line.startswith(wrong))
        assert re.search(rf"^{re.escape(str(process.config))}:{number}:\d+: .*", told, re.MULTILINE), told
    assert not (site.folder / command).exists(), "no state folder is made"
    assert clients(broker) == 0


def test_wrong_rules_are_told_with_their_places(site: Site, broker: Mosquitto, tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text("virtpilot: 1\nrules:\n  - name: busy\n    on: host\n    when: cpu_usage_rato > 1\n    fro: 1s\n")
    told = site.controller(rules).refused(2)
    assert f"{rules}:5:" in told
    assert f"{rules}:6:" in told
    assert clients(broker) == 0


def test_a_key_that_is_not_there_is_told(site: Site, broker: Mosquitto) -> None:
    absent = site.folder / "absent.key"
    assert str(absent) in site.controller(LIBRARY, commands={"private_key_file": str(absent)}).refused(2)
    assert str(absent) in site.agent(commands={"public_key_files": [str(absent)]}).refused(2)
    assert clients(broker) == 0


@pytest.mark.parametrize("command", ["agent", "controller", "writer"])
def test_a_port_in_use_is_told(site: Site, broker: Mosquitto, command: str) -> None:
    process = site.usual(command)
    with socket.create_server(("127.0.0.1", process.port)):
        told = process.refused(2)
    assert f"cannot listen on 127.0.0.1:{process.port}: Address already in use" in told
    assert clients(broker) == 0


def test_a_state_folder_that_cannot_be_made_is_told(site: Site) -> None:
    (site.folder / "file").write_text("")
    process = site.process("writer", state_folder=str(site.folder / "file" / "below"))
    assert "state folder" in process.refused(1)


@pytest.mark.parametrize(
    ("command", "wrong", "status"),
    [("agent", {"bus": {"hots": "broker"}}, 2), ("writer", {"state_folder": "/dev/null"}, 1)],
)
def test_as_a_process_of_its_own_it_says_the_same_and_ends_with_that_status(
    site: Site, command: str, wrong: dict[str, Any], status: int
) -> None:
    process = site.process(command, **wrong)
    told = process.refused(status)
    assert process.start().ended() == status, process.output()
    assert process.output() == told


def protected(make_mosquitto: MakeMosquitto, folder: Path) -> Mosquitto:
    """Return a broker that asks for the secret."""
    passwords = folder / "passwords"
    passwords.write_text(f"pilot:{HIDDEN}\n")
    subprocess.run([needs("mosquitto_passwd"), "-U", str(passwords)], check=True, timeout=20)
    passwords.chmod(0o600)
    return make_mosquitto(extra=f"allow_anonymous false\npassword_file {passwords}")


def seen(process: Process) -> str:
    """Return all that a process shows of itself to the machine: arguments, output, pages."""
    return "\n".join([process.arguments(), process.output(), str(process.metrics()), str(process.health())])


@pytest.mark.parametrize("right", [True, False])
def test_secrets_are_never_shown(make_mosquitto: MakeMosquitto, site: Site, tmp_path: Path, right: bool) -> None:
    """With the right password and with a wrong one, at the most talkative level."""
    site.broker_port = protected(make_mosquitto, tmp_path).port
    password = tmp_path / "password"
    password.write_text(HIDDEN if right else f"{HIDDEN}-old")
    password.chmod(0o600)
    common: dict[str, Any] = {"bus": {"username": "pilot", "password_file": str(password)}, "log": {"level": "debug"}}
    store_key = "t0ken-of-the-store"
    store = {"url": "http://127.0.0.1:9", "token_env": "STORE_TOKEN"}
    processes = [
        site.agent(**common),
        site.controller(LIBRARY / "host.yaml", **common),
        site.process("writer", store=store, **common),
    ]
    key = "".join(Path(site.keys()["private_key_file"]).read_text().splitlines()[1:-1])
    assert len(key) > 20
    for process in processes:
        process.start(STORE_TOKEN=store_key)
    for process in processes:
        process.up()
        if right:
            assert until(lambda process=process: process.health()[1]["bus"])  # type: ignore[misc]
        else:
            told = until(lambda process=process: "refuses the connection" in process.output())  # type: ignore[misc]
            assert told, process.output()
        shown = seen(process)
        process.signal(signal.SIGTERM)
        assert process.ended() == 0
        for secret in (HIDDEN, store_key, key):
            assert secret not in shown + process.output()


def test_a_secret_that_everybody_may_read_is_refused_unseen(site: Site, tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text(HIDDEN)
    password.chmod(0o644)
    told = site.process("writer", bus={"username": "pilot", "password_file": str(password)}).refused(2)
    assert str(password) in told
    assert HIDDEN not in told
