"""A migration's life under faults, and what may be migrated to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.hypervisor.fake_libvirt import DB, WEB, FakeLibvirt, Hang, fail
from tests.services import until
from tests.thoroughness import examples
from virtpilot.action import Stuck, Way
from virtpilot.clock import VirtualClock
from virtpilot.errors import GuestNotFound, HypervisorError, HypervisorTimeout
from virtpilot.hypervisor import GuestState, Job, JobState, JobStatus
from virtpilot.libvirt_host import LibvirtHypervisor
from virtpilot.libvirt_jobs import read_job
from virtpilot.libvirt_link import MAX_HANGING, Lane
from virtpilot.libvirt_migration import MIGRATION_URI

TARGET: Final = "qemu+tcp://10.0.0.2/system"
FLAGS: Final = FakeLibvirt.VIR_MIGRATE_LIVE | FakeLibvirt.VIR_MIGRATE_PEER2PEER
ALONG: Final = FakeLibvirt.VIR_MIGRATE_PERSIST_DEST | FakeLibvirt.VIR_MIGRATE_UNDEFINE_SOURCE


@pytest.fixture
def hypervisor(libvirt: FakeLibvirt, clock: VirtualClock) -> Iterator[LibvirtHypervisor]:
    made = LibvirtHypervisor("fake:///system", clock=clock, deadline_s=5.0, binding=libvirt)
    yield made
    made.close()


def ended(job: Job) -> JobStatus:
    assert until(lambda: job.poll().state is not JobState.RUNNING, 10)
    return job.poll()


def test_the_end_tells_bytes_and_downtime(hypervisor: LibvirtHypervisor, libvirt: FakeLibvirt) -> None:
    libvirt.on["migrateToURI3"] = lambda: libvirt.tell_completed({"downtime": 94, "data_processed": 5_000})
    status = ended(hypervisor.migrate(WEB, TARGET))
    told = {"downtime_seconds": 0.094, "data_processed_bytes": 5000}
    assert status == JobStatus(JobState.DONE, "", told, GuestState.RUNNING)
    ((guest, uri, flags),) = libvirt.migrations
    assert (guest, uri, flags & FLAGS, flags & ALONG) == (WEB, TARGET, FLAGS, ALONG)


def test_a_transient_guest_leaves_no_definition(hypervisor: LibvirtHypervisor, libvirt: FakeLibvirt) -> None:
    libvirt.domains[WEB].persistent = False
    libvirt.on["migrateToURI3"] = lambda: libvirt.tell_completed({})
    ended(hypervisor.migrate(WEB, TARGET))
    assert libvirt.migrations[0][2] & ALONG == 0


def test_an_end_that_nobody_tells_of_is_an_end_all_the_same(
    hypervisor: LibvirtHypervisor, libvirt: FakeLibvirt
) -> None:
    libvirt.on["domainEventRegisterAny"] = fail("not supported", libvirt.VIR_ERR_NO_SUPPORT)
    assert ended(hypervisor.migrate(WEB, TARGET)) == JobStatus(JobState.DONE, there=GuestState.RUNNING)


def test_a_failure_tells_libvirts_words(hypervisor: LibvirtHypervisor, libvirt: FakeLibvirt) -> None:
    libvirt.on["migrateToURI3"] = fail("unable to connect to server at '10.0.0.2:16509'")
    status = ended(hypervisor.migrate(WEB, TARGET))
    assert (status.state, status.error) == (JobState.FAILED, "unable to connect to server at '10.0.0.2:16509'")
    assert WEB in libvirt.domains


def test_a_migration_without_a_connection_fails(hypervisor: LibvirtHypervisor, libvirt: FakeLibvirt) -> None:
    hypervisor.state(WEB)
    libvirt.on["open"] = fail("Failed to connect socket")
    assert ended(hypervisor.migrate(WEB, TARGET)).error == "Failed to connect socket"


def test_progress_is_told_while_it_runs(
    hypervisor: LibvirtHypervisor, libvirt: FakeLibvirt, clock: VirtualClock
) -> None:
    hang = libvirt.on["migrateToURI3"] = Hang()
    job = hypervisor.migrate(WEB, TARGET)
    assert hang.begun.wait(20)
    assert [job.poll() for _ in range(9)] == 9 * [JobStatus(JobState.RUNNING)]
    assert libvirt.calls["jobStats"] == 1  # once a second, however often somebody wants to know
    clock.advance(1)
    libvirt.domains[WEB].job = {"type": 2, "data_total": 900, "data_remaining": 300, "memory_iteration": 4}
    told = {"data_total_bytes": 900, "data_remaining_bytes": 300, "iterations_count": 4}
    assert job.poll() == JobStatus(JobState.RUNNING, "", told)
    libvirt.on["jobStats"] = fail("the guest is about to leave")
    clock.advance(1)
    assert job.poll() == JobStatus(JobState.RUNNING, "", told)
    hang.let_go()
    assert ended(job).state is JobState.DONE


def test_what_is_told_at_the_end_is_not_overwritten_by_what_was_asked_before(
    hypervisor: LibvirtHypervisor, libvirt: FakeLibvirt
) -> None:
    """While the target is asked where the guest is, the last answer of the source still counts as new."""
    moving, looking = Hang(), Hang()
    libvirt.domains[WEB].job = {"type": 2, "data_total": 900, "data_processed": 0}

    def end() -> None:
        moving()
        libvirt.tell_completed({"downtime": 94, "data_processed": 900})

    libvirt.on |= {"migrateToURI3": end, f"open {TARGET}": looking}
    job = hypervisor.migrate(WEB, TARGET)
    assert moving.begun.wait(20)
    assert job.poll().progress == {"data_total_bytes": 900, "data_processed_bytes": 0}
    moving.let_go()
    assert looking.begun.wait(20)
    final = {"downtime_seconds": 0.094, "data_processed_bytes": 900}
    assert job.poll() == JobStatus(JobState.RUNNING, "", final)
    looking.let_go()
    assert ended(job).progress == final


def test_progress_that_hangs_holds_up_nobody(
    hypervisor: LibvirtHypervisor, libvirt: FakeLibvirt, clock: VirtualClock
) -> None:
    moving, asking = Hang(), Hang()
    libvirt.on |= {"migrateToURI3": moving, "jobStats": asking}
    job = hypervisor.migrate(WEB, TARGET)
    for _ in range(6):
        assert job.poll().state is JobState.RUNNING
        clock.advance(1)
    # Each of three calls is given a second, then no more are made.
    assert libvirt.calls["jobStats"] == MAX_HANGING[Lane.PROGRESS]
    job.abort()
    assert libvirt.calls["abortJob"] == 1
    asking.let_go()
    moving.let_go()
    ended(job)


def test_abort_asks_libvirt_and_the_job_says_how_it_ended(hypervisor: LibvirtHypervisor, libvirt: FakeLibvirt) -> None:
    hang = Hang()

    def move() -> None:
        hang()
        fail("operation aborted: migration out job: canceled by client")()

    libvirt.on |= {"migrateToURI3": move, "abortJob": hang.let_go}
    job = hypervisor.migrate(WEB, TARGET)
    assert hang.begun.wait(20)
    job.abort()
    status = ended(job)
    assert (status.state, "canceled" in status.error) == (JobState.FAILED, True)
    job.abort()
    assert libvirt.calls["abortJob"] == 1


def test_an_abort_that_fails_is_told_and_the_job_goes_on(hypervisor: LibvirtHypervisor, libvirt: FakeLibvirt) -> None:
    hang = libvirt.on["migrateToURI3"] = Hang()
    libvirt.on["abortJob"] = fail("cannot acquire state change lock")
    job = hypervisor.migrate(WEB, TARGET)
    assert hang.begun.wait(20)
    with pytest.raises(HypervisorError, match="state change lock"):
        job.abort()
    assert job.poll().state is JobState.RUNNING
    hang.let_go()
    ended(job)


def test_only_a_migration_is_aborted(hypervisor: LibvirtHypervisor, libvirt: FakeLibvirt) -> None:
    """What somebody else has begun on the guest since is left to go on."""
    libvirt.domains[WEB].job = {"type": 2, "operation": 9}
    with pytest.raises(HypervisorError, match="no migration is under way, but backup"):
        hypervisor.abort_job(WEB)
    assert libvirt.calls["abortJob"] == 0
    libvirt.domains[WEB].job = {"type": 2, "operation": 5}
    hypervisor.abort_job(WEB)
    assert libvirt.calls["abortJob"] == 1
    libvirt.on["abortJob"] = fail("cannot acquire state change lock", libvirt.VIR_ERR_OPERATION_TIMEOUT)
    with pytest.raises(HypervisorTimeout):
        hypervisor.abort_job(WEB)


def test_a_target_is_asked_for_a_guest(hypervisor: LibvirtHypervisor, libvirt: FakeLibvirt) -> None:
    libvirt.elsewhere[WEB] = libvirt.domains[WEB]
    assert hypervisor.there(WEB, TARGET) is GuestState.RUNNING
    assert hypervisor.there(DB, TARGET) is GuestState.NOSTATE
    libvirt.on[f"open {TARGET}"] = fail("no route to host")
    assert (hypervisor.there(WEB, TARGET), hypervisor.there(WEB, "qemu+ext://x/system")) == (None, None)


def test_what_the_target_says_of_the_guest_is_told(hypervisor: LibvirtHypervisor, libvirt: FakeLibvirt) -> None:
    """A target that has lost it, one that nobody can ask, and one that never had it."""
    libvirt.on["migrateToURI3"] = lambda: libvirt.tell_completed({})

    def lose() -> None:
        libvirt.elsewhere.clear()

    libvirt.on[f"open {TARGET}"] = lose
    assert ended(hypervisor.migrate(WEB, TARGET)).there is GuestState.NOSTATE
    libvirt.on[f"open {TARGET}"] = fail("no route to host")
    status = ended(hypervisor.migrate(DB, TARGET))
    assert (status.state, status.there) == (JobState.DONE, None)


def test_the_way_is_told_in_libvirts_own_words(hypervisor: LibvirtHypervisor, libvirt: FakeLibvirt) -> None:
    libvirt.on["migrateToURI3"] = lambda: libvirt.tell_completed({})
    way = Way(
        auto_converge=False, when_stuck=Stuck.POST_COPY, bandwidth_bytes_s=64 * 2**20, connections=4, downtime_s=0.2
    )
    ended(hypervisor.migrate(WEB, TARGET, way))
    ((_guest, _uri, flags),) = libvirt.migrations
    wanted = FakeLibvirt.VIR_MIGRATE_POSTCOPY | FakeLibvirt.VIR_MIGRATE_PARALLEL
    assert flags & (wanted | FakeLibvirt.VIR_MIGRATE_AUTO_CONVERGE) == wanted
    assert libvirt.params == [{"bandwidth": 64, "bandwidth.postcopy": 64, "parallel.connections": 4}]
    assert libvirt.calls["migrateSetMaxDowntime 200"] == 1


def test_a_limit_for_post_copy_is_told_where_it_may_come_to_that(
    hypervisor: LibvirtHypervisor, libvirt: FakeLibvirt
) -> None:
    libvirt.on["migrateToURI3"] = lambda: libvirt.tell_completed({})
    ended(hypervisor.migrate(WEB, TARGET, Way(when_stuck=Stuck.ABORT, bandwidth_bytes_s=64 * 2**20)))
    ended(hypervisor.migrate(DB, TARGET, Way(when_stuck=Stuck.POST_COPY)))
    assert libvirt.params == [{"bandwidth": 64}, {}]


def test_a_managed_migration_has_a_connection_to_both(hypervisor: LibvirtHypervisor, libvirt: FakeLibvirt) -> None:
    libvirt.on["migrate3"] = lambda: libvirt.tell_completed({})
    assert ended(hypervisor.migrate(WEB, TARGET, Way(peer_to_peer=False))).state is JobState.DONE
    ((_guest, uri, flags),) = libvirt.migrations
    assert (uri, flags & FakeLibvirt.VIR_MIGRATE_PEER2PEER) == (TARGET, 0)
    assert until(lambda: all(one.closed for one in libvirt.connections if one.uri == TARGET))


def test_post_copy_and_an_abort_of_whatever_runs_are_asked_of_libvirt(
    hypervisor: LibvirtHypervisor, libvirt: FakeLibvirt
) -> None:
    hang = libvirt.on["migrateToURI3"] = Hang()
    job = hypervisor.migrate(WEB, TARGET)
    assert hang.begun.wait(20)
    job.post_copy()
    hypervisor.abort_job(WEB)
    assert (libvirt.calls["migrateStartPostCopy"], libvirt.calls["abortJob"]) == (1, 1)
    libvirt.on["migrateStartPostCopy"] = fail("post-copy is not supported")
    with pytest.raises(HypervisorError):
        job.post_copy()
    hang.let_go()
    ended(job)


def test_a_guest_that_is_not_there_cannot_be_moved(hypervisor: LibvirtHypervisor, libvirt: FakeLibvirt) -> None:
    with pytest.raises(GuestNotFound):
        hypervisor.migrate("00000000-0000-4000-8000-00000000000f", TARGET)
    assert libvirt.migrations == []


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "test:///default",
        "qemu:///system",
        "qemu+unix:///system?socket=/tmp/evil",
        "qemu+ext://10.0.0.2/system?command=/bin/sh",
        "qemu+tcp://10.0.0.2/system?command=/bin/sh",
        "qemu+ssh://-oProxyCommand=sh/system",
        "qemu+ssh://-l@host-2/system",
        "qemu+ssh://-v/system",
        "qemu+ssh://a b/system",
        "qemu+tcp://10.0.0.2/session",
        "qemu+tcp://10.0.0.2/system\n",
    ],
)
def test_only_plain_uris_of_hosts_are_migrated_to(
    hypervisor: LibvirtHypervisor, libvirt: FakeLibvirt, uri: str
) -> None:
    with pytest.raises(HypervisorError, match="not a libvirt URI to migrate to"):
        hypervisor.migrate(WEB, uri)
    assert libvirt.migrations == []


@pytest.mark.parametrize(
    "uri",
    [
        "qemu+tcp://10.0.0.2/system",
        "qemu+tls://host-2.example.org:16514/system",
        "qemu+ssh://root@host-2/system",
        "qemu+tcp://[fd00::2]/system",
    ],
)
def test_uris_of_hosts_pass(uri: str) -> None:
    assert MIGRATION_URI.fullmatch(uri)


@settings(derandomize=True, deadline=None, max_examples=examples(200))
@given(st.text(st.sampled_from("qemu+tcpsh:/@.-[]0a?=& \n%"), max_size=40))
def test_no_uri_smuggles_parameters_options_or_spaces(text: str) -> None:
    uri = f"qemu+ssh://{text}/system"
    if MIGRATION_URI.fullmatch(uri):
        assert not set(text) & set("?&= \n%/")
        assert not text.startswith("-")


numbers = st.one_of(st.integers(), st.floats(), st.booleans(), st.text(max_size=3), st.none())
names = st.sampled_from(
    ["downtime", "data_total", "memory_dirty_rate", "memory_page_size", "auto_converge_throttle", "x"]
)


@settings(derandomize=True, deadline=None, max_examples=examples(200))
@given(st.dictionaries(names, numbers | st.integers(0, 2**64)))
def test_a_jobs_statistics_are_numbers_or_absent(told: dict[str, Any]) -> None:
    found = read_job(told)
    assert all(type(value) in {int, float} and 0 <= value < float("inf") for value in found.values())


def test_a_jobs_units_are_ours() -> None:
    told = {"auto_converge_throttle": 20, "time_elapsed": 1500, "memory_dirty_rate": 100, "memory_page_size": 4096}
    assert read_job(told) == {
        "throttle_ratio": pytest.approx(0.2),
        "elapsed_seconds": 1.5,
        "dirty_bytes_per_second": 409_600.0,
    }
