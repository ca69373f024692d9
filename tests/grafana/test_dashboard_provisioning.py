"""The provisioning files: they parse, name what the dashboards name, and every variable in them has a default."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import pytest
from ruamel.yaml import YAML

from virtpilot.grafana.view import SOURCE_NAME, SOURCE_UID

ROOT: Final = Path(__file__).parents[2]
FOLDER: Final = ROOT / "grafana" / "provisioning"


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = YAML(typ="safe", pure=True).load(path.read_text())
    return found


def _defaults() -> dict[str, str]:
    lines = (FOLDER / "defaults.env").read_text().splitlines()
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    return {name: value for name, _, value in pairs}


def test_every_file_is_in_a_folder_that_grafana_reads_and_is_of_its_version() -> None:
    files = sorted(FOLDER.rglob("*.y*ml"))
    assert [path.relative_to(FOLDER).as_posix() for path in files] == [
        "dashboards/virtpilot.yaml",
        "datasources/virtpilot.yaml",
    ]
    assert {_read(path)["apiVersion"] for path in files} == {1}


def test_the_data_source_is_the_one_that_the_dashboards_open_with() -> None:
    (source,) = _read(FOLDER / "datasources" / "virtpilot.yaml")["datasources"]
    assert (source["uid"], source["name"], source["type"]) == (SOURCE_UID, SOURCE_NAME, "prometheus")
    assert source["access"] == "proxy"
    # A second default would keep a Grafana that has one from starting.
    assert source["isDefault"] is False


def test_the_store_s_address_comes_from_the_environment_and_has_a_default() -> None:
    (source,) = _read(FOLDER / "datasources" / "virtpilot.yaml")["datasources"]
    assert source["url"] == "${VIRTPILOT_STORE_URL}"
    assert re.fullmatch(r"http://[a-z0-9.-]+:\d+", _defaults()["VIRTPILOT_STORE_URL"])


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.yaml")), ids=lambda path: path.parent.name)
def test_every_environment_variable_has_a_default(path: Path) -> None:
    values = "\n".join(line for line in path.read_text().splitlines() if not line.lstrip().startswith("#"))
    assert set(re.findall(r"\$\{?(\w+)", values)) <= _defaults().keys()


def test_dashboards_are_read_from_the_container_s_folder_and_may_be_deleted() -> None:
    (provider,) = _read(FOLDER / "dashboards" / "virtpilot.yaml")["providers"]
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"
    assert (provider["type"], provider["disableDeletion"]) == ("file", False)
    assert provider["folder"] == "virtpilot"
