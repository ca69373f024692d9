"""What every hypervisor keeps, held to the simulator, libvirt's own test driver and two real libvirtd with QEMU.

And what only a real one can show: libvirtd killed and started again, a QEMU that is stopped in its tracks.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import pytest

from deploy import lab as lab_module
from deploy.lab import GuestPlan, Lab
from tests.hypervisor.scene import OFF_UUID, OFF_XML, Scene, connection, ended, real, simulated, wire
from tests.lab.lab_process import need_a_lab
from tests.services import until
from virtpilot.action import Verb
from virtpilot.actuators.ledger import Lease, LeaseState
from virtpilot.actuators.note import read_note, write_note
from virtpilot.clock import SystemClock
from virtpilot.errors import GuestNotFound, HypervisorError, HypervisorUnavailable, KnobUnsupported
from virtpilot.hypervisor import GuestState, GuestStats, Hypervisor, JobState, Matchmaker, Selective
from virtpilot.libvirt_host import LibvirtHypervisor

NAME: Final = "hyptest"
PLANS: Final = (
    GuestPlan("mover", "host-1", tags={"tier": "web"}),
    GuestPlan("stayer", "host-1", tags={"tier": "batch"}),
    GuestPlan("other", "host-2"),
)
NOBODY: Final = "00000000-0000-4000-8000-000000000000"
FROM_QEMU: Final = {"balloon.usable", "balloon.rss", "block.0.rd.bytes"}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Two real hosts."""
    need_a_lab()
    with lab_module.bring_up(NAME, plans=PLANS) as up:
        with connection(up) as libvirt:
            libvirt.defineXML(OFF_XML)
        wire(up, "stayer")
        yield up
    assert lab_module.leftovers(NAME) == []


REAL: Final = pytest.param("real", marks=[pytest.mark.lab, pytest.mark.slow])


@pytest.fixture(params=["simulated", REAL])
def scene(request: pytest.FixtureRequest) -> Iterator[Scene]:
    """The same scene on the simulator and on real hosts."""
    yield from (simulated() if request.param == "simulated" else real(request.getfixturevalue("lab")))


def guests(hypervisor: Hypervisor) -> dict[str, GuestStats]:
    return {guest.uuid: guest for guest in hypervisor.guests()}


def leased(guest: str, value: int = 2048) -> Lease:
    return Lease(guest=guest, knob="cpu_shares", baseline=1024, value=value, rule="starved", command="cm-1",
                 end_ns=10**18, state=LeaseState.HELD)  # fmt: skip


def test_running_and_shut_off_guests_are_told(scene: Scene) -> None:
    found = guests(scene.hypervisor)
    running, off = found[scene.running], found[scene.off]
    assert (running.name, off.name) == ("mover", "off")
    assert (running.stats["state.state"], off.stats["state.state"]) == (1, 5)
    assert {"cpu.time", "vcpu.current", "vcpu.maximum", "balloon.maximum", "vcpu.0.delay"} <= running.stats.keys()
    assert running.knobs["cpu_shares"] >= 2
    assert "cpu.time" not in off.stats
    assert all(isinstance(value, int | float | str | bool) for value in running.stats.values())


def test_states_are_told_by_name(scene: Scene) -> None:
    hypervisor = scene.hypervisor
    assert (hypervisor.state(scene.running), hypervisor.state(scene.off)) == (GuestState.RUNNING, GuestState.SHUTOFF)


def test_host_facts_are_those_of_a_host(scene: Scene) -> None:
    facts = scene.hypervisor.facts()
    assert facts.driver == "QEMU"
    assert facts.cpus > 0
    assert facts.memory_bytes > 2**30
    assert facts.versions


def test_a_knob_that_is_set_is_read_back(scene: Scene) -> None:
    hypervisor = scene.hypervisor
    before = hypervisor.get_knob(scene.running, "cpu_shares")
    hypervisor.set_knob(scene.running, "cpu_shares", 3072)
    assert hypervisor.get_knob(scene.running, "cpu_shares") == 3072
    assert guests(hypervisor)[scene.running].knobs["cpu_shares"] == 3072
    hypervisor.set_knob(scene.running, "cpu_shares", before)
    assert hypervisor.get_knob(scene.running, "cpu_shares") == before


def test_a_value_out_of_range_is_refused_and_changes_nothing(scene: Scene) -> None:
    before = scene.hypervisor.get_knob(scene.running, "cpu_shares")
    with pytest.raises(HypervisorError):
        scene.hypervisor.set_knob(scene.running, "cpu_shares", 1)
    assert scene.hypervisor.get_knob(scene.running, "cpu_shares") == before


