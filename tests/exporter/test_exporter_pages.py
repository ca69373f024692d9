"""The exporter over real HTTP: pages, failures of what is watched, limits, and a clean end."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
from collections.abc import Iterator

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.services import Prometheus, free_port, until
from tests.services import http as get
from virtpilot.errors import ConfigError
from virtpilot.pipeline.exporter import Exporter
from virtpilot.pipeline.exporter_options import ExporterOptions
from virtpilot.pipeline.web import WebServer


@pytest.fixture
def exporter() -> Iterator[Exporter]:
    made = Exporter(ExporterOptions(port=free_port()))
    yield made
    made.close()


def _ask(exporter: Exporter, path: str, accept: str = "") -> tuple[int, str, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", exporter.port, timeout=5)
    with contextlib.closing(connection):
        connection.request("GET", path, headers={"Accept": accept} if accept else {})
        answer = connection.getresponse()
        return answer.status, answer.headers["Content-Type"], answer.read()


def _values(page: bytes) -> dict[str, float]:
    families = text_string_to_metric_families(page.decode())
    return {
        sample.name + "".join(sorted(sample.labels.values())): sample.value
        for family in families
        for sample in family.samples
    }


def test_it_is_woken_by_clients_and_the_end_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    woken: list[None] = []
    handle = WebServer.handle_request

    def counted(server: WebServer) -> None:
        handle(server)
        woken.append(None)

    monkeypatch.setattr(WebServer, "handle_request", counted)
    exporter = Exporter(ExporterOptions(port=free_port()))
    assert _ask(exporter, "/metrics")[0] == 200
    assert until(lambda: woken)
    # Longer than anything looks for an end.
    assert not until(lambda: len(woken) > 1, 0.7)
    exporter.close()
    assert len(woken) == 2


def test_a_scrape_reads_what_is_watched_at_that_moment(exporter: Exporter) -> None:
    refused = {"mode": 1}
    exporter.watch("virtpilot_a_total", "A.", "counter", lambda: sum(refused.values()))
    exporter.watch("virtpilot_refused_total", "By guard.", "counter", lambda: dict(refused), "guard")
    exporter.watch("virtpilot_b_count", "B.", "gauge", lambda: -2.5)
    refused["cooldown"] = 4
    status, kind, page = _ask(exporter, "/metrics")
    values = _values(page)
    assert (status, kind.split(";")[0]) == (200, "text/plain")
    assert (values["virtpilot_a_total"], values["virtpilot_b_count"]) == (5, -2.5)
    assert (values["virtpilot_refused_totalmode"], values["virtpilot_refused_totalcooldown"]) == (1, 4)
    assert values["process_resident_memory_bytes"] > 1e6
    assert b"# HELP virtpilot_refused_total By guard.\n# TYPE virtpilot_refused_total counter\n" in page


def test_openmetrics_is_given_to_who_asks_for_it(exporter: Exporter) -> None:
    _, kind, page = _ask(exporter, "/metrics", "application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text")
    assert page.endswith(b"# EOF\n")


def test_what_cannot_be_read_is_left_out_and_counted_and_hides_nothing(exporter: Exporter) -> None:
    exporter.watch("virtpilot_bad_total", "Bad.", "counter", lambda: 1 / len(""))
    exporter.watch("virtpilot_good_count", "Good.", "gauge", lambda: 1)
    for scrape in (1, 2):
        values = _values(_ask(exporter, "/metrics")[2])
        assert values["virtpilot_good_count"] == 1
        assert "virtpilot_bad_total" not in values
        assert values["virtpilot_exporter_unreadable_totalvirtpilot_bad_total"] == scrape


def test_health_is_200_until_a_check_fails_or_breaks(exporter: Exporter) -> None:
    state = {"bus": True}
    exporter.check("bus", lambda: state["bus"])
    assert _ask(exporter, "/healthz?x=1")[::2] == (200, b'{"healthy":true,"checks":{"bus":true}}')
    state["bus"] = False
    assert _ask(exporter, "/healthz")[::2] == (503, b'{"healthy":false,"checks":{"bus":false}}')
    state.clear()
    exporter.check("rules", lambda: True)
    status, _, page = _ask(exporter, "/healthz")
    assert (status, msgspec.json.decode(page)["checks"]) == (503, {"bus": False, "rules": True})


def test_other_paths_and_methods_are_refused(exporter: Exporter) -> None:
    assert _ask(exporter, "/etc/passwd")[0] == 404
    connection = http.client.HTTPConnection("127.0.0.1", exporter.port, timeout=5)
    with contextlib.closing(connection):
        connection.request("POST", "/metrics", b"x")
        assert connection.getresponse().status == 501


@pytest.mark.parametrize(("name", "kind"), [("virtpilot_x", "counter"), ("virtpilot_x_total", "gauge")])
def test_a_name_that_lies_about_its_kind_is_refused(exporter: Exporter, name: str, kind: str) -> None:
    with pytest.raises(ValueError, match="_total"):
        exporter.watch(name, "X.", kind, lambda: 0)  # type: ignore[arg-type] # the kind is one of the two


def test_a_name_is_watched_once(exporter: Exporter) -> None:
    exporter.watch("virtpilot_x", "X.", "gauge", lambda: 0)
    with pytest.raises(ValueError, match="already"):
        exporter.watch("virtpilot_x", "X.", "gauge", lambda: 0)


def test_port_zero_listens_nowhere_and_still_renders() -> None:
    exporter = Exporter(ExporterOptions())
    assert exporter.port == 0
    assert b"virtpilot_build_info" in exporter.metrics()[1]
    exporter.close()


def test_a_busy_port_is_one_clear_problem(exporter: Exporter) -> None:
    with pytest.raises(ConfigError, match=rf"cannot listen on 127\.0\.0\.1:{exporter.port}: Address already in use"):
        Exporter(ExporterOptions(port=exporter.port))


def test_clients_that_say_nothing_do_not_keep_others_out_nor_the_end_waiting(exporter: Exporter) -> None:
    silent = [socket.create_connection(("127.0.0.1", exporter.port), timeout=5) for _ in range(15)]
    with contextlib.ExitStack() as stack:
        for one in silent:
            stack.enter_context(one)
        assert _ask(exporter, "/metrics")[0] == 200
        port = exporter.port
        exporter.close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5)


def test_more_than_sixteen_at_once_are_turned_away_and_come_in_when_one_goes(exporter: Exporter) -> None:
    silent = [socket.create_connection(("127.0.0.1", exporter.port), timeout=5) for _ in range(16)]
    turned_away = socket.create_connection(("127.0.0.1", exporter.port), timeout=5)
    assert turned_away.recv(1) == b""
    for one in [*silent, turned_away]:
        one.close()

    def served() -> bool:
        with contextlib.suppress(http.client.HTTPException, OSError):
            return _ask(exporter, "/healthz")[0] == 200
        return False

    assert until(served)


def test_closing_twice_is_harmless_and_leaves_no_thread(exporter: Exporter) -> None:
    exporter.close()
    exporter.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "exporter"]
    assert exporter.port == 0


@pytest.mark.server
def test_a_real_prometheus_scrapes_it(exporter: Exporter, own_prometheus: Prometheus) -> None:
    exporter.watch("virtpilot_signals_total", "Signals.", "counter", lambda: 7)

    def scraped() -> bool:
        answer = get(f"{own_prometheus.url}/api/v1/query", {"query": "virtpilot_signals_total"})
        result = msgspec.json.decode(answer)["data"]["result"]
        return bool(result) and result[0]["value"][1] == "7"

    config = (
        "global: {scrape_interval: 200ms}\nscrape_configs:\n- job_name: virtpilot\n"
        f"  static_configs: [{{targets: ['127.0.0.1:{exporter.port}']}}]\n"
    )
    (own_prometheus.folder / "prometheus.yml").write_text(config)
    get(f"{own_prometheus.url}/-/reload", body=b"")
    assert until(scraped, within_s=20)


@pytest.fixture
def own_prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    server = Prometheus(tmp_path_factory.mktemp("prometheus"))
    server.start()
    yield server
    server.stop()
