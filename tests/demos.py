"""Rules for demos in tests of what is not a matter of rules: those alone that decide in the demo, at half the work."""

from __future__ import annotations

from typing import Final

from virtpilot.model import Mode
from virtpilot.pipeline.rulebook import LIBRARY, RuleOptions

CPU_RULES: Final = RuleOptions(paths=[str(LIBRARY / "cpu.yaml")], modes={"*": Mode.ACT})
