"""The main job on two real libvirt hosts, and what the processes do when libvirtd ends under them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from deploy import lab as lab_module
from deploy.lab import Lab, scenario
from deploy.lab.wait import until
from tests.lab.lab_process import need_a_lab
from tests.services import http
from virtpilot.clock import SECOND, SystemClock
from virtpilot.grafana.emptiness import empty_panels, reads_only
from virtpilot.pipeline.trail import Trail

pytestmark = [pytest.mark.lab, pytest.mark.alone, pytest.mark.slow]

NAME = "labjob"


class Played(NamedTuple):
    """A lab in which the main job was done; its processes still run."""

    lab: Lab
    trail: Trail
    began_s: float


@pytest.fixture(scope="module")
def played() -> Iterator[Played]:
    """Play the story once; that every step happened is seen in libvirt and the store by the scenario itself."""
    need_a_lab()
    with lab_module.bring_up(NAME) as lab:
        began_s = SystemClock().now_ns() / SECOND
        played = Played(lab, scenario.run(lab, print), began_s)
        http(f"{lab.store_url}/internal/force_flush")
        yield played
    assert lab_module.leftovers(NAME) == []


def test_trail_tells_of_both_remedies_in_order_and_of_the_move(played: Played) -> None:
    trail = played.trail
    results = [step.result for step in trail.steps if step.kind == "outcome"]
    assert results == ["done", "ineffective", "reverted", "done", "effective"]
    assert (trail.before["host"], trail.after["host"]) == ("host-1", "host-2")
    assert float(trail.before["cpu_steal_ratio"]) > 0.15 > float(trail.after["cpu_steal_ratio"])
    assert trail.cleared


def test_every_cause_in_the_trail_is_another_step(played: Played) -> None:
    ids = {step.id for step in played.trail.steps}
    assert {step.cause for step in played.trail.steps if step.kind != "sample"} <= ids


def test_store_holds_the_guest_on_one_host_at_a_time(played: Played) -> None:
    """The move neither doubles the guest, although both hosts list it meanwhile, nor loses it for long."""
    series = f'vm_state_code{{name="{scenario.GUEST}"}}'
    last = _by_host(played.lab, f"tlast_over_time({series}[2h])")
    first = _by_host(played.lab, f"tfirst_over_time({series}[2h])")
    assert last.keys() == first.keys() == {"host-1", "host-2"}
    assert 0 < first["host-2"] - last["host-1"] < 15
    assert min(_by_host(played.lab, f"count_over_time({series}[2h])").values()) > 3


def test_no_panel_is_empty_in_the_store_that_the_lab_filled(played: Played) -> None:
    lab, now_s = played.lab, SystemClock().now_ns() / SECOND
    chosen = {"cluster": "lab", "guest": lab.guests[scenario.GUEST].uuid, "__rate_interval": "30s"}
    boards = ["fleet", "guest"]
    empty = empty_panels(lab.store_url, chosen, played.began_s, now_s, boards=boards)
    # Control groups of version 1 know no pressure; the simulated fleet's, which other tests look at, do.
    excused = not Path("/sys/fs/cgroup/cgroup.controllers").exists()
    assert [query for query in empty if not (excused and reads_only(query, "vm_psi_"))] == []


@pytest.mark.parametrize("name", ["host-1", "host-2"])
def test_agent_goes_on_when_libvirtd_was_killed_and_started_again(played: Played, name: str) -> None:
    lab = played.lab
    guests = set(lab.hosts[name].virsh("list", "--name").split())
    before = _newest(lab, name)
    lab.hosts[name].restart_libvirtd()
    assert until(lambda: _newest(lab, name) > before + 6, 60, f"{name}'s guests measured again")
    assert set(lab.hosts[name].virsh("list", "--name").split()) == guests


def _by_host(lab: Lab, expression: str) -> dict[str, float]:
    return {labels["host"]: value for labels, value in scenario.query(lab, expression)}


def _newest(lab: Lab, host: str) -> float:
    """Return the time of the newest guest sample of a host, in seconds."""
    found = scenario.query(lab, f'max(timestamp(vm_cpu_usage_ratio{{host="{host}"}}))')
    return found[0][1] if found else 0.0
