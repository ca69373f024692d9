"""deploy/compose.yaml without pulling anything: what it mounts is here, what it runs our command line knows."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
from ruamel.yaml import YAML
from typer.main import get_command

from deploy import compose_secrets
from tests.deploy.broker_site import DEPLOY
from virtpilot.actuators.command import load_private, load_public
from virtpilot.pipeline import settings
from virtpilot.pipeline.commands import app
from virtpilot.pipeline.config import PROCESSES

FILE: Final = DEPLOY / "compose.yaml"
ONE_SHOT: Final = "secrets"
OURS: Final = ("controller", "writer", "fleet")


def load() -> dict[str, Any]:
    """Return the file as a plain document; raises for a key that stands twice."""
    document = YAML(typ="safe").load(FILE)
    assert isinstance(document, dict)
    return document


COMPOSE: Final = load()
SERVICES: Final[dict[str, dict[str, Any]]] = COMPOSE["services"]


def mounts(service: str) -> list[tuple[str, str, bool]]:
    """Return source, target and whether it is read-only, of each volume."""
    parts = [mount.split(":") for mount in SERVICES[service].get("volumes", [])]
    return [(source, target, options == ["ro"]) for source, target, *options in parts]


BINDS: Final = sorted({source for name in SERVICES for source, _, _ in mounts(name) if source.startswith(".")})


def test_every_service_of_a_whole_virtpilot_is_there() -> None:
    assert {"mosquitto", "victoriametrics", "grafana", "alertmanager", *OURS} <= SERVICES.keys()


@pytest.mark.parametrize("source", BINDS)
def test_what_is_mounted_is_in_the_repository(source: str) -> None:
    assert (DEPLOY / source).exists()


def test_folders_of_the_repository_are_mounted_read_only() -> None:
    assert not [(name, mount) for name in SERVICES for mount in mounts(name) if mount[0] in BINDS and not mount[2]]


def test_named_volumes_are_declared_and_used() -> None:
    named = {source for name in SERVICES for source, _, _ in mounts(name) if not source.startswith(".")}
    assert named == COMPOSE["volumes"].keys()


def test_a_service_sees_its_own_secrets_only() -> None:
    for name in SERVICES.keys() - {ONE_SHOT}:
        seen = {source for source, _, _ in mounts(name) if source.startswith("secrets-")}
        allowed = {"mosquitto": "secrets-broker", "victoriametrics": "", "alertmanager": ""}.get(
            name, f"secrets-{name}"
        )
        assert seen == ({allowed} if allowed else set())
        assert all(read_only for source, _, read_only in mounts(name) if source.startswith("secrets-"))


@pytest.mark.parametrize("name", OURS)
def test_our_services_run_commands_that_there_are_with_configs_that_are_fine(name: str) -> None:
    command, option, inside = SERVICES[name]["command"]
    known = getattr(get_command(app), "commands", {})
    context = known[command].make_context(command, [option, inside])
    assert context.params == {"config": Path(inside)}
    (source,) = [source for source, target, _ in mounts(name) if target == inside]
    assert settings.check(DEPLOY / source, PROCESSES[command]) == []


@pytest.mark.parametrize("name", OURS)
def test_our_configs_agree_with_the_services_around_them(name: str) -> None:
    """Hosts named in a config are services, files named in it lie in what is mounted, /healthz is where it is asked."""
    (source,) = [source for source, target, _ in mounts(name) if target.endswith(f"{name}.toml")]
    text = (DEPLOY / source).read_text()
    loaded = settings.loads(text, source, PROCESSES[name])
    assert loaded.bus.host in SERVICES
    assert loaded.bus.username == name
    assert set(re.findall(r"http://([a-z]+):\d+", text)) <= SERVICES.keys()
    targets = [target for _, target, _ in mounts(name)]
    files = re.findall(r'"(/[^"]+)"', text)
    assert files
    assert all(any(file.startswith(f"{target}/") for target in targets) for file in files)
    assert any(loaded.state_folder.startswith(f"{target}/") for target in targets)
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    assert f"http://127.0.0.1:{loaded.exporter.port}/healthz" in dockerfile


def test_the_scrape_config_asks_each_of_our_services() -> None:
    document = YAML(typ="safe").load(DEPLOY / "config/compose/scrape.yml")
    targets = [
        target for job in document["scrape_configs"] for group in job["static_configs"] for target in group["targets"]
    ]
    assert sorted(targets) == sorted(f"{name}:9750" for name in OURS)


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_each_service_is_kept_in_bounds(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert "privileged" not in service
    if name == ONE_SHOT:
        assert service["network_mode"] == "none"
        assert service["restart"] == "no"
        return
    assert service["restart"] == "unless-stopped"
    assert not service["user"].startswith("0:")
    assert "cap_add" not in service
    assert "healthcheck" in service or name in OURS


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_images_are_pinned_and_ports_are_for_this_machine(name: str) -> None:
    image, _, tag = SERVICES[name]["image"].partition(":")
    assert image
    assert re.fullmatch(r"v?\d+\.\d+\.\d+", tag)
    assert all(port.startswith("${BIND_ADDRESS:-127.0.0.1}:") for port in SERVICES[name].get("ports", []))


def test_the_store_keeps_repeated_points_once_and_for_a_time() -> None:
    command = SERVICES["victoriametrics"]["command"]
    assert "-dedup.minScrapeInterval=1ms" in command
    assert any(argument.startswith("-retentionPeriod=") for argument in command)
    assert SERVICES["victoriametrics"]["stop_signal"] == "SIGINT"


def test_no_secret_stands_in_the_file() -> None:
    for name, service in SERVICES.items():
        for variable in service.get("environment", {}):
            assert "PASSWORD" not in variable or variable.endswith("__FILE"), (name, variable)


def test_who_waits_for_whom_is_there_and_tells_its_health() -> None:
    for service in SERVICES.values():
        for other, how in service.get("depends_on", {}).items():
            ends = other == ONE_SHOT
            assert how["condition"] == ("service_completed_successfully" if ends else "service_healthy")
            assert ends or "healthcheck" in SERVICES[other]


def docker_compose() -> list[str]:
    """Return the command, or skip: it is no server, and the rest of this file holds without it."""
    docker = shutil.which("docker")
    if docker and subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode == 0:
        return [docker, "compose"]
    found = shutil.which("docker-compose")
    return [found] if found else pytest.skip("docker compose is not installed on this machine")


def test_docker_compose_takes_it() -> None:
    command = [*docker_compose(), "-f", str(FILE), "config", "-q"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert ended.returncode == 0, ended.stderr
    assert not ended.stderr


def test_a_second_start_keeps_the_secrets(tmp_path: Path) -> None:
    uid = os.getuid()
    owners = {"BROKER_UID": uid, "GRAFANA_UID": uid}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in owners.items():
            patch.setattr(compose_secrets, name, value)
        compose_secrets.make_secrets(tmp_path, uid)
        names = (
            "controller/bus-password",
            "controller/controller.key",
            "fleet/controller.pub",
            "grafana/admin-password",
        )
        first = {name: (tmp_path / name).read_bytes() for name in names}
        compose_secrets.make_secrets(tmp_path, uid)
    assert first == {name: (tmp_path / name).read_bytes() for name in names}
    given = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in given if path.parent.name != "made"} == {0o600}
    load_private(tmp_path / "controller/controller.key")
    assert load_public([tmp_path / "fleet/controller.pub"])
    assert sorted(path.name for path in (tmp_path / "writer").iterdir()) == ["bus-password"]


def test_the_brokers_health_check_has_the_password_of_its_user(tmp_path: Path) -> None:
    service = SERVICES["mosquitto"]
    assert service["healthcheck"]["test"][1] == compose_secrets.HEALTH_FILE
    assert service["environment"]["XDG_CONFIG_HOME"] == "/secrets/broker"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compose_secrets, "BROKER_UID", os.getuid())
        patch.setattr(compose_secrets, "GRAFANA_UID", os.getuid())
        compose_secrets.make_secrets(tmp_path, os.getuid())
    password = (tmp_path / "made/health.password").read_text()
    assert (tmp_path / "broker/mosquitto_pub").read_text() == f"-u health\n-P {password}"
