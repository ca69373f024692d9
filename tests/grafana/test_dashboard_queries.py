"""Every panel, annotation and variable of every dashboard finds data that the real chain has put into real servers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.grafana.piloted_fleet import PilotedFleet
from tests.services import VictoriaMetrics, free_port, http, until
from virtpilot.clock import SECOND, SystemClock
from virtpilot.grafana.emptiness import empty_panels
from virtpilot.pipeline import serve
from virtpilot.pipeline.exporter import Exporter, ExporterOptions
from virtpilot.pipeline.store.influx import InfluxStore, StoreOptions

CLUSTER: Final = "dashboards"


class Filled(NamedTuple):
    """A store in which the simulated fleet's guest was starved, helped and moved."""

    url: str
    variables: dict[str, str]
    fleet: PilotedFleet


@pytest.fixture(scope="module")
def filled(victoriametrics: VictoriaMetrics, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Filled]:
    folder = tmp_path_factory.mktemp("piloted")
    fleet = PilotedFleet(folder, CLUSTER, lambda clock: InfluxStore(StoreOptions(url=victoriametrics.url), clock))
    fleet.play()
    http(f"{victoriametrics.url}/internal/force_flush")
    yield Filled(victoriametrics.url, {"cluster": CLUSTER, "guest": fleet.moved()}, fleet)
    fleet.close()


@pytest.mark.server
@pytest.mark.parametrize("board", ["fleet", "guest"])
def test_every_panel_has_data(board: str, filled: Filled) -> None:
    fleet = filled.fleet
    assert empty_panels(filled.url, filled.variables, fleet.start_s, fleet.end_s, boards=[board]) == []


@pytest.mark.server
def test_a_cluster_that_is_not_there_has_empty_panels(filled: Filled) -> None:
    fleet = filled.fleet
    assert empty_panels(filled.url, {"cluster": "no-such"}, fleet.start_s, fleet.end_s, boards=["fleet"]) != []


class _ScrapingVictoriaMetrics(VictoriaMetrics):
    """One that scrapes an exporter every second."""

    scraped_port = 0

    def command(self) -> list[str]:
        config = self.folder / "scrape.yml"
        config.write_text(
            "global: {scrape_interval: 1s}\nscrape_configs:\n- job_name: virtpilot\n"
            f"  static_configs: [{{targets: ['127.0.0.1:{self.scraped_port}']}}]\n"
        )
        return [*super().command(), f"-promscrape.config={config}"]


@pytest.mark.server
def test_every_panel_of_the_pilot_board_has_data_from_the_exporters(filled: Filled, tmp_path: Path) -> None:
    exporter = Exporter(ExporterOptions(port=free_port()))
    serve.watch_agent(exporter, filled.fleet.agents[0])
    serve.watch_controller(exporter, filled.fleet.controller)
    serve.watch_writer(exporter, filled.fleet.writer)
    server = _ScrapingVictoriaMetrics(tmp_path / "vm")
    server.scraped_port = exporter.port
    server.start()
    clock = SystemClock()
    start_s = clock.now_ns() / SECOND - 5

    def empty() -> list[str]:
        http(f"{server.url}/internal/force_flush")
        now_s = clock.now_ns() / SECOND
        shown = {**filled.variables, "__rate_interval": "10s"}
        return empty_panels(filled.url, shown, start_s, now_s, exporters_url=server.url, boards=["pilot"])

    try:
        assert until(lambda: not empty(), within_s=30, every_s=0.5), empty()
    finally:
        server.stop()
        exporter.close()
