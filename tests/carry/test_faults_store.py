"""The store killed -9 too, which loses what it took, every sample counted afterwards: none missing, none twice."""

from __future__ import annotations

import pytest

from tests.carry.chain import HOLD_S, MakeChain

pytestmark = [pytest.mark.server, pytest.mark.slow]


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
