"""What each family of knobs refuses before anything is changed, and the host's caps on every one."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.actuators.one_host import GUEST, HOST, OneHost, at, command, executor, move, set_to
from virtpilot.action import ReleaseKnob, SetKnob
from virtpilot.actuators.caps import Caps, KnobCap
from virtpilot.hypervisor import Footprint
from virtpilot.knobs import find
from virtpilot.model import Outcome, Result

MIB = 2**20
STANDING = {
    "vcpu_quota": 0, "vcpu_period": 100_000, "global_quota": 0, "global_period": 100_000, "iothread_quota": 0,
    "iothread_period": 100_000, "vcpus": 2, "guest_vcpus": 2, "vcpupin": 0, "emulatorpin": 0, "numa_nodeset": 0,
    "memory_balloon": 4096 * MIB, "memory_hard_limit": 0, "memory_soft_limit": 0, "memory_swap_hard_limit": 0,
    "virtiomem0.plugged": 0, "vda.total_iops_sec": 0, "nic0.inbound_average": 0, "blkio_weight": 500,
    "cpu_shares": 1024,
}  # fmt: skip
SIZE = Footprint(
    vcpus=2,
    fixed_vcpus=1,
    iothreads=1,
    memory_bytes=4096 * MIB,
    usable_bytes=2048 * MIB,
    rss_bytes=4200 * MIB,
    told_s=2,
)


@pytest.fixture
def host() -> OneHost:
    made = OneHost()
    made.knobs |= {(GUEST, knob): value for knob, value in STANDING.items()}
    made.knobs[HOST, "ksm_run"] = 0
    made.footprints[GUEST] = SIZE
    return made


def asked(host: OneHost, folder: Path, knob: str, value: int, caps: Caps | None = None) -> Outcome:
    folder.mkdir(exist_ok=True)
    made = executor(host, folder, caps=caps)
    (outcome,) = made.submit(command(set_to(value, STANDING[knob], knob=knob)), at(0))
    made.close()
    return outcome


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("vcpu_quota", 5_000), ("global_quota", 50_000), ("global_quota", 0), ("iothread_quota", 20_000), ("vcpus", 3),
        ("vcpus", 1), ("guest_vcpus", 1), ("vcpupin", 0b1001), ("emulatorpin", 0b1), ("numa_nodeset", 1),
        ("memory_balloon", 3072 * MIB), ("memory_balloon", 5000 * MIB), ("memory_hard_limit", 4456 * MIB),
        ("memory_soft_limit", 16 * MIB), ("virtiomem0.plugged", 64 * MIB), ("vda.total_iops_sec", 1),
        ("nic0.inbound_average", 1_000), ("blkio_weight", 100),
    ],
)  # fmt: skip
def test_what_is_let_through_is_set_and_given_back(host: OneHost, tmp_path: Path, knob: str, value: int) -> None:
    made = executor(host, tmp_path)
    (done,) = made.submit(command(set_to(value, STANDING[knob], knob=knob)), at(0))
    assert (done.result, host.knobs[GUEST, knob]) == (Result.DONE, value), done.reason
    (ended,) = made.poll(at(60))
    assert (ended.result, host.knobs[GUEST, knob]) == (Result.REVERTED, STANDING[knob])


@pytest.mark.parametrize(
    ("knob", "value", "guard", "reason"),
    [
        ("vcpu_quota", 4_999, "floor", "is 0.05 CPUs, 0.05 are the least here"),
        ("vcpu_quota", 999, "caps", "vcpu_quota 999 is outside this host's 1000 to 17592186044415"),
        ("global_quota", 49_999, "floor", "is 0.50 CPUs, 0.50 are the least here"),
        ("iothread_quota", 19_999, "floor", "is 0.20 CPUs"),
        ("guest_vcpus", 3, "value", "2 vCPUs are plugged in"),
        ("vcpus", 0, "caps", "outside this host's 1"),
        ("vcpupin", 0b10000, "value", "vcpupin 4: this host has 0-3 only"),
        ("numa_nodeset", 0b10, "value", "numa_nodeset 1: this host has 0 only"),
        ("memory_balloon", 2200 * MIB, "working-set", "2200 MiB is below the working set and its floor, 2304 MiB"),
        ("memory_balloon", 3000 * MIB, "step", "the balloon takes 1024 MiB at a time here, not 1096 MiB"),
        ("memory_balloon", 3072 * MIB + 1, "value", "is no multiple of 4096"),
        ("memory_hard_limit", 4455 * MIB, "floor", "4455 MiB is below what the guest needs, 4456 MiB"),
        ("nic0.inbound_average", 1_500, "value", "is no multiple of 1000"),
        ("virtiomem0.plugged", 3 * 2**19, "value", "is no multiple of"),
        ("blkio_weight", 99, "caps", "outside this host's 100 to 1000"),
    ],
)
def test_what_is_refused(host: OneHost, tmp_path: Path, knob: str, value: int, guard: str, reason: str) -> None:
    refused = asked(host, tmp_path, knob, value)
    assert (refused.result, refused.guard, host.sets) == (Result.REFUSED, guard, [])
    assert reason in refused.reason


@pytest.mark.parametrize("told", [{"usable_bytes": None}, {"told_s": 61.0}, {"told_s": math.inf}])
def test_a_balloon_needs_the_guests_own_word_to_take_and_none_to_give(
    host: OneHost, tmp_path: Path, told: dict[str, float | None]
) -> None:
    host.footprints[GUEST] = Footprint(**{"vcpus": 2, "memory_bytes": 4096 * MIB, "usable_bytes": 0, **told})  # type: ignore[arg-type]
    assert asked(host, tmp_path, "memory_balloon", 3840 * MIB).guard == "working-set"
    assert asked(host, tmp_path / "other", "memory_balloon", 4200 * MIB).result is Result.DONE


@pytest.mark.parametrize("knob", ["memory_hard_limit", "memory_swap_hard_limit"])
def test_a_limit_leaves_room_for_what_a_balloon_has_taken(host: OneHost, tmp_path: Path, knob: str) -> None:
    """Given back, it would have the kernel end the guest."""
    host.footprints[GUEST] = replace(SIZE, memory_bytes=1024 * MIB, rss_bytes=1100 * MIB, memory_max_bytes=4096 * MIB)
    refused = asked(host, tmp_path, knob, 4351 * MIB)
    assert (refused.guard, host.sets) == ("floor", [])
    assert "4351 MiB is below what the guest needs, 4352 MiB" in refused.reason
    assert asked(host, tmp_path / "other", knob, 4352 * MIB).result is Result.DONE


@pytest.mark.parametrize(
    ("cap", "low", "high"),
    [
        (KnobCap("cpu_shares"), 256, 4096),
        (KnobCap("cpu_shares", min=512), 512, 4096),
        (KnobCap("cpu_shares", max=2048), 256, 2048),
        (KnobCap("cpu_shares", min=2, max=9000), 256, 4096),
    ],
)
def test_cpu_shares_are_held_by_both_of_their_caps(cap: KnobCap, low: int, high: int) -> None:
    """One that gives a single bound takes none of the other's away."""
    shares = find("cpu_shares")
    assert shares is not None
    found = Caps(cpu_shares_min=256, cpu_shares_max=4096, knobs=[cap]).of(shares)
    assert (found.min, found.max, found.allowed) == (low, high, True)


