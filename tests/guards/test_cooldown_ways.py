"""How long a rule leaves a guest alone: by the way that its knob went, and after a move the longer of both."""

from __future__ import annotations

from pathlib import Path

import pytest

from virtpilot.actuators.guards.options import GuardOptions
from virtpilot.clock import SECOND
from virtpilot.model import Sample
from virtpilot.pipeline.rehearsal import Rehearsal
from virtpilot.pipeline.standin import Reply
from virtpilot.rules.language import load

START = 1_700_000_000 * SECOND
RULE = """\
virtpilot: 1
rules:
  - name: acts
    on: vm
    when: cpu_steal_ratio > 10%
    mode: act
    cooldown: {{up: {up}, down: {down}}}
    remedies:
      - {remedy}
"""
SHARES = "set: {{cpu_shares: {value}}}\n        lease: 1h"
GIB = 2**30


def left_s(folder: Path, remedy: str, up: str, down: str) -> float:
    """Return how long the rule's cooldown lasts after one action on a guest with 1024 shares."""
    path = folder / "rules.yaml"
    path.write_text(RULE.format(remedy=remedy, up=up, down=down))
    site = Rehearsal(
        load([path]),
        START,
        lambda _command: Reply(after_ns=SECOND),
        guards=GuardOptions(warm_up_s=0, guest_cooldown_s=1),
    )
    now_ns = site.clock.now_ns()
    for host in ("h2", "h1"):
        fields = {"cpu_usage_ratio": 0.9 if host == "h1" else 0.1, "cpus_count": 16, "memory_total_bytes": 64 * GIB}
        site.measure(host, [Sample("host", {"host": host}, {**fields, "memory_available_bytes": 48 * GIB}, now_ns)])
    guest = {"state_code": 1, "cpu_usage_ratio": 0.2, "vcpus_count": 1, "memory_balloon_bytes": GIB}
    knob = Sample("knob", {"host": "h1", "vm": "g", "knob": "cpu_shares"}, {"value_count": 1024}, now_ns)
    tags = {"host": "h1", "vm": "g", "name": "g"}
    site.measure("h1", [knob, Sample("vm", tags, {**guest, "cpu_steal_ratio": 0.3}, now_ns)])
    site.run_until(START + 5 * SECOND)
    (cooldown,) = site.controller.pilot.guards.saved()["rules"].values()
    return float(cooldown.until_ns - START) / SECOND


@pytest.mark.parametrize(("remedy", "up", "down", "expected_s"), [
    pytest.param(SHARES.format(value="current * 2"), "3m", "15m", 180, id="up"),
    pytest.param(SHARES.format(value="current / 2"), "3m", "15m", 900, id="down"),
    pytest.param(SHARES.format(value="current / 2"), "15m", "3m", 180, id="down, the shorter"),
    pytest.param("migrate: {to: best}", "3m", "15m", 900, id="a move: down is longer"),
    pytest.param("migrate: {to: best}", "15m", "3m", 900, id="a move: up is longer"),
])  # fmt: skip
def test_the_cooldown_is_that_of_the_way(tmp_path: Path, remedy: str, up: str, down: str, expected_s: int) -> None:
    assert left_s(tmp_path, remedy, up, down) == pytest.approx(expected_s, abs=4)
