"""Agent, writer and controller at work on what goes the whole way, and their ends in the middle of it."""

from __future__ import annotations

import signal

from tests.processes.counting import each_once, in_file_store
from tests.processes.running import Process, Site
from tests.services import until


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
    endings = process.output().count("] ending ")
    process.signal(first)
    if storm:
        assert until(lambda: _hit(process), 20.0, 0.01), process.output()
    assert process.ended() == 0, process.output()
    assert "Traceback" not in process.output()
    assert process.output().count("] ending ") == endings + 1


def _hit(process: Process) -> bool:
    """Send both signals to what is still there; return whether it has ended."""
    for number in (signal.SIGTERM, signal.SIGINT):
        if process.alive:
            process.signal(number)
    return not process.alive