def test_caps_of_cpu_shares_that_leave_nothing_are_an_error() -> None:
    with pytest.raises(ValueError, match="no cpu_shares are left"):
        Caps(cpu_shares_max=4096, knobs=[KnobCap("cpu_shares", min=5000)])


def test_vcpus_that_cannot_be_unplugged_are_not_leased(host: OneHost, tmp_path: Path) -> None:
    host.footprints[GUEST] = Footprint(vcpus=2, fixed_vcpus=2, memory_bytes=MIB)
    assert "guest_vcpus can take them away" in asked(host, tmp_path, "vcpus", 1).reason
    host.footprints[GUEST] = Footprint(vcpus=2, unplugs=False, memory_bytes=MIB)
    assert asked(host, tmp_path / "other", "vcpus", 3).guard == "knob"


@pytest.mark.parametrize(
    ("cap", "knob", "value", "reason"),
    [
        (KnobCap("vcpu_quota", allowed=False), "vcpu_quota", 50_000, "this host does not let vcpu_quota be set"),
        (KnobCap("vcpu_quota", min=60_000), "vcpu_quota", 50_000, "is outside this host's 60000 to"),
        (KnobCap("global_quota", max=90_000), "global_quota", 0, "is limited to 90000 on this host: the limit is not"),
        (KnobCap("total_iops_sec", min=100), "vda.total_iops_sec", 50, "is outside this host's 100 to"),
        (KnobCap("vda.total_iops_sec", max=40), "vda.total_iops_sec", 50, "is outside this host's 1 to 40"),
        (KnobCap("cpu_shares", allowed=False), "cpu_shares", 2048, "does not let cpu_shares be set"),
    ],
)
def test_the_hosts_own_file_has_the_last_word(
    host: OneHost, tmp_path: Path, cap: KnobCap, knob: str, value: int, reason: str
) -> None:
    refused = asked(host, tmp_path, knob, value, Caps(knobs=[cap]))
    assert (refused.guard, host.sets) == ("caps", [])
    assert reason in refused.reason


