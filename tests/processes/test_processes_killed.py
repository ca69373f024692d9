"""A kill in the middle of work: each message is stored once after a restart."""

from __future__ import annotations

import signal

import pytest

from tests.processes.running import Site
from tests.processes.whole import Whole

pytestmark = [pytest.mark.server, pytest.mark.slow]


def test_killed_and_started_again_each_number_is_stored_once(site: Site) -> None:
    """Twice each; a hangup before that has ended neither of them."""
    whole = Whole(site)
    processes = (whole.agent, whole.writer)
    pids = [process.pid for process in processes]
    for process in processes:
        process.signal(signal.SIGHUP)
    whole.working(5)
    assert [process.pid for process in processes if process.alive] == pids
    for _time in range(2):
        for process in processes:
            process.kill()
            process.start().up()
            whole.working(5)
    whole.count()
