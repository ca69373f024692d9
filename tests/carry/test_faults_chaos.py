"""Any link of the chain killed -9 again and again, every sample counted afterwards: none missing, none twice."""

from __future__ import annotations

import os
from typing import Any, Final

import pytest

from tests.carry.chain import HOLD_S, MakeChain
from virtpilot.clock import SystemClock, seconds

pytestmark = [pytest.mark.server, pytest.mark.slow]

CHAOS_S: Final = float(os.environ.get("CHAOS_SECONDS", "8"))


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
