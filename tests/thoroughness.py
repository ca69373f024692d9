"""How thorough a run of the tests is: what `make test` has time for, or all of it (`make test-long`)."""

from __future__ import annotations

import os
from typing import Final

THOROUGH: Final = "VIRTPILOT_THOROUGH" in os.environ


def examples(number: int, least: int = 25) -> int:
    """Return how many examples Hypothesis makes up where a thorough run has so many: else a fourth, `least` or more."""
    return number if THOROUGH else max(number // 4, min(number, least))
