"""An end in the middle of work: within five seconds, status 0, and each message is stored once after a restart."""

from __future__ import annotations

import signal

import pytest

from tests.processes.counting import in_file_store
from tests.processes.running import Site
from tests.processes.whole import Whole, end

pytestmark = [pytest.mark.server, pytest.mark.slow]


def test_ended_and_started_again_each_number_is_stored_once(site: Site) -> None:
    """Each of them three times: what is in hand at the end is another thing each time, and so is how they are told."""
    whole = Whole(site)
    ends = [(signal.SIGTERM, False), (signal.SIGTERM, True), (signal.SIGINT, True)]
    # The last time agent and controller stay away, but for an agent that sends what is left.
    told = [(whole.agent, ends[:2]), (whole.writer, ends), (whole.controller, ends[:2])]
    for process, (first, storm) in ((process, one) for process, all_of in told for one in all_of):
        end(process, first, storm)
        process.start().up()
        whole.working(5)
    whole.count(signal.SIGINT, storm=True)


def test_a_simulated_fleet_ends_as_orderly(site: Site) -> None:
    fleet = site.process("fleet", timing={"tick_s": 0.5})
    fleet.start()
    writer = site.file_writer().start().up()
    writer.reaches("virtpilot_writer_messages_total", 10)
    fleet.terminate()
    writer.terminate()
    assert len(in_file_store(site.stored)) >= 2, "every simulated host has its own numbers"
