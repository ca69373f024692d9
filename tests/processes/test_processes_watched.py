"""What each process tells of itself, and that a second one of its name, or in its state folder, is noticed."""

from __future__ import annotations

import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.processes.running import Process, Site
from tests.services import Mosquitto, http, until
from virtpilot.clock import SECOND, SystemClock

pytestmark = pytest.mark.server

OWN = {
    "agent": {"virtpilot_agent_ticks_total", "virtpilot_spool_published_total"},
    "controller": {"virtpilot_controller_messages_total", "virtpilot_controller_samples_total"},
    "writer": {"virtpilot_writer_messages_total", "virtpilot_writer_reported_total"},
}


class Standing(NamedTuple):
    """Agent, controller and writer at work, by their commands; a look at them leaves them so."""

    broker: Mosquitto
    site: Site
    processes: dict[str, Process]

    def healthy(self) -> bool:
        """Return whether all is well with each of them."""
        return all(process.health()[0] == 200 for process in self.processes.values())


@contextmanager
def standing_in(folder: Path) -> Iterator[Standing]:
    broker = Mosquitto(folder / "broker", persistence=True)
    try:
        broker.start()
        site = Site(folder, "processes", broker.port)
        try:
            yield Standing(broker, site, {command: site.usual(command).start() for command in OWN})
        finally:
            site.close()
    finally:
        broker.stop()


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standing]:
    with standing_in(tmp_path_factory.mktemp("standing")) as made:
        for process in made.processes.values():
            process.up()
        yield made
        for process in made.processes.values():
            process.terminate()


def test_each_process_counts_its_own_work_on_its_own_page(standing: Standing) -> None:
    for command, process in standing.processes.items():
        for name in OWN[command]:
            process.reaches(name, 3)
        others = set().union(*(names for other, names in OWN.items() if other != command))
        assert others.isdisjoint(process.metrics()), f"{command} tells of others' work"
        assert process.number(next(name for name in process.metrics() if "build_info" in name)) == 1
        assert until(lambda process=process: process.health()[0] == 200)  # type: ignore[misc]
        with pytest.raises(urllib.error.HTTPError, match="404") as absent:
            http(f"http://127.0.0.1:{process.port}/")
        absent.value.close()


@pytest.mark.parametrize("command", OWN)
def test_a_state_folder_is_for_one_process(standing: Standing, command: str) -> None:
    """The second one has not taken the first one's place at the broker, nor touched its files."""
    assert until(standing.healthy)
    first = standing.processes[command]
    second = standing.site.usual(command)  # the same config, but for the exporter's port
    assert f"in use by process {first.pid}" in second.refused(1)
    assert first.number("virtpilot_bus_takeovers_total") == 0
    assert first.health()[0] == 200


def test_a_lost_broker_is_seen_on_every_page(standing: Standing) -> None:
    processes = standing.processes.values()
    assert until(lambda: all(process.health()[1]["bus"] for process in processes))
    standing.broker.kill()
    assert until(lambda: not any(process.health()[1]["bus"] for process in processes))
    assert all(process.health()[0] == 503 for process in processes)
    standing.broker.start()
    assert until(standing.healthy, 20)


@pytest.mark.prompt
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

    begun_ns, begun = clock.monotonic_ns(), connections()
    assert until(lambda: connections() >= begun + 4)
    assert clock.monotonic_ns() - begun_ns > 2 * SECOND, "at full speed it takes a third of a second"
    for agent in agents:
        ticks = agent.number("virtpilot_agent_ticks_total")
        agent.reaches("virtpilot_agent_ticks_total", ticks + 2)
        agent.terminate()