def test_a_guest_that_is_off_has_no_live_knobs(scene: Scene) -> None:
    assert guests(scene.hypervisor)[scene.off].knobs == {}
    with pytest.raises(HypervisorError):
        scene.hypervisor.get_knob(scene.off, "cpu_shares")
    with pytest.raises(HypervisorError):
        scene.hypervisor.set_knob(scene.off, "cpu_shares", 2048)


def test_what_nobody_knows_is_refused_by_kind(scene: Scene) -> None:
    hypervisor = scene.hypervisor
    with pytest.raises(KnobUnsupported):
        hypervisor.get_knob(scene.running, "patience")
    with pytest.raises(KnobUnsupported):
        hypervisor.set_knob(scene.running, "patience", 5)
    for call in (
        lambda: hypervisor.state(NOBODY),
        lambda: hypervisor.get_knob(NOBODY, "cpu_shares"),
        lambda: hypervisor.set_knob(NOBODY, "cpu_shares", 2048),
        lambda: hypervisor.migrate(NOBODY, scene.target_uri),
    ):
        with pytest.raises(GuestNotFound):
            call()


def test_a_note_is_carried_until_it_is_removed(scene: Scene) -> None:
    hypervisor = scene.hypervisor
    assert hypervisor.read_note(scene.running) == ""
    for lease in (leased(scene.running), leased(scene.running, 4096)):
        hypervisor.write_note(scene.running, write_note(scene.running, [lease]))
        assert read_note(scene.running, hypervisor.read_note(scene.running)) == {"cpu_shares": lease}
    for _again in range(2):
        hypervisor.write_note(scene.running, "")
        assert read_note(scene.running, hypervisor.read_note(scene.running)) == {}
    with pytest.raises(GuestNotFound):
        hypervisor.read_note(NOBODY)
    with pytest.raises(HypervisorError):
        hypervisor.write_note(scene.off, write_note(scene.off, [leased(scene.off)]))


NOWHERE: Final = "qemu+tcp://127.0.0.9:9/system"


def test_a_target_is_asked_what_it_offers(scene: Scene) -> None:
    """One that is not there says nothing against it."""
    matchmaker = scene.hypervisor
    assert isinstance(matchmaker, Matchmaker)
    assert (matchmaker.unfit(scene.running, scene.target_uri), matchmaker.unfit(scene.wired, NOWHERE)) == ("", "")
    taken = matchmaker.unfit(scene.running, scene.own_uri)
    assert taken == "the guest's UUID, which is mover's there, and that runs"
    assert matchmaker.unfit(scene.wired, scene.target_uri) == "the network blue"
    scene.offer()
    assert matchmaker.unfit(scene.wired, scene.target_uri) == ""
    with pytest.raises(GuestNotFound):
        matchmaker.unfit(NOBODY, scene.target_uri)


def test_both_ends_are_asked_about_a_guest(scene: Scene) -> None:
    both = scene.hypervisor
    assert isinstance(both, Matchmaker)
    told = [both.there(scene.running, uri) for uri in (scene.own_uri, scene.target_uri, NOWHERE)]
    assert told == [GuestState.RUNNING, GuestState.NOSTATE, None]
    assert both.moving(scene.running) is False
    job = both.migrate(scene.running, scene.target_uri)
    assert scene.wait(lambda: both.moving(scene.running) or job.poll().state is not JobState.RUNNING)
    assert job.poll().state is JobState.RUNNING
    job.abort()
    assert ended(scene, job).state is JobState.FAILED
    assert both.moving(scene.running) is False
    with pytest.raises(GuestNotFound):
        both.moving(NOBODY)


def test_a_migration_to_nowhere_fails_and_the_guest_runs_on(scene: Scene) -> None:
    status = ended(scene, scene.hypervisor.migrate(scene.running, NOWHERE))
    assert status.state is JobState.FAILED
    assert status.error
    assert scene.hypervisor.state(scene.running) is GuestState.RUNNING


def test_a_guest_that_is_off_is_not_live_migrated(scene: Scene) -> None:
    status = ended(scene, scene.hypervisor.migrate(scene.off, scene.target_uri))
    assert status.state is JobState.FAILED
    assert scene.hypervisor.state(scene.off) is GuestState.SHUTOFF


def test_a_migrated_guest_runs_there_and_is_no_longer_here(scene: Scene) -> None:
    scene.hypervisor.set_knob(scene.running, "cpu_shares", 2048)
    scene.hypervisor.write_note(scene.running, write_note(scene.running, [leased(scene.running)]))
    status = ended(scene, scene.hypervisor.migrate(scene.running, scene.target_uri))
    assert status.state is JobState.DONE, status.error
    # What was set while it runs goes with it, and so does its note.
    assert scene.target.get_knob(scene.running, "cpu_shares") == 2048
    assert read_note(scene.running, scene.target.read_note(scene.running)) == {"cpu_shares": leased(scene.running)}
    assert 0 < status.progress["downtime_seconds"] < 30
    assert status.progress["data_processed_bytes"] > 0
    assert scene.target.state(scene.running) is GuestState.RUNNING
    with pytest.raises(GuestNotFound):
        scene.hypervisor.state(scene.running)
    assert scene.running not in guests(scene.hypervisor)
    assert guests(scene.target)[scene.running].stats["state.state"] == 1


