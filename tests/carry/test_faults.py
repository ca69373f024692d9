"""Each link of the chain killed -9 at moments of chance, every sample counted afterwards: none missing, none twice.

The moments come from the seed in the header: `--hypothesis-seed=N` plays them again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.carry.chain import Chain
from tests.conftest import MakeMosquitto, MakeVictoriaMetrics
from tests.services import until
from virtpilot.clock import SystemClock, seconds

pytestmark = [pytest.mark.server, pytest.mark.slow]

# VictoriaMetrics has on disk what it took after that; a test with a real kill of it cannot hold shorter.
HOLD_S: Final = 12.0
OUTAGE_S: Final = 30.0
CHAOS_S: Final = float(os.environ.get("CHAOS_SECONDS", "8"))

MakeChain = Callable[..., Chain]


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


@pytest.mark.parametrize("persistence", [False, True])
def test_a_broker_killed_and_restarted_costs_no_sample(make_chain: MakeChain, persistence: bool) -> None:
    """Without persistence it forgets sessions and queues, with it it remembers some former state."""
    chain = make_chain(persistence)
    chain.begin()
    for _ in range(2):
        chain.pass_time(0.2, 1.5)
        chain.broker.kill()
        chain.pass_time(0.1, 2.0)
        chain.broker.start()
    chain.pass_time(0.5, 1.0)
    chain.finish()
    chain.count()


def test_a_broker_away_for_half_a_minute_costs_no_sample(make_chain: MakeChain) -> None:
    """Killed, forgetful, and away for long enough that waits have grown and the keep-alive has run out."""
    chain = make_chain()
    chain.begin()
    before = chain.measured()
    chain.broker.kill()
    chain.pass_time(OUTAGE_S, OUTAGE_S)
    assert chain.measured() > before + OUTAGE_S  # it went on measuring meanwhile
    chain.broker.start()
    chain.pass_time(2.0, 4.0)
    chain.finish()
    assert chain.count() > before + OUTAGE_S


def test_each_of_three_writers_killed_in_turn_costs_no_sample(make_chain: MakeChain) -> None:
    chain = make_chain()
    chain.begin(writers=3)
    for writer in chain.chance.sample(chain.writers, 3):
        chain.pass_time(0.1, 1.0)
        writer.kill()
        chain.pass_time(0.1, 2.0)
        writer.start()
    chain.writers[0].kill()
    chain.finish()
    chain.count()


def test_an_agent_killed_again_and_again_costs_no_sample(make_chain: MakeChain) -> None:
    """What one boot has spooled, the next sends under the number that it had."""
    chain = make_chain()
    chain.begin()
    for _ in range(3):
        agent = chain.chance.choice(chain.agents)
        assert until(agent.begun, 30)
        chain.pass_time(0.1, 1.0)
        agent.kill()
        agent.start()
    chain.pass_time(1.5, 2.0)
    chain.finish()
    chain.count()
    assert sum(len(agent.sent()) for agent in chain.agents) == 5


def test_broker_writer_and_store_killed_one_after_another_cost_no_sample(make_chain: MakeChain) -> None:
    """The store loses seconds of what it took: only what was not reported can be lost, and that is sent again."""
    chain = make_chain(hold_s=HOLD_S, resend_s=14.0)
    chain.begin(writers=2)
    for server in chain.chance.sample([chain.broker, chain.store], 2):
        chain.pass_time(0.5, 2.0)
        server.kill()
        chain.pass_time(0.5, 2.0)
        server.start()
    writer = chain.chance.choice(chain.writers)
    writer.kill()
    chain.pass_time(0.1, 1.0)
    writer.start()
    chain.finish(120)
    chain.count()


@pytest.mark.timeout(CHAOS_S + 400)
def test_chaos(make_chain: MakeChain) -> None:
    """Whatever comes: a few seconds of it here, two minutes with `make chaos`."""
    chain, clock = make_chain(hold_s=HOLD_S, resend_s=16.0), SystemClock()
    chain.begin(writers=3)
    end_ns = clock.monotonic_ns() + seconds(CHAOS_S)
    while clock.monotonic_ns() < end_ns:
        victim: Any = chain.chance.choice([chain.broker, chain.store, *chain.writers, *chain.agents])
        victim.kill()
        chain.pass_time(0.0, 4.0)
        victim.start()
        chain.pass_time(0.0, 4.0)
    chain.finish(300)
    chain.count()
