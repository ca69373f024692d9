"""What the lab's tests share: whether it can come up here, and its command in another process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploy import lab

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"}


def need_a_lab(hosts: int = 2) -> None:
    """Skip where a lab of so many hosts cannot come up; under CI=true that is a failure."""
    lacking = lab.missing(hosts)
    if not lacking:
        return
    reason = f"the lab needs {', '.join(lacking)}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def command(name: str, *words: str) -> list[str]:
    """Return the argument list of the lab's command for the lab `name`."""
    return [sys.executable, "-m", "deploy.lab", "--name", name, *words]


def ran(name: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the lab's command to its end."""
    return subprocess.run(
        command(name, *words), cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False
    )