def test_a_guest_is_brought_into_each_state_and_back(scene: Scene) -> None:
    hypervisor, guest = scene.hypervisor, scene.running
    for verb, state in (
        (Verb.SUSPEND, GuestState.PAUSED),
        (Verb.RESUME, GuestState.RUNNING),
        (Verb.REBOOT, GuestState.RUNNING),
        (Verb.SHUTDOWN, GuestState.SHUTOFF),
        (Verb.START, GuestState.RUNNING),
        (Verb.DESTROY, GuestState.SHUTOFF),
        (Verb.START, GuestState.RUNNING),
    ):
        if verb in {Verb.REBOOT, Verb.SHUTDOWN}:
            scene.booted(guest)
        assert ended(scene, hypervisor.power(guest, verb)).state is JobState.DONE, verb
        assert hypervisor.state(guest) is state


def test_what_a_guests_state_does_not_allow_is_an_error(scene: Scene) -> None:
    for verb in (Verb.SUSPEND, Verb.RESUME, Verb.SHUTDOWN, Verb.REBOOT, Verb.DESTROY):
        with pytest.raises(HypervisorError):
            scene.hypervisor.power(scene.off, verb)
    with pytest.raises(HypervisorError):
        scene.hypervisor.power(scene.running, Verb.START)
    with pytest.raises(GuestNotFound):
        scene.hypervisor.power(NOBODY, Verb.REBOOT)


def test_after_its_close_a_hypervisor_is_not_there(scene: Scene) -> None:
    scene.hypervisor.close()
    with pytest.raises(HypervisorUnavailable):
        scene.hypervisor.guests()


def test_libvirts_own_test_driver_has_what_it_has() -> None:
    """No QEMU, no cgroup: the lists, the states and the kinds of errors are the same."""
    hypervisor = LibvirtHypervisor("test:///default", clock=SystemClock())
    (guest,) = hypervisor.guests()
    assert (guest.name, guest.stats["state.state"], "cpu_shares" in guest.knobs) == ("test", 1, False)
    assert hypervisor.state(guest.uuid) is GuestState.RUNNING
    with pytest.raises(GuestNotFound):
        hypervisor.state(NOBODY)
    with pytest.raises(KnobUnsupported):
        hypervisor.get_knob(guest.uuid, "cpu_shares")
    with pytest.raises(HypervisorError):
        hypervisor.set_knob(guest.uuid, "cpu_shares", 2048)
    assert hypervisor.facts().driver == "TEST"
    hypervisor.close()


@pytest.fixture
def host_1(lab: Lab) -> Iterator[LibvirtHypervisor]:
    """host-1 with a short deadline, as a caller in a hurry has it."""
    made = LibvirtHypervisor(
        lab.hosts["host-1"].uri, clock=SystemClock(), deadline_s=2.0, tag_names=frozenset({"tier"})
    )
    yield made
    made.close()


@pytest.mark.lab
@pytest.mark.slow
def test_libvirtd_killed_and_started_again_is_read_on(lab: Lab, host_1: LibvirtHypervisor) -> None:
    before = guests(host_1)
    assert {guest.tags.get("tier") for guest in before.values()} == {"web", "batch", None}
    lab.hosts["host-1"].restart_libvirtd()

    def reads() -> bool:
        try:
            return guests(host_1).keys() == before.keys()
        except HypervisorError:
            return False

    assert until(reads, 20)
    again = guests(host_1)
    # The guests ran on, their counters too.
    assert {uuid: guest.run for uuid, guest in again.items()} == {uuid: guest.run for uuid, guest in before.items()}
    moved = lab.guests["mover"].uuid
    assert int(again[moved].stats["cpu.time"]) >= int(before[moved].stats["cpu.time"])


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def pid_of(lab: Lab, name: str) -> int:
    """Return the process of a guest on host-1."""
    (pid,) = (
        pid for pid in lab.hosts["host-1"].group.pids(guests_only=True) if f"guest={name}".encode() in command_line(pid)
    )
    return pid


