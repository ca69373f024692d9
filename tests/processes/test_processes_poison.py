"""What anybody may publish: bad lines, lines out of time, floods of series; put aside and told, and nothing waits."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.conftest import MakeVictoriaMetrics
from tests.processes.running import Site
from tests.services import Mosquitto, needs, until
from virtpilot.clock import SECOND, SystemClock

pytestmark = pytest.mark.server


def publish(broker: Mosquitto, topic: str, lines: str) -> None:
    command = [needs("mosquitto_pub"), "-p", str(broker.port), "-V", "5", "-q", "1", "-t", topic, "-s"]
    subprocess.run(command, input=lines.encode(), check=True, timeout=20)


def test_poison_from_a_script_goes_aside_and_the_rest_is_stored(
    site: Site, broker: Mosquitto, make_victoriametrics: MakeVictoriaMetrics
) -> None:
    """VictoriaMetrics says 204 to all of it."""
    store = make_victoriametrics()
    now_ns = SystemClock().now_ns()
    writer = (
        site.process("writer", store={"url": store.url, "hold_s": 0.2}, limits={"series_per_host": 20}).start().up()
    )
    topic = f"virtpilot/{site.cluster}/metrics/script"
    old, ahead = now_ns - 400 * 86400 * SECOND, now_ns + 3 * 86400 * SECOND
    good = [f"probe,n={number} f=1 {now_ns}" for number in range(10)]
    bad = ["no line at all", f"probe,n=old f=1 {old}", f"probe,n=ahead f=1 {ahead}", "probe,n=none f= 1"]
    publish(broker, topic, "\n".join([*good[:5], *bad, *good[5:]]))
    writer.reaches("virtpilot_writer_dead_lines_total", len(bad))
    publish(broker, topic, "\n".join(f"probe,n={number} f=2 {now_ns}" for number in range(100)))
    publish(broker, topic.replace("script", "other"), f"probe,n=other f=1 {now_ns}")
    assert until(lambda: writer.number('virtpilot_writer_series_count{host="other"}') == 1)
    assert writer.number('virtpilot_writer_series_count{host="script"}') == 20
    refused = writer.number('virtpilot_writer_series_refused_total{host="script"}')
    writer.reaches("virtpilot_writer_dead_lines_total", len(bad) + refused)
    writer.terminate()

    folder = site.folder / "writer" / "dead-letters"
    letters = [json.loads(line) for line in (folder / "dead-letters.jsonl").read_text().splitlines()]
    found = {letter["line"]: letter["reason"] for letter in letters}
    assert set(bad) <= set(found)
    assert "beyond the store's retention" in found[bad[1]]
    assert "days ahead" in found[bad[2]]
    flood = [reason for line, reason in found.items() if line not in bad]
    assert flood == ["over the host's limit of 20 series"] * int(refused)
    # Of the flood as many as the first message, with its four bad heads, had left.
    assert 80 <= refused <= 94
    rows = store.export("probe_f", now_ns / SECOND - 60, now_ns / SECOND + 60).splitlines()
    stored = {json.loads(row)["metric"]["n"] for row in rows}
    assert {*map(str, range(10)), "other"} <= stored
    assert len(stored) == 1 + 100 - refused
