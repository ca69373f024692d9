"""The systemd units: taken by systemd, hardened, and in step with the example configs beside them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.deploy.broker_site import DEPLOY
from tests.services import needs
from virtpilot.pipeline import settings
from virtpilot.pipeline.config import PROCESSES

PROCESS_NAMES: Final = ("agent", "controller", "writer")
INSTALLED: Final = "/opt/virtpilot/bin/virtpilot"
HARDENED: Final = {
    "DynamicUser": "yes",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "NoNewPrivileges": "yes",
    "PrivateTmp": "yes",
    "CapabilityBoundingSet": "",
    "MemoryDenyWriteExecute": "yes",
    "Restart": "always",
    "Type": "exec",
    "UMask": "0077",
}
# systemd's own score in tenths, 0 the safest: what is left is the network and libvirt's socket, which the job is about.
MOST_EXPOSED: Final = 20


def unit(name: str) -> Path:
    """Return a process's unit file."""
    return DEPLOY / f"systemd/virtpilot-{name}.service"


def directives(name: str) -> dict[str, list[str]]:
    """Return a unit's settings with all values of each."""
    found: dict[str, list[str]] = {}
    for line in unit(name).read_text().splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


def placed(name: str, folder: Path) -> Path:
    """Return a copy of a unit that names a program which is on this machine."""
    program = Path(sys.executable).parent / "virtpilot"
    copy = folder / unit(name).name
    copy.write_text(unit(name).read_text().replace(INSTALLED, str(program)))
    return copy


@pytest.mark.parametrize("name", PROCESS_NAMES)
def test_systemd_takes_it_without_a_word(name: str, tmp_path: Path) -> None:
    command = [needs("systemd-analyze"), "verify", "--man=no", str(placed(name, tmp_path))]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert ended.returncode == 0, ended.stderr
    assert unit(name).name not in ended.stderr, "an unknown or wrong setting is told and passed over"


@pytest.mark.parametrize("name", PROCESS_NAMES)
def test_systemd_finds_little_exposed(name: str, tmp_path: Path) -> None:
    command = [
        needs("systemd-analyze"), "security", "--offline=yes", "--no-pager", f"--threshold={MOST_EXPOSED}",
        str(placed(name, tmp_path)),
    ]  # fmt: skip
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert ended.returncode == 0, ended.stdout[-200:] + ended.stderr


@pytest.mark.parametrize("name", PROCESS_NAMES)
def test_it_is_hardened_and_comes_back(name: str) -> None:
    found = directives(name)
    assert {key: found.get(key, ["?"])[-1] for key in HARDENED} == HARDENED
    assert int(found["TimeoutStopSec"][-1].removesuffix("s")) >= 5
    assert "2" in found["RestartPreventExitStatus"]


@pytest.mark.parametrize("name", PROCESS_NAMES)
def test_the_example_config_names_what_the_unit_makes(name: str) -> None:
    """State folder, credentials and runtime folder in the config are those that systemd provides."""
    found = directives(name)
    config = settings.load(DEPLOY / f"config/{name}.toml", PROCESSES[name])
    assert found["ExecStart"] == [f"{INSTALLED} {name} --config /etc/virtpilot/{name}.toml"]
    assert config.state_folder == f"/var/lib/{found['StateDirectory'][0]}"
    text = (DEPLOY / f"config/{name}.toml").read_text()
    credentials = {value.partition(":")[0] for value in found["LoadCredential"]}
    named = set(re.findall(rf"/run/credentials/{unit(name).name}/([a-z.-]+)", text))
    assert named == {"bus-password"} <= credentials
    for path in re.findall(r'^[a-z_]+ = "/run/(?!credentials)([^/]+)/', text, re.MULTILINE):
        assert path in found["RuntimeDirectory"]


def test_the_controllers_key_is_copied_to_where_its_config_looks() -> None:
    config = settings.load(DEPLOY / "config/controller.toml", PROCESSES["controller"])
    (copy,) = directives("controller")["ExecStartPre"]
    assert copy.split() == [
        "/usr/bin/install", "-m", "0600", "${CREDENTIALS_DIRECTORY}/controller.key",
        config.commands.private_key_file,  # type: ignore[union-attr] # a ControllerConfig
    ]  # fmt: skip
