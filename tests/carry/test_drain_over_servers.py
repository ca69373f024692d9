"""The hour drained for real: mosquitto, a writer, VictoriaMetrics; all samples counted, the live ones go ahead."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.drain import CLUSTER, TICK_S, drained
from bench.material import FIELDS
from tests.conftest import MakeMosquitto, MakeVictoriaMetrics
from tests.processes.running import Site
from virtpilot.clock import SECOND, SystemClock

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.prompt]


def test_an_hour_of_three_hosts_is_drained_and_live_samples_go_ahead(
    make_mosquitto: MakeMosquitto, make_victoriametrics: MakeVictoriaMetrics, tmp_path: Path,
) -> None:  # fmt: skip
    broker, store = make_mosquitto(), make_victoriametrics()
    (tmp_path / "site").mkdir()
    site = Site(tmp_path / "site", CLUSTER, broker.port)
    start_s = SystemClock().now_ns() / SECOND
    try:
        site.process("writer", store={"url": store.url, "hold_s": 0.5}).start().up()
        found = drained(broker.port, tmp_path, hosts=3, guests=10)
    finally:
        site.close()
    assert found.backlog_messages == 3 * 360
    assert found.live_messages > 3
    # Not one of them waits until the backlog is through, but for those that came at its very end.
    assert found.live_before_the_backlog >= found.live_messages // 2, found
    assert found.live_late_s < 3 * TICK_S, found
    end_s = SystemClock().now_ns() / SECOND
    rows = store.export(f"vm_{FIELDS[0]}", start_s - 3700, end_s + 60).splitlines()
    times = [len(set(json.loads(row)["timestamps"])) for row in rows]
    assert len(times) == 30
    assert sum(times) == sum(len(json.loads(row)["values"]) for row in rows)
    assert sum(times) == 10 * (found.backlog_messages + found.live_messages)
