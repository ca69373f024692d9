"""The broker killed -9 at moments of chance, every sample counted afterwards: none missing, none twice."""

from __future__ import annotations

import pytest

from tests.carry.chain import MakeChain

pytestmark = [pytest.mark.server, pytest.mark.slow]


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
