"""What each process tells of itself, and that a second one of its name is noticed."""

from __future__ import annotations

import urllib.error

import pytest

from tests.processes.running import Site
from tests.services import Mosquitto, http, until
from virtpilot.clock import SECOND, SystemClock

pytestmark = pytest.mark.server

OWN = {
    "agent": {"virtpilot_agent_ticks_total", "virtpilot_spool_published_total"},
    "controller": {"virtpilot_controller_messages_total", "virtpilot_controller_samples_total"},
    "writer": {"virtpilot_writer_messages_total", "virtpilot_writer_reported_total"},
}


def test_each_process_counts_its_own_work_on_its_own_page(site: Site) -> None:
    processes = {command: site.usual(command).start() for command in OWN}
    for command, process in processes.items():
        for name in OWN[command]:
            process.reaches(name, 3)
        others = set().union(*(names for other, names in OWN.items() if other != command))
        assert others.isdisjoint(process.metrics()), f"{command} tells of others' work"
        assert process.number(next(name for name in process.metrics() if "build_info" in name)) == 1
        assert until(lambda process=process: process.health()[0] == 200)  # type: ignore[misc]
        with pytest.raises(urllib.error.HTTPError, match="404") as absent:
            http(f"http://127.0.0.1:{process.port}/")
        absent.value.close()
    for process in processes.values():
        process.terminate()


def test_a_lost_broker_is_seen_on_every_page(site: Site, broker: Mosquitto) -> None:
    processes = [site.usual(command).start().up() for command in OWN]
    assert until(lambda: all(process.health()[1]["bus"] for process in processes))
    broker.kill()
    assert until(lambda: not any(process.health()[1]["bus"] for process in processes))
    assert all(process.health()[0] == 503 for process in processes)
    broker.start()
    assert until(lambda: all(process.health()[0] == 200 for process in processes), 20)
    for process in processes:
        process.terminate()


def test_two_agents_of_one_name_are_told_and_do_not_fight_at_full_speed(site: Site, broker: Mosquitto) -> None:
    """A lost connection costs them a tenth of a second at first, their quarrel up to two seconds a time."""
    clock = SystemClock()
    bus = {"reconnect_max_s": 2.0}
    agents = [site.agent("h1", name=name, bus=bus).start().up() for name in ("first", "second")]
    for agent in agents:
        agent.reaches("virtpilot_bus_takeovers_total", 3)
        assert "does another process use this name?" in agent.output()
        assert "client=virtpilot-processes-agent-h1" in agent.output()

    def connections() -> int:
        return broker.log_text().count("as virtpilot-processes-agent-h1 ")

    begun, begun_ns = connections(), clock.monotonic_ns()
    assert until(lambda: connections() >= begun + 4)
    assert clock.monotonic_ns() - begun_ns > 2 * SECOND, "at full speed it takes a third of a second"
    for agent in agents:
        ticks = agent.number("virtpilot_agent_ticks_total")
        agent.reaches("virtpilot_agent_ticks_total", ticks + 2)
        agent.terminate()
