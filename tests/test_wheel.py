"""The wheel as people get it: built from this tree, installed elsewhere, run outside the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("collectors", "rules", "actuators", "planner", "simulator", "pipeline", "grafana")
DATA = ("*.yaml", "*.yml", "*.json", "*.toml", "*.env", "py.typed")

Done = subprocess.CompletedProcess[str]


def run(*command: str | Path, cwd: Path, environment: Mapping[str, str] | None = None) -> Done:
    """Run a command to its end and return it, whatever its status."""
    return subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True, timeout=600, check=False
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built by the project's own backend without the network."""
    folder = tmp_path_factory.mktemp("wheel")
    done = run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def names(wheel: Path) -> frozenset[str]:
    """The files in the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return frozenset(archive.namelist())


class Installed:
    """A venv that has the wheel, and sees the dependencies of the present one but not its editable install."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        self.outside = folder / "outside"
        self.outside.mkdir()
        self._venv = folder / "venv"
        made = run(sys.executable, "-m", "venv", "--without-pip", self._venv, cwd=folder)
        assert made.returncode == 0, made.stderr
        self._python = self._venv / "bin" / "python"
        pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "--python", self._python)
        done = run(*pip, "install", "--no-deps", "--no-index", wheel, cwd=folder)
        assert done.returncode == 0, done.stderr
        # A path that a .pth file names is searched for modules; the .pth files in it, editable installs', are not read.
        (site,) = self._venv.glob("lib/python*/site-packages")
        (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
        self.package = site / "virtpilot"

    def _run(self, *command: str | Path) -> Done:
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        return run(*command, cwd=self.outside, environment=kept)

    def virtpilot(self, *words: str | Path) -> Done:
        """Run the installed command."""
        return self._run(self._venv / "bin" / "virtpilot", *words)

    def python(self, code: str) -> Done:
        """Run code in the venv."""
        return self._run(self._python, "-c", code)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel in a venv of its own."""
    return Installed(tmp_path_factory.mktemp("installed"), wheel)


def _sources(*patterns: str) -> set[str]:
    """Return what of the tree must be in the wheel, by its name there."""
    own = {path for pattern in patterns for path in (ROOT / "src" / "virtpilot").glob(pattern)}
    found = {f"virtpilot/{path.name}" for path in own}
    for room in ROOMS:
        for pattern in patterns:
            found |= {f"virtpilot/{path.relative_to(ROOT)}" for path in (ROOT / room).rglob(pattern)}
    return found


def test_every_room_has_its_link() -> None:
    linked = {path.name for path in (ROOT / "src" / "virtpilot").iterdir() if path.is_symlink()}
    assert linked == set(ROOMS)


def test_every_module_and_data_file_of_the_tree_is_in_it_and_nothing_else(names: frozenset[str]) -> None:
    """only-include is a whitelist: what is forgotten there is left out without a word."""
    wanted = _sources("*.py", *DATA)
    assert wanted - names == set(), "add them to only-include in pyproject.toml"
    packed = {name for name in names if not name.partition("/")[0].endswith(".dist-info")}
    assert packed - wanted == set(), "nothing but code and data"


def test_it_brings_one_package_and_a_licence(names: frozenset[str]) -> None:
    tops = {name.partition("/")[0] for name in names}
    (info,) = tops - {"virtpilot"}
    assert info.startswith("virtpilot-")
    assert f"{info}/licenses/LICENSE" in names


@pytest.mark.parametrize("pattern", ["rules/library/*.yaml", "simulator/scenarios/*", "grafana/json/*.json"])
def test_it_brings_what_it_ships(pattern: str, names: frozenset[str]) -> None:
    shipped = {f"virtpilot/{path.relative_to(ROOT)}" for path in ROOT.glob(pattern) if path.is_file()}
    assert shipped
    assert shipped <= names


def test_it_tells_nothing_of_the_machine_that_built_it(wheel: Path) -> None:
    places = [str(path).encode() for path in ROOT.iterdir()] + [sys.prefix.encode()]
    with zipfile.ZipFile(wheel) as archive:
        told = {name: place for name in archive.namelist() for place in places if place in archive.read(name)}
    assert told == {}


def test_it_knows_its_version_and_its_commands(installed: Installed) -> None:
    version = installed.virtpilot("--version")
    assert (version.returncode, version.stdout.strip()) == (0, "virtpilot 0.1.0"), version.stderr
    told = installed.virtpilot("--help")
    assert told.returncode == 0
    for command in ("agent", "controller", "writer", "demo", "rules", "config"):
        assert command in told.stdout


def test_every_module_imports_from_it(installed: Installed) -> None:
    """But for the drivers of optional servers, which need the extra `libvirt` only when they are used."""
    done = installed.python(
        "import importlib, json, pkgutil, virtpilot\n"
        "found = pkgutil.walk_packages(virtpilot.__path__, 'virtpilot.')\n"
        "names = [module.name for module in found if '__main__' not in module.name]\n"
        "files = [importlib.import_module(name).__file__ for name in names]\n"
        "print(json.dumps([names, files]))\n"
    )
    assert done.returncode == 0, done.stderr
    modules, files = json.loads(done.stdout)
    assert {name.split(".")[1] for name in modules} >= set(ROOMS)
    assert len(modules) > 80
    assert all(Path(file).is_relative_to(installed.package) for file in files)


def test_the_shipped_rules_pass_their_check(installed: Installed) -> None:
    done = installed.virtpilot("rules", "check", installed.package / "rules" / "library")
    assert done.returncode == 0, done.stderr
    assert "fine" in done.stdout


def test_the_demo_plays_and_prints_one_document(installed: Installed) -> None:
    done = installed.virtpilot("demo", "--seconds", "3", "--headless", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["samples_stored"] > 100
    assert document["samples_stored"] <= document["samples_published"]
    assert document["commands"] >= 1
    assert "Traceback" not in done.stderr
