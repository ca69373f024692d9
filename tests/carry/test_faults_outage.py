"""The broker away for long, every sample counted afterwards: none missing, none twice."""

from __future__ import annotations

from typing import Final

import pytest

from tests.carry.chain import MakeChain

pytestmark = [pytest.mark.server, pytest.mark.slow]

OUTAGE_S: Final = 30.0


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
