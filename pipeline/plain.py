"""The commands that are given often, and the processes: plain words that need no library to be read.

Whatever else is said, options above all, and what is said wrong, is for `commands`; what is done is one and the same.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from virtpilot import __version__
from virtpilot.pipeline import starting

PROCESSES: Final = {
    "agent": "agent_process:become",
    "controller": "controller_service:controller",
    "writer": "writer_service:writer",
    "fleet": "fleet_service:fleet",
}
"""What runs each process, given its config file."""
CONFIGS: Final = {
    "agent": "agent_config:AgentConfig",
    "controller": "controller_config:ControllerConfig",
    "writer": "writer_config:WriterConfig",
    "fleet": "fleet_config:FleetConfig",
    "operator": "operator_config:OperatorConfig",
}
"""What each config file has."""
FILES: Final = {process: Path("/etc/virtpilot", f"{process}.toml") for process in CONFIGS}
"""Where each is unless another is named."""


def run(process: str, config: Path) -> None:
    """Run a process until it is told to stop."""
    if process != "agent":  # which becomes another process first
        starting.import_spared("structlog")
    _named(PROCESSES[process])(config)


def say_version() -> None:
    """Print which version this is."""
    sys.stdout.write(f"virtpilot {__version__}\n")


def config_type(process: str) -> type[Any]:
    """Return what a process's config file has."""
    starting.import_spared("structlog")
    found: type[Any] = _named(CONFIGS[process])
    return found


def check_config(file: Path, process: str) -> None:
    """Check a process's config file, without touching the network; raises ConfigError with every mistake in it."""
    from virtpilot.pipeline import settings

    settings.load(file, config_type(process))
    sys.stdout.write(f"{file}: fine\n")


def done(words: Sequence[str]) -> bool:
    """Do what plain words say; False where it takes more to read them."""
    match words:
        case ["--version"]:
            say_version()
        case [process] if process in PROCESSES:
            run(process, FILES[process])
        case [process, "--config", file] if process in PROCESSES and _plain(file):
            run(process, Path(file))
        case ["config", "check", file] if _plain(file) and Path(file).stem in CONFIGS:
            check_config(Path(file), Path(file).stem)
        case ["rules", "check", *files] if files and all(map(_plain, files)):
            from virtpilot.pipeline import rule_answers

            rule_answers.check([Path(file) for file in files])
        case ["rules", "test", *files] if files and all(map(_plain, files)):
            from virtpilot.pipeline import rule_answers

            rule_answers.run_tests([Path(file) for file in files])
        case _:
            return False
    return True


def _plain(word: str) -> bool:
    return bool(word) and not word.startswith("-")


def _named(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(f"virtpilot.pipeline.{module}"), name)
