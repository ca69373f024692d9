"""Every panel, annotation and variable of every dashboard finds data that the real chain has put into real servers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.grafana.piloted_fleet import PilotedFleet
from tests.services import Prometheus, VictoriaMetrics, free_port, http, until
from virtpilot.clock import SECOND, SystemClock
from virtpilot.grafana.emptiness import Series, ask, board, empty_panels, options, reads_only
from virtpilot.grafana.queries import choices, queries
from virtpilot.pipeline.store.influx import InfluxStore
from virtpilot.pipeline.store.options import StoreOptions

pytestmark = pytest.mark.server

CLUSTER: Final = "dashboards"


class Filled(NamedTuple):
    """A store in which the simulated fleet's guest was starved, helped and moved."""

    url: str
    variables: dict[str, str]
    fleet: PilotedFleet

    def series(self, name: str, owner: str) -> list[Series]:
        """Return what one query of a dashboard finds."""
        (query,) = (query for query in queries(board(name), self.variables) if query.owner == owner)
        return ask(self.url, query, self.fleet.start_s, self.fleet.end_s)


@pytest.fixture(scope="module")
def filled(victoriametrics: VictoriaMetrics, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Filled]:
    folder = tmp_path_factory.mktemp("piloted")
    fleet = PilotedFleet(folder, CLUSTER, lambda clock: InfluxStore(StoreOptions(url=victoriametrics.url), clock))
    fleet.play()
    http(f"{victoriametrics.url}/internal/force_flush")
    yield Filled(victoriametrics.url, {"cluster": CLUSTER, "guest": fleet.moved()}, fleet)
    fleet.close()


@pytest.mark.parametrize("name", ["fleet", "guest"])
def test_every_panel_has_data(name: str, filled: Filled) -> None:
    fleet = filled.fleet
    assert empty_panels(filled.url, filled.variables, fleet.start_s, fleet.end_s, boards=[name]) == []


@pytest.mark.parametrize("name", ["fleet", "guest"])
def test_every_panel_that_asks_for_a_cluster_that_is_not_there_is_named(name: str, filled: Filled) -> None:
    fleet = filled.fleet
    named = empty_panels(filled.url, {"cluster": "no-such"}, fleet.start_s, fleet.end_s, boards=[name])
    asked = [query.owner for query in queries(board(name)) if query.source == "datasource"]
    # The list of clusters itself is there; what hangs on the choice is not.
    chosen = [choice.owner for choice in choices(board(name)) if choice.owner != "variable cluster"]
    assert [line.split(": ")[1] for line in named] == chosen + asked


def test_a_query_that_the_store_refuses_is_named_with_the_reason(filled: Filled) -> None:
    found = empty_panels(filled.url, {"cluster": '"'}, filled.fleet.start_s, filled.fleet.end_s, boards=["fleet"])
    assert any("Hosts / A: " in line and ": 4" in line for line in found), found[:3]


def test_the_guest_board_shows_only_the_host_that_the_guest_was_moved_to(filled: Filled) -> None:
    (host,) = filled.series("guest", "Host / A")
    (home,) = (guest.host for guest in filled.fleet.fleet.view().guests if guest.uuid == filled.variables["guest"])
    assert host.metric == {"host": home}


def test_the_move_is_marked_once_on_each_board(filled: Filled) -> None:
    for name in ("fleet", "guest"):
        (move,) = filled.series(name, "annotation Moves")
        (guest,) = (one for one in filled.fleet.fleet.view().guests if one.uuid == filled.variables["guest"])
        assert move.metric == {"name": guest.name, "host": guest.host}
    (arrived,) = filled.series("fleet", "Moves / A")
    assert {value for _, value in arrived.values} == {"1"}


def test_a_guest_that_did_not_move_has_no_mark(filled: Filled) -> None:
    still = next(one for one in filled.fleet.fleet.view().guests if one.uuid != filled.variables["guest"])
    assert filled._replace(variables=filled.variables | {"guest": still.uuid}).series("guest", "annotation Moves") == []


