"""An end in the middle of work: within five seconds, status 0, and each message is stored once after a restart."""

from __future__ import annotations

import signal

import pytest

from tests.processes.counting import each_once, in_file_store
from tests.processes.running import Process, Site
from tests.services import until

pytestmark = [pytest.mark.server, pytest.mark.slow]


class Whole:
    """Agent, writer and controller of a site at work; which ones end and come back is the test's."""

    def __init__(self, site: Site) -> None:
        self.writer = site.file_writer()
        self.agent = site.agent()
        self.controller = site.usual("controller")
        self._site = site
        for process in (self.writer, self.agent, self.controller):
            process.start()
        for process in (self.writer, self.agent, self.controller):
            process.up()
        self.working(10)

    def working(self, more: int) -> None:
        """Wait until so many more messages are stored and evaluated."""
        written = self.writer.number("virtpilot_writer_messages_total")
        handled = self.controller.number("virtpilot_controller_messages_total")
        self.writer.reaches("virtpilot_writer_messages_total", written + more)
        self.controller.reaches("virtpilot_controller_messages_total", handled + more)

    def count(self, first: signal.Signals = signal.SIGTERM, storm: bool = False) -> None:
        """End the agent, let what it left be reported, end the rest, and count."""
        ticks = self.agent.number("virtpilot_agent_ticks_total")
        end(self.agent, first, storm)
        self._site.flush()
        end(self.controller, first, storm)
        end(self.writer, first, storm)
        found = in_file_store(self._site.stored)
        each_once(found)
        assert max(map(len, found.values())) >= ticks


def end(process: Process, first: signal.Signals, storm: bool) -> None:
    """End a process by a signal, and by further ones to the last step of its end: they do no harm."""
    endings = process.output().count("ending")
    process.signal(first)
    if storm:
        assert until(lambda: _hit(process), 20.0, 0.01), process.output()
    assert process.ended() == 0, process.output()
    assert "Traceback" not in process.output()
    assert process.output().count("ending") == endings + 1


def _hit(process: Process) -> bool:
    """Send both signals to what is still there; return whether it has ended."""
    for number in (signal.SIGTERM, signal.SIGINT):
        if process.alive:
            process.signal(number)
    return not process.alive


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


def test_a_simulated_fleet_ends_as_orderly(site: Site) -> None:
    fleet = site.process("fleet", timing={"tick_s": 0.5})
    fleet.start()
    writer = site.file_writer().start().up()
    writer.reaches("virtpilot_writer_messages_total", 10)
    fleet.terminate()
    writer.terminate()
    assert len(in_file_store(site.stored)) >= 2, "every simulated host has its own numbers"
