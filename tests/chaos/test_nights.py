"""Nights of a simulated fleet in which everything is killed at moments of chance: in the morning all is well.

Two with every run, four with a thorough one, two hundred with `make chaos`. The seed is in the test's name and plays
the same night again.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
import structlog

from tests.chaos.night import Night
from tests.chaos.troubles import ENOUGH
from tests.thoroughness import THOROUGH

pytestmark = pytest.mark.slow

NIGHTS: Final = int(os.environ.get("CHAOS_NIGHTS", "4" if THOROUGH else "2"))
FIRST: Final = int(os.environ.get("CHAOS_SEED", "1"))


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """What is logged in a night of faults would fill a book."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.configure(**before)


@pytest.mark.parametrize("seed", range(FIRST, FIRST + NIGHTS))
def test_in_the_morning_nothing_is_left_lost_or_done_twice(tmp_path: Path, seed: int) -> None:
    night = Night(seed, tmp_path)
    night.play()
    assert night.faults() == []
    assert night.tried() >= ENOUGH