@pytest.mark.parametrize(
    ("made", "problem"),
    [
        (lambda: KnobCap("vcpu_quoter"), "no knob 'vcpu_quoter'"),
        (lambda: KnobCap("vcpus", min=2, max=1), "min is above max"),
        (lambda: Caps(knobs=[KnobCap("vcpus"), KnobCap("vcpus", min=2)]), "a knob has bounds twice"),
    ],
)  # fmt: skip
def test_caps_that_mean_nothing_are_errors(made: object, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        made()  # type: ignore[operator]


def test_a_guest_that_falls_short_gets_its_memory_back_before_the_lease_ends(host: OneHost, tmp_path: Path) -> None:
    made = executor(host, tmp_path)
    made.submit(command(set_to(3584 * MIB, 4096 * MIB, knob="memory_balloon")), at(0))
    assert made.poll(at(5)) == []
    host.footprints[GUEST] = Footprint(vcpus=2, memory_bytes=3584 * MIB, usable_bytes=127 * MIB, told_s=1)
    assert made.poll(at(7)) == []  # looked at every 5 s
    (ended,) = made.poll(at(10))
    assert (ended.result, ended.reason) == (
        Result.REVERTED, "the guest is short of memory: it could give back 127 MiB",
    )  # fmt: skip
    assert host.knobs[GUEST, "memory_balloon"] == 4096 * MIB


def test_a_balloon_on_its_way_is_nobody_elses_change(host: OneHost, tmp_path: Path) -> None:
    made = executor(host, tmp_path)
    made.submit(command(set_to(3584 * MIB, 4096 * MIB, knob="memory_balloon")), at(0))
    host.knobs[GUEST, "memory_balloon"] = 3700 * MIB
    made.look_at(GUEST)
    assert made.poll(at(3)) == []
    (ended,) = made.poll(at(60))
    assert (ended.reason, host.knobs[GUEST, "memory_balloon"]) == ("the lease has ended", 4096 * MIB)
    made.submit(command(set_to(3584 * MIB, 4096 * MIB, knob="memory_balloon"), "cm-2", at_ns=at(70)), at(70))
    host.knobs[GUEST, "memory_balloon"] = 3000 * MIB
    made.look_at(GUEST)
    (foreign,) = made.poll(at(73))
    assert (foreign.guard, host.knobs[GUEST, "memory_balloon"]) == ("foreign-change", 3000 * MIB)


def test_a_knob_of_the_host_is_leased_like_any_other(host: OneHost, tmp_path: Path) -> None:
    made = executor(host, tmp_path)
    (done,) = made.submit(command(SetKnob(guest=HOST, knob="ksm_run", value=1, expected=0, lease_s=60)), at(0))
    assert (done.result, host.knobs[HOST, "ksm_run"]) == (Result.DONE, 1)
    made.close()
    made = executor(host, tmp_path)
    assert made.recover(at(10)) == []
    (ended,) = made.submit(command(ReleaseKnob(guest=HOST, knob="ksm_run"), "cm-2"), at(20))
    assert (ended.result, host.knobs[HOST, "ksm_run"]) == (Result.REVERTED, 0)
    (refused,) = made.submit(command(set_to(1, 0, knob="ksm_run"), "cm-3"), at(30))
    assert (refused.guard, refused.reason) == ("host", f"ksm_run is for {GUEST}, this is {HOST}")


def test_what_a_guest_is_pinned_to_is_given_back_before_it_moves(host: OneHost, tmp_path: Path) -> None:
    made = executor(host, tmp_path)
    made.submit(command(set_to(0b11, 0, knob="vcpupin")), at(0))
    made.submit(command(set_to(50_000, 0, knob="vcpu_quota"), "cm-2"), at(0))
    (given_back,) = made.submit(command(move(), "cm-3"), at(10))
    assert (given_back.command, given_back.result) == ("cm-1", Result.REVERTED)
    assert given_back.reason == "given back before the migration to host-2"
    assert (host.knobs[GUEST, "vcpupin"], [lease.knob for lease in made.leases()]) == (0, ["vcpu_quota"])
    assert len(host.jobs) == 1