def test_the_lease_is_marked_on_the_host_where_it_was_held(filled: Filled) -> None:
    (lease,) = filled.series("guest", "annotation Leases")
    assert lease.metric == {"knob": "cpu_shares", "host": filled.fleet.hosts[0]}


def test_rankings_bear_what_the_link_to_the_guest_needs(filled: Filled) -> None:
    for title in ("Most starved guests", "Busiest guests", "Fullest guests", "Disk traffic", "Network traffic"):
        found = filled.series("fleet", f"{title} / A")
        assert found
        assert all({"name", "host", "vm"} == series.metric.keys() for series in found), title


def test_variables_offer_clusters_hosts_and_guests_by_name(filled: Filled) -> None:
    fleet = filled.fleet
    offered = {
        choice.owner: options(filled.url, choice, fleet.start_s, fleet.end_s)
        for name in ("fleet", "guest")
        for choice in choices(board(name), filled.variables)
    }
    assert CLUSTER in offered["variable cluster"]
    assert set(offered["variable host"]) == set(fleet.hosts)
    assert offered["variable guest"] == {guest.uuid: guest.name for guest in fleet.fleet.view().guests}


def _scraping(ports: list[int]) -> str:
    """Return a Prometheus config with one job a process, as deploy/prometheus.yml has it, only faster."""
    jobs = ["virtpilot-controller", "virtpilot-writer", *["virtpilot-agent"] * (len(ports) - 2)]
    targets = {job: [f"127.0.0.1:{port}" for port, its in zip(ports, jobs, strict=True) if its == job] for job in jobs}
    configs = [{"job_name": job, "static_configs": [{"targets": found}]} for job, found in targets.items()]
    # JSON is YAML.
    return json.dumps({"global": {"scrape_interval": "500ms"}, "scrape_configs": configs})


@pytest.fixture
def scraped(filled: Filled, tmp_path: Path) -> Iterator[Prometheus]:
    """A real Prometheus that scrapes the exporters of the fleet's controller, writer and agents."""
    exporters = filled.fleet.exporters(free_port)
    server = Prometheus(tmp_path / "prometheus", _scraping([exporter.port for exporter in exporters]))
    try:
        server.start()
        yield server
    finally:
        server.stop()
        for exporter in exporters:
            exporter.close()


def test_every_panel_on_the_processes_has_data_from_their_exporters(filled: Filled, scraped: Prometheus) -> None:
    clock = SystemClock()
    begun_s = clock.now_ns() / SECOND

    def empty() -> list[str]:
        shown = filled.variables | {"__rate_interval": "5s"}
        fleet, now_s = filled.fleet, clock.now_ns() / SECOND
        # The fleet board's own time is the simulator's; what its exporters' panels ask is asked for the present.
        lines = empty_panels(scraped.url, shown, begun_s, now_s, exporters_url=scraped.url, boards=["pilot"])
        fleets = empty_panels(filled.url, shown, fleet.start_s, now_s, exporters_url=scraped.url, boards=["fleet"])
        return lines + [line for line in fleets if "virtpilot_" in line]

    assert until(lambda: not empty(), within_s=30, every_s=0.5), empty()


@pytest.mark.parametrize(
    ("named", "excused"),
    [
        ('guest: Pressure (PSI): max by (vm) (vm_psi_cpu_some_ratio{vm="u"})', True),
        ('guest: p: vm_psi_cpu_some_ratio{vm="u"} + vm_psi_io_some_ratio{vm="u"}', True),
        ('guest: p: vm_psi_cpu_some_ratio{vm="u"} / on (vm) vm_cpu_usage_ratio{vm="u"}', False),
        ('guest: vm_psi_: max by (vm) (vm_cpu_usage_ratio{vm="u"})', False),
        ("guest: p: 422 vm_psi_ is no query", False),
    ],
)
def test_a_query_that_reads_other_series_too_is_not_one_of_these_alone(named: str, excused: bool) -> None:
    assert reads_only(named, "vm_psi_") is excused
