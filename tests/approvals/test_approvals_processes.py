"""Approvals on the real broker: a simulated host's agent and a controller as processes, a person with `virtpilot`."""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.command_line import said
from tests.conftest import MakeMosquitto
from tests.services import free_port, until
from tests.switch.test_switch_processes import Cluster

pytestmark = pytest.mark.server

TOKEN: Final = "0123456789abcdef0123"  # noqa: S105 - of this test alone
RULE: Final = """\
virtpilot: 1
rules:
  - name: always
    about: A guest is there.
    on: vm
    when: state_code == 1
    mode: approve
    remedies:
      - set: {cpu_shares: current + 8}
        lease: 15m
"""
SCENARIO: Final = """\
name = "small"
[[hosts]]
name = "host-1"
cpus = 2
memory_mib = 16384
[[guests]]
name = "web"
host = "host-1"
vcpus = 2
memory_mib = 256
cpu_cores = 1.0
"""


@pytest.fixture
def cluster(tmp_path: Path, make_mosquitto: MakeMosquitto) -> Iterator[Cluster]:
    made = Cluster(tmp_path, make_mosquitto(persistence=True).port)
    yield made
    made.bus.close()
    made.site.close()


def asked(port: int, method: str, path: str, body: object = None) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with contextlib.closing(connection):
        sent = json.dumps(body).encode() if body is not None else None
        connection.request(method, path, sent, {"Authorization": f"Bearer {TOKEN}"})
        return json.loads(connection.getresponse().read())


def pending(cluster: Cluster) -> list[dict[str, Any]]:
    status, document = cluster.says("approvals", "ls")
    return document["pending"] if status == 0 else []


def test_a_person_says_no_then_yes_and_the_agent_does_it(cluster: Cluster, tmp_path: Path) -> None:
    """What waits survives a kill of the controller; without the key nobody is heard; accepted, the knob is set."""
    (tmp_path / "rules.yaml").write_text(RULE)
    (tmp_path / "scenario.toml").write_text(SCENARIO)
    commands = {"public_key_files": [str(cluster.keys / "controller.pub")]}
    fleet = cluster.site.process(
        "fleet", scenario=str(tmp_path / "scenario.toml"), timing={"tick_s": 0.5}, commands=commands
    )
    guards = {"warm_up_s": 0.0, "guest_cooldown_s": 0.0}
    fleet.start().reaches("virtpilot_agent_ticks_total", 1)
    controller = cluster.site.controller(tmp_path / "rules.yaml", operators=cluster.operators, guards=guards)
    controller.start().up()
    controller.reaches('virtpilot_approvals_count{state="pending"}', 1)
    (waiting,) = pending(cluster)
    assert waiting["action"]["knob"] == "cpu_shares"
    controller.kill()
    controller.start().up()
    assert pending(cluster) == [waiting], "kept, and the same"
    assert "nothing" not in said("approvals", "ls", "--config", cluster.config).stdout

    cluster.operator(cluster.forger())
    assert cluster.says("approvals", "accept", waiting["id"])[0] == 1
    assert controller.number("virtpilot_commands_total") == 0

    cluster.operator(cluster.keys / "operator.key")
    status, settled = cluster.says("approvals", "accept", waiting["id"], "--reason", "fine")
    assert (status, settled["result"], settled["by"], settled["reason"]) == (0, "accepted", "ann", "fine")
    controller.reaches("virtpilot_commands_total", 1)

    def done() -> bool:
        cluster.hear()
        return bool(cluster.outcomes)

    assert until(done, 15.0)
    (outcome,) = cluster.outcomes.values()
    assert (outcome.result, outcome.after) == ("done", {"cpu_shares": float(waiting["action"]["value"])})
    assert cluster.says("approvals", "accept", waiting["id"]) == (0, settled), "said twice, done once"
    assert controller.number("virtpilot_commands_total") == 1
    fleet.reaches("virtpilot_agent_leases_count", 1)


def test_what_is_accepted_during_a_backup_is_told_as_waiting_and_done_afterwards(
    cluster: Cluster, tmp_path: Path
) -> None:
    (tmp_path / "rules.yaml").write_text(RULE.replace("cpu_shares: current + 8", "memory_balloon: current - 16MiB"))
    (tmp_path / "scenario.toml").write_text(SCENARIO.replace("memory_mib = 256", "memory_mib = 2048"))
    (tmp_path / "token").write_text(TOKEN)
    commands = {"public_key_files": [str(cluster.keys / "controller.pub")]}
    fleet = cluster.site.process(
        "fleet", scenario=str(tmp_path / "scenario.toml"), timing={"tick_s": 0.5}, commands=commands
    )
    fleet.start().reaches("virtpilot_agent_ticks_total", 1)
    port = free_port()
    page = {"port": port, "token_file": str(tmp_path / "token")}
    controller = cluster.site.controller(
        tmp_path / "rules.yaml", operators=cluster.operators, guards={"warm_up_s": 0.0}, operations=page
    )
    controller.start().up()
    controller.reaches('virtpilot_approvals_count{state="pending"}', 1)
    (waiting,) = pending(cluster)
    asked(port, "POST", "/operations", {"id": "nightly", "guest": "web", "takes_s": 600})
    assert until(lambda: asked(port, "GET", "/operations/nightly")["standing"] == "running")
    told = cluster.says("approvals", "accept", waiting["id"])
    assert told == (0, {"id": waiting["id"], "result": "waiting", "by": "ann"})
    assert [one["accepted_by"] for one in pending(cluster)] == ["ann"]
    assert "accepted by ann" in said("approvals", "ls", "--config", cluster.config).stdout
    assert controller.number("virtpilot_commands_total") == 0
    asked(port, "DELETE", "/operations/nightly")
    fleet.reaches("virtpilot_agent_leases_count", 1)
    status, settled = cluster.says("approvals", "accept", waiting["id"])
    assert (status, settled["result"]) == (0, "accepted")
