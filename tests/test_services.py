"""The test servers themselves: they start, answer, die and come back; a missing binary is told."""

from __future__ import annotations

import json

import pytest

from tests.conftest import MakeMosquitto, MakeVictoriaMetrics
from tests.services import Alertmanager, Prometheus, http, needs
from virtpilot.clock import SECOND, SystemClock


def test_a_missing_binary_skips_here_and_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no-such-binary"):
        needs("no-such-binary")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no-such-binary"):
        needs("no-such-binary")


@pytest.mark.server
def test_a_broker_is_killed_and_comes_back_on_its_port(make_mosquitto: MakeMosquitto) -> None:
    broker = make_mosquitto()
    port, pid = broker.port, broker.pid
    broker.kill()
    assert not broker.ready()
    broker.start()
    assert broker.ready()
    assert broker.port == port
    assert broker.pid not in (0, pid)


@pytest.mark.server
def test_a_store_shows_what_it_took(make_victoriametrics: MakeVictoriaMetrics) -> None:
    store = make_victoriametrics()
    now_ns = SystemClock().now_ns()
    http(f"{store.url}/write", body=b"probe,cluster=c value=1 %d\n" % now_ns)
    store.stop()
    store.start()
    (row,) = store.export("probe_value", now_ns / SECOND - 5, now_ns / SECOND + 5).splitlines() or [b""]
    assert json.loads(row)["values"] == [1]


@pytest.mark.server
def test_the_session_servers_answer(alertmanager: Alertmanager, prometheus: Prometheus) -> None:
    assert alertmanager.ready()
    assert prometheus.ready()
