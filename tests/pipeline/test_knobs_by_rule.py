"""Rules that turn each kind of knob on the simulated fleet: set by command, felt by the guest, given back."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Final

import pytest

from virtpilot.model import Command, Mode
from virtpilot.pipeline.demo import Demo
from virtpilot.pipeline.rulebook import RuleOptions
from virtpilot.simulator.scenario import guest_uuid

MIB: Final = 2**20
SCENARIO: Final = """
name = "knobs"
[[hosts]]
name = "h1"
cpus = 8
memory_mib = 16384
[[guests]]
name = "busy"
host = "h1"
vcpus = 4
memory_mib = 4096
cpu_cores = 3
memory_used_mib = 1024
disk_read_mib_s = 40
net_receive_mib_s = 30
"""
RULE: Final = """
virtpilot: 1
rules:
  - name: turned
    on: {on}
    when: cpu_usage_ratio > 1%
    cooldown: 10m
    remedies:
      - set: {{{what}}}
        lease: {lease}
"""
BUSY: Final = guest_uuid("busy")


def play(demo: Demo, seconds: int) -> None:
    for _ in range(seconds):
        demo.step()


def rate(demo: Demo, counter: str) -> float:
    """Return how much a counter of the guest grows in a second."""
    before = demo.fleet.hypervisor("h1").guests()[0].stats[counter]
    play(demo, 5)
    return (float(demo.fleet.hypervisor("h1").guests()[0].stats[counter]) - float(before)) / 5


def piloted(folder: Path, what: str, lease: str, on: str = "vm") -> Demo:
    (folder / "scenario.toml").write_text(SCENARIO)
    (folder / "rules.yaml").write_text(RULE.format(what=what, lease=lease, on=on))
    rules = RuleOptions(paths=[str(folder / "rules.yaml")], modes={"*": Mode.ACT})
    return Demo(folder / "demo", folder / "scenario.toml", rules)


@pytest.mark.parametrize(
    ("what", "knob", "value", "counter", "free", "held"),
    [
        ("vcpu_quota: 50ms", "vcpu_quota", 50_000, "cpu.time", 3e9, 2e9),
        ("global_quota: 100000", "global_quota", 100_000, "cpu.time", 3e9, 1e9),
        ("vcpus: current - 2", "vcpus", 2, "cpu.time", 3e9, 2e9),
        ("vcpupin: 0-1", "vcpupin", 0b11, "cpu.time", 3e9, 2e9),
        ("vda.read_bytes_sec: 10MiB/s", "vda.read_bytes_sec", 10 * MIB, "block.0.rd.bytes", 40 * MIB, 10 * MIB),
        ("vda.total_iops_sec: 160", "vda.total_iops_sec", 160, "block.0.rd.bytes", 40 * MIB, 10 * MIB),
        (
            "nic0.inbound_average: nics_receive_bytes_per_second / 3", "nic0.inbound_average", 10_486_000,
            "net.0.rx.bytes", 30 * MIB, 10_486_000,
        ),
    ],
)  # fmt: skip
def test_a_limit_holds_the_guest_down_for_its_lease(
    tmp_path: Path, what: str, knob: str, value: int, counter: str, free: float, held: float
) -> None:
    demo = piloted(tmp_path, what, "30s")
    hypervisor = demo.fleet.hypervisor("h1")
    before = hypervisor.get_knob(BUSY, knob)
    assert rate(demo, counter) == pytest.approx(free, rel=0.01)
    for _ in range(400):
        demo.step()
        if hypervisor.get_knob(BUSY, knob) != before:
            break
    assert hypervisor.get_knob(BUSY, knob) == value
    assert rate(demo, counter) == pytest.approx(held, rel=0.01)
    play(demo, 30)
    assert hypervisor.get_knob(BUSY, knob) == before
    assert rate(demo, counter) == pytest.approx(free, rel=0.01)
    assert [outcome.result for agent in demo.agents for outcome in agent.executor.unpublished()] == []
    demo.close()


@pytest.mark.parametrize(
    ("what", "knob", "value"),
    [
        ("memory_balloon: current - 512MiB", "memory_balloon", 3584 * MIB),
        ("memory_soft_limit: memory_balloon_bytes * 75%", "memory_soft_limit", 3072 * MIB),
        ("blkio_weight: 200", "blkio_weight", 200),
        ("vcpu_period: current / 2", "vcpu_period", 50_000),
        ("guest_vcpus: 2", "guest_vcpus", -1),
        ("vcpu_quota: current / 2", "vcpu_quota", 0),
    ],
)
def test_what_is_set_and_what_cannot_be_from_where_it_stands(tmp_path: Path, what: str, knob: str, value: int) -> None:
    """A weight and a period that nobody tells are where they usually are; half of no limit is nothing."""
    demo = piloted(tmp_path, what, "1h")
    play(demo, 60)
    hypervisor = demo.fleet.hypervisor("h1")
    refused = value in {-1, 0}
    assert demo.document()["decisions"]["accepted"] == (knob == "guest_vcpus" or not refused)
    leased = {lease.knob for agent in demo.agents for lease in agent.executor.leases()}
    assert leased == (set() if refused else {knob})
    if value >= 0:
        assert hypervisor.get_knob(BUSY, knob) == value
    demo.close()


def test_a_rule_on_a_host_turns_on_page_merging_for_its_lease(tmp_path: Path) -> None:
    demo = piloted(tmp_path, "ksm_run: 1", "30s", on="host")
    hypervisor = demo.fleet.hypervisor("h1")
    for _ in range(400):
        demo.step()
        if hypervisor.get_knob("h1", "ksm_run"):
            break
    assert hypervisor.get_knob("h1", "ksm_run") == 1
    (lease,) = [lease for agent in demo.agents for lease in agent.executor.leases()]
    assert (lease.guest, lease.knob, lease.baseline) == ("h1", "ksm_run", 0)
    play(demo, 31)
    assert hypervisor.get_knob("h1", "ksm_run") == 0
    demo.close()


def test_a_value_that_is_still_asked_for_has_its_lease_renewed_before_that_ends(tmp_path: Path) -> None:
    """One command each half lease, however short the rule's cooldown is; once nobody asks any more it is given back."""
    (tmp_path / "scenario.toml").write_text(SCENARIO)
    rule = RULE.format(what="vcpu_quota: 50ms", lease="2m", on="vm").replace("cooldown: 10m", "cooldown: 10s")
    (tmp_path / "rules.yaml").write_text(rule)
    rules = RuleOptions(paths=[str(tmp_path / "rules.yaml")], modes={"*": Mode.ACT})
    demo = Demo(tmp_path / "demo", tmp_path / "scenario.toml", rules)
    hypervisor = demo.fleet.hypervisor("h1")
    for _ in range(400):
        demo.step()
        if hypervisor.get_knob(BUSY, "vcpu_quota") == 50_000:
            break
    values = []
    for _ in range(250):
        demo.step()
        values.append(hypervisor.get_knob(BUSY, "vcpu_quota"))
    assert set(values) == {50_000}
    commands = [entry.record for entry in demo.controller.entries() if isinstance(entry.record, Command)]
    spans_s = {round((later.issued_ns - earlier.issued_ns) / 1e9) for earlier, later in pairwise(commands)}
    assert min(spans_s) >= 60
    assert 3 <= len(commands) <= 5
    demo.close()