@pytest.mark.lab
@pytest.mark.slow
@pytest.mark.alone  # it measures how soon libvirtd answers
def test_a_stopped_qemu_holds_up_nobody(lab: Lab, host_1: LibvirtHypervisor) -> None:
    """The others stay whole and on time tick after tick, the stuck one is told in part and ages."""
    stuck, sound = lab.guests["stayer"].uuid, lab.guests["mover"].uuid
    clock = SystemClock()

    def settled() -> bool:
        with suppress(HypervisorError):  # on a busy machine a guest's balloon tells late, and libvirtd has just begun
            return all(guests(host_1)[one].stats.keys() >= FROM_QEMU for one in (stuck, sound))
        return False

    assert until(settled, 60)
    for _ in range(3):  # how long it usually takes is known then
        assert guests(host_1)[stuck].stats.keys() >= FROM_QEMU
    took_s, ages_s = [], []
    with stopped(pid_of(lab, "stayer")):
        for _ in range(6):
            began_ns = clock.monotonic_ns()
            found = guests(host_1)
            took_s.append((clock.monotonic_ns() - began_ns) / 1e9)
            ages_s.append(found[stuck].age_s)
            assert found.keys() >= {stuck, sound, OFF_UUID}
            assert found[sound].stats.keys() >= FROM_QEMU
            assert (found[sound].age_s, found[OFF_UUID].age_s) == (0, 0)
            assert not FROM_QEMU & found[stuck].stats.keys()
            assert "cpu.time" in found[stuck].stats
        # Commands for another guest go on meanwhile.
        host_1.set_knob(sound, "cpu_shares", 2048)
        assert host_1.get_knob(sound, "cpu_shares") == 2048
        host_1.set_knob(sound, "cpu_shares", 1024)
    assert ages_s == sorted(ages_s)
    assert ages_s[-1] > 0
    # At most the first round waits, far less than its deadline; then libvirt passes over the stuck guest by itself.
    assert sum(took > 1.0 for took in took_s) <= 1, took_s
    assert until(lambda: guests(host_1)[stuck].age_s == 0, 20)


@pytest.mark.lab
@pytest.mark.slow
def test_limits_set_by_hand_show_up_beside_usage_at_once(lab: Lab, host_1: LibvirtHypervisor) -> None:
    """Libvirt's events have them asked for, long before it is time to."""
    virsh, uuid = lab.hosts["host-1"].virsh, lab.guests["stayer"].uuid
    host_1.drain()
    assert "cpu_limit_ratio" not in guests(host_1)[uuid].details.guest
    virsh("schedinfo", "stayer", "--live", "cpu_shares=2000", "vcpu_period=100000", "vcpu_quota=50000")
    virsh("schedinfo", "stayer", "--live", "emulator_quota=30000", "global_quota=90000")
    virsh("memtune", "stayer", "--hard-limit", "1000000", "--soft-limit", "200000", "--live")
    virsh("blkdeviotune", "stayer", "vda", "--total-bytes-sec", "1000000", "--read-iops-sec", "100")
    virsh("blkdeviotune", "stayer", "vda", "--total-bytes-sec-max", "2000000", "--total-bytes-sec-max-length", "3")
    virsh("setmem", "stayer", "100M", "--live")
    wanted = {
        "cpu_shares_count": 2000,
        "cpu_limit_ratio": 0.5,
        "cpu_guest_limit_count": 0.9,
        "cpu_emulator_limit_count": 0.3,
        "memory_hard_limit_bytes": 1000000 * 1024,
        "memory_soft_limit_bytes": 200000 * 1024,
        "memory_balloon_target_bytes": 100 * 2**20,
    }

    def told() -> bool:
        host_1.drain()
        return guests(host_1)[uuid].details.guest.items() >= wanted.items()

    assert until(told, 20)
    guest = guests(host_1)[uuid]
    assert guest.details.disks == {
        "vda": {
            "read_limit_requests_per_second": 100,
            "total_limit_bytes_per_second": 1000000,
            "total_burst_limit_bytes_per_second": 2000000,
        }
    }
    assert (guest.knobs["memory_balloon"], guest.stats["balloon.current"]) == (100 * 2**20, 100 * 1024)


def command_line(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def test_a_few_guests_are_told_as_among_all(scene: Scene) -> None:
    assert isinstance(scene.hypervisor, Selective)
    among_all = guests(scene.hypervisor)
    few = {guest.uuid: guest for guest in scene.hypervisor.some([scene.running, NOBODY])}
    assert few.keys() == {scene.running}
    alone, before = few[scene.running], among_all[scene.running]
    assert (alone.name, alone.run, alone.knobs, alone.tags) == (before.name, before.run, before.knobs, before.tags)
    assert {"cpu.time", "balloon.current", "vcpu.0.delay", "block.count"} <= alone.stats.keys()
    assert int(alone.stats["cpu.time"]) >= int(before.stats["cpu.time"])
