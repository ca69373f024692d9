"""What the processes' tests share: a broker of their own and a site whose processes end with the test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import MakeMosquitto
from tests.processes.running import Site
from tests.services import Mosquitto


@pytest.fixture
def broker(make_mosquitto: MakeMosquitto) -> Mosquitto:
    """A broker that keeps its sessions while it is stopped."""
    return make_mosquitto(persistence=True)


@pytest.fixture
def site(broker: Mosquitto, tmp_path: Path) -> Iterator[Site]:
    """An empty site on that broker."""
    folder = tmp_path / "site"
    folder.mkdir()
    made = Site(folder, "processes", broker.port)
    yield made
    made.close()
