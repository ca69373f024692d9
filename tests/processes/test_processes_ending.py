"""An end in the middle of work: within five seconds, status 0, and each message is stored once after a restart."""

from __future__ import annotations

import signal

import pytest

from tests.processes.counting import each_once, in_file_store
from tests.processes.running import Process, Site
from tests.services import until
from virtpilot.pipeline.rulebook import LIBRARY

pytestmark = pytest.mark.server


class Whole:
    """Agent, writer and controller of a site at work; which ones end and come back is the test's."""

    def __init__(self, site: Site) -> None:
        self.writer = site.file_writer()
        self.agent = site.agent()
        self.controller = site.controller(LIBRARY)
        self._site = site
        for process in (self.writer, self.agent, self.controller):
            process.start()
        for process in (self.writer, self.agent, self.controller):
            process.up()
        self.working(10)

    def named(self, name: str) -> Process:
        """Return a process by its command."""
        found: Process = getattr(self, name)
        return found

    def working(self, more: int) -> None:
        """Wait until so many more messages are stored and evaluated."""
        written = self.writer.number("virtpilot_writer_messages_total")
        handled = self.controller.number("virtpilot_controller_messages_total")
        self.writer.reaches("virtpilot_writer_messages_total", written + more)
        self.controller.reaches("virtpilot_controller_messages_total", handled + more)

    def count(self) -> None:
        """End the agent, let what it left be reported, end the rest, and count."""
        ticks = self.agent.number("virtpilot_agent_ticks_total")
        self.agent.terminate()
        last = self._site.agent(timing={"tick_s": 3600}, spool={"resend_after_s": 1.0}).start().up()
        last.reaches("virtpilot_agent_ticks_total", 1)
        assert until(lambda: last.number("virtpilot_spool_messages_count") == 0, 40, 0.1), last.output()
        last.terminate()
        self.controller.terminate()
        self.writer.terminate()
        found = in_file_store(self._site.stored)
        each_once(found)
        assert max(map(len, found.values())) >= ticks


@pytest.mark.parametrize("name", ["agent", "writer", "controller"])
def test_ended_and_started_again_each_number_is_stored_once(site: Site, name: str) -> None:
    """Three times over: what is in hand at the end is another thing each time."""
    whole = Whole(site)
    for _time in range(3):
        whole.named(name).terminate()
        whole.named(name).start().up()
        whole.working(5)
    whole.count()


@pytest.mark.parametrize("name", ["agent", "writer"])
def test_killed_and_started_again_each_number_is_stored_once(site: Site, name: str) -> None:
    whole = Whole(site)
    for _time in range(2):
        whole.named(name).kill()
        whole.named(name).start().up()
        whole.working(5)
    whole.count()


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_further_signals_do_no_harm(site: Site, first: signal.Signals) -> None:
    """However many come, to the last step of the end."""
    processes = [site.file_writer(), site.agent(), site.controller(LIBRARY)]
    for process in processes:
        process.start()
    for process in processes:
        process.up()
        process.signal(first)
        assert until(lambda process=process: _hit(process), 20.0, 0.01), process.output()  # type: ignore[misc]
        assert process.ended() == 0, process.output()
        assert "Traceback" not in process.output()
        assert process.output().count("ending") == 1


def _hit(process: Process) -> bool:
    """Send both signals to what is still there; return whether it has ended."""
    for number in (signal.SIGTERM, signal.SIGINT):
        if process.alive:
            process.signal(number)
    return not process.alive


def test_a_simulated_fleet_ends_as_orderly(site: Site) -> None:
    fleet = site.process("fleet", timing={"tick_s": 0.5})
    fleet.start()
    writer = site.file_writer().start().up()
    writer.reaches("virtpilot_writer_messages_total", 10)
    fleet.terminate()
    writer.terminate()
    assert len(in_file_store(site.stored)) >= 2, "every simulated host has its own numbers"


def test_a_hangup_ends_neither_agent_nor_writer(site: Site) -> None:
    for process in (site.agent(), site.file_writer()):
        process.start().up()
        process.signal(signal.SIGHUP)
        process.terminate()
        assert "SIGTERM" in process.output()
