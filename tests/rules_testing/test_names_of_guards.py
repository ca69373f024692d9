"""The names that expectations may ask for are those that the code refuses by."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from virtpilot.actuators.guards.chain import Guards
from virtpilot.actuators.guards.options import GuardOptions
from virtpilot.actuators.knob import FOREIGN
from virtpilot.refusals import BY_AGENT, BY_CONTROLLER

ROOT = Path(__file__).parents[2]
REFUSES = re.compile(
    r'(?:Refused|Refusal|_refuse\(want,)[(\s]+"([a-z-]+)"|guard="([a-z-]+)"|guard, reason = \("([a-z-]+)"'
)


def named(files: Iterable[Path]) -> set[str]:
    """Return all names that some code refuses by."""
    return {name for file in files for found in REFUSES.finditer(file.read_text()) for name in found.groups() if name}


def test_of_the_controller() -> None:
    chain = Guards(GuardOptions()).names
    planning = named(ROOT / "pipeline" / name for name in ("pilot.py", "allocating.py"))
    assert BY_CONTROLLER[: len(chain)] == chain
    assert set(BY_CONTROLLER) == {*chain, *planning}
    assert len(set(BY_CONTROLLER)) == len(BY_CONTROLLER)


def test_of_an_agent() -> None:
    files = [file for file in (ROOT / "actuators").rglob("*.py") if "guards" not in file.parts]
    assert set(BY_AGENT) == named(files) | {FOREIGN}
    assert list(BY_AGENT) == sorted(set(BY_AGENT))
