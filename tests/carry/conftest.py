"""What the tests of the chain share: servers, agents and writers that end with the test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.carry.chain import Chain, MakeChain
from tests.conftest import MakeMosquitto, MakeVictoriaMetrics


@pytest.fixture
def make_chain(
    tmp_path: Path,
    make_mosquitto: MakeMosquitto,
    make_victoriametrics: MakeVictoriaMetrics,
    request: pytest.FixtureRequest,
) -> Iterator[MakeChain]:
    made: list[Chain] = []

    def make(persistence: bool = False, hold_s: float = 0.5, resend_s: float = 3.0) -> Chain:
        seed = int(request.config.getoption("hypothesis_seed"))
        broker, store = make_mosquitto(persistence), make_victoriametrics()
        made.append(Chain(tmp_path / "chain", broker, store, seed, hold_s, resend_s))
        return made[0]

    yield make
    for chain in made:
        chain.end()
