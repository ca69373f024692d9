"""Writers and agents killed -9 at moments of chance, every sample counted afterwards: none missing, none twice."""

from __future__ import annotations

import pytest

from tests.carry.chain import MakeChain
from tests.services import until

pytestmark = [pytest.mark.server, pytest.mark.slow]


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
