"""What docs/install.md tells an operator to type is there: files of the repository, commands, options, units."""

from __future__ import annotations

import re
from typing import Final

import pytest
from typer.main import get_command

from tests.deploy.broker_site import DEPLOY
from virtpilot.pipeline.commands import app

ROOT: Final = DEPLOY.parent
GUIDE: Final = (ROOT / "docs/install.md").read_text()
README: Final = (ROOT / "README.md").read_text()
PATHS: Final = sorted(set(re.findall(r"(?<![\w/.-])(?:deploy|grafana|docs)/[\w./-]*[\w/]", GUIDE + README)))
COMMANDS: Final = sorted(set(re.findall(r"/virtpilot ((?:[a-z]+ )?[a-z]+) /", GUIDE)))


@pytest.mark.parametrize("path", PATHS)
def test_each_path_it_names_is_in_the_repository(path: str) -> None:
    assert (ROOT / path).exists()


def test_each_command_it_gives_is_one() -> None:
    assert COMMANDS == ["config check", "keys"]
    for command in COMMANDS:
        found = get_command(app)
        for word in command.split():
            found = getattr(found, "commands", {})[word]


def test_each_unit_it_starts_is_shipped_and_each_port_is_its_own() -> None:
    for unit in set(re.findall(r"virtpilot-(?!top)[a-z]+", GUIDE)):
        assert (DEPLOY / f"systemd/{unit}.service").exists(), unit
    for process, port in {"agent": 9751, "controller": 9752, "writer": 9753}.items():
        assert str(port) in GUIDE
        assert f"port = {port}" in (DEPLOY / f"config/{process}.toml").read_text()


def test_it_is_installed_from_the_checkout_whose_versions_are_pinned() -> None:
    """There is no package of that name to be had elsewhere, or it is somebody else's."""
    installs = re.findall(r"pip install ([^\n`]+)", GUIDE + README)
    assert len(installs) == 3
    for words in installs:
        assert re.fullmatch(r"--constraint constraints.txt (\.|'\.\[libvirt\]')", words), words


def test_no_password_is_given_as_an_argument() -> None:
    assert not re.search(r"mosquitto_(sub|pub|passwd)[^\n]* -(P|b)\b", GUIDE)
