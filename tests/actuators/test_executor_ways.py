"""The executor and how a guest is moved: what becomes of a migration that gets nowhere, aborts, both hosts' word."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.actuators.one_host import (
    GUEST,
    HOST,
    OneHost,
    OneJob,
    abort,
    at,
    command,
    executor,
    move,
    power,
    release,
    set_to,
)
from virtpilot.action import Action, Run, Stuck, Verb, Way
from virtpilot.actuators.caps import Caps
from virtpilot.actuators.convergence import Convergence
from virtpilot.actuators.executor import Executor
from virtpilot.actuators.hooks.hook import Hook, HookOptions
from virtpilot.actuators.journal import Journal
from virtpilot.actuators.ledger import Lease, LeaseKept, LeaseState
from virtpilot.clock import SECOND
from virtpilot.errors import HypervisorError
from virtpilot.hypervisor import Footprint, GuestState, JobState, JobStatus
from virtpilot.model import Outcome, Result

STUBBORN = Way(when_stuck=Stuck.POST_COPY, stall_s=20)
IMPATIENT = Way(when_stuck=Stuck.ABORT, stall_s=20)


@pytest.fixture
def host() -> OneHost:
    return OneHost()


def only(outcomes: list[Outcome]) -> Outcome:
    (outcome,) = outcomes
    return outcome


def progress(number: int, left: float) -> JobStatus:
    told = {"iterations_count": number, "data_remaining_bytes": left, "dirty_bytes_per_second": 9e7}
    return JobStatus(JobState.RUNNING, progress=told | {"bandwidth_bytes_per_second": 4e6})


def stall(made: object, job: OneJob, poll: object, until_s: int) -> None:
    """Go over and over the same memory, a round in five seconds."""
    for second in range(1, until_s):
        job.status = progress(1 + second // 5, 5e7 - 1e7 * (second % 5))
        assert callable(poll)
        assert poll(at(second)) == []


def test_a_migration_that_gets_nowhere_is_switched_to_post_copy(host: OneHost, tmp_path: Path) -> None:
    made = executor(host, tmp_path)
    made.submit(command(move(way=STUBBORN)), at(0))
    job = host.jobs[0]
    stall(made, job, made.poll, 40)
    assert (job.switches, job.aborts) == (1, 0)
    made.poll(at(2000))  # there is no way back, however long it takes
    assert job.aborts == 0
    job.finish()
    done = only(made.poll(at(2001)))
    assert done.result is Result.DONE
    assert "by post-copy: it does not converge: no progress for 2" in done.reason
    assert "it changes 90 MB/s, 4 MB/s are sent" in done.reason


def test_a_migration_that_gets_nowhere_is_aborted(host: OneHost, tmp_path: Path) -> None:
    made = executor(host, tmp_path)
    made.submit(command(move(way=IMPATIENT)), at(0))
    job = host.jobs[0]
    stall(made, job, made.poll, 40)
    assert (job.switches, job.aborts) == (0, 1)
    job.fail("operation aborted: canceled by client")
    failed = only(made.poll(at(41)))
    assert failed.reason.startswith("aborted: it does not converge")
    assert failed.reason.endswith("the guest still runs on host-1")


@pytest.mark.parametrize("refusing", ["caps", "libvirt"])
def test_where_post_copy_may_not_be_it_is_aborted(host: OneHost, tmp_path: Path, refusing: str) -> None:
    if refusing == "libvirt":
        host.errors["post_copy"] = HypervisorError("post-copy is not supported")
    made = executor(host, tmp_path, caps=Caps(post_copy=refusing != "caps"))
    made.submit(command(move(way=STUBBORN)), at(0))
    stall(made, host.jobs[0], made.poll, 40)
    assert (host.jobs[0].switches, host.jobs[0].aborts) == (0, 1)
    assert host.ways[0].when_stuck is (Stuck.ABORT if refusing == "caps" else Stuck.POST_COPY)


def test_a_time_limit_of_its_own_leads_to_post_copy_too(host: OneHost, tmp_path: Path) -> None:
    made = executor(host, tmp_path)
    made.submit(command(move(way=Way(when_stuck=Stuck.POST_COPY, within_s=30))), at(0))
    made.poll(at(29))
    assert host.jobs[0].switches == 0
    made.poll(at(30))
    host.jobs[0].finish()
    assert only(made.poll(at(31))).reason.endswith("by post-copy: not finished within 30 s")


@pytest.mark.parametrize(("asked", "cap", "given"), [(0, 0, 0), (0, 5, 5), (9, 5, 5), (3, 5, 3), (3, 0, 3)])
def test_the_hosts_own_bandwidth_holds(host: OneHost, tmp_path: Path, asked: int, cap: int, given: int) -> None:
    made = executor(host, tmp_path, caps=Caps(migration_bandwidth_max=cap))
    made.submit(command(move(way=Way(bandwidth_bytes_s=asked))), at(0))
    assert host.ways[0].bandwidth_bytes_s == given


def test_progress_is_no_reason_to_end_it() -> None:
    """Each round begins with less, however slowly; nothing is said of the first one."""
    watch = Convergence(10)
    left = 1e9
    for second in range(600):
        number = 1 + second // 20
        left = 1e9 * 0.85**number * (1 - second % 20 / 20)
        told = {"iterations_count": number, "data_remaining_bytes": left}
        assert watch.stuck(told, second * SECOND) == ""


def test_without_statistics_nothing_is_known() -> None:
    watch = Convergence(10)
    assert not any(watch.stuck({}, second * SECOND) for second in range(100))
    assert not any(Convergence(0).stuck(progress(n, 5).progress, n * SECOND) for n in range(100))


@pytest.mark.parametrize("there", [GuestState.NOSTATE, GuestState.SHUTOFF, GuestState.CRASHED])
def test_a_guest_that_came_nowhere_is_no_success(host: OneHost, tmp_path: Path, there: GuestState) -> None:
    made = executor(host, tmp_path)
    made.submit(command(move()), at(0))
    host.jobs[0].finish(there=there)
    failed = only(made.poll(at(5)))
    assert failed.result is Result.FAILED
    assert failed.reason.startswith("reported as done, and the guest is no longer on host-1, but it is")
    assert failed.reason.endswith("on host-2")


def test_a_target_that_cannot_be_asked_is_said_so(host: OneHost, tmp_path: Path) -> None:
    made = executor(host, tmp_path)
    made.submit(command(move()), at(0))
    host.jobs[0].finish(there=None)
    assert only(made.poll(at(5))).reason == "moved from host-1 to host-2 in 5.0 s; host-2 could not be asked"


def test_an_abort_by_command_is_done_when_it_is_over_and_the_guest_is_here(host: OneHost, tmp_path: Path) -> None:
    made = executor(host, tmp_path)
    made.submit(command(move()), at(0))
    assert made.submit(command(abort(), "cm-2"), at(3)) == []
    assert host.aborted == [GUEST]
    assert made.poll(at(4)) == []
    host.jobs[0].fail("operation aborted: canceled by client")
    moved, aborted = made.poll(at(5))
    assert (moved.command, moved.result) == ("cm-1", Result.FAILED)
    assert moved.reason.startswith("aborted: by command cm-2 (operation aborted")
    assert (aborted.command, aborted.result, aborted.action) == ("cm-2", Result.DONE, "abort migration")
    assert aborted.reason.endswith("the guest still runs on host-1")
    assert not made.busy(GUEST)
    assert made.submit(command(abort(), "cm-2"), at(6)) == [aborted]
    assert host.aborted == [GUEST]


def test_an_abort_that_comes_too_late_fails(host: OneHost, tmp_path: Path) -> None:
    made = executor(host, tmp_path)
    made.submit(command(move()), at(0))
    host.errors["abort_job"] = HypervisorError("no job is active on the domain")
    made.submit(command(abort(), "cm-2"), at(3))
    host.jobs[0].finish()
    moved, aborted = made.poll(at(5))
    assert (moved.result, aborted.result) == (Result.DONE, Result.FAILED)


def test_an_abort_without_a_migration_is_done(host: OneHost, tmp_path: Path) -> None:
    done = only(executor(host, tmp_path).submit(command(abort()), at(0)))
    assert (done.result, host.aborted) == (Result.DONE, [])
    assert done.reason == "no migration of it is under way; the guest still runs on host-1"


def test_in_post_copy_nothing_can_be_aborted(host: OneHost, tmp_path: Path) -> None:
    made = executor(host, tmp_path)
    made.submit(command(move(way=Way(when_stuck=Stuck.POST_COPY, within_s=5))), at(0))
    made.poll(at(5))
    refused = only(made.submit(command(abort(), "cm-2"), at(6)))
    assert (refused.guard, host.aborted) == ("state", [])


def test_a_migration_that_an_earlier_agent_began_is_aborted_as_well(host: OneHost, tmp_path: Path) -> None:
    made = executor(host, tmp_path)
    made.submit(command(move()), at(0))
    del made
    made = executor(host, tmp_path)
    made.recover(at(10))
    assert made.submit(command(abort(), "cm-2"), at(11)) == []
    assert host.aborted == [GUEST]
    assert made.poll(at(70)) == []
    moved, aborted = made.poll(at(71.5))
    assert (moved.result, aborted.result) == (Result.FAILED, Result.DONE)
    assert moved.reason.startswith("aborted: by command cm-2; the agent restarted")


def test_while_an_abort_is_under_way_the_guest_is_left_alone(host: OneHost, tmp_path: Path) -> None:
    made = executor(host, tmp_path)
    made.submit(command(move()), at(0))
    made.submit(command(abort(), "cm-2"), at(1))
    others: list[Action] = [set_to(2048), power(Verb.SUSPEND), move(target="host-3")]
    for number, action in enumerate(others, 3):
        assert only(made.submit(command(action, f"cm-{number}"), at(2))).guard == "busy"


LONG: Final = [power(Verb.SHUTDOWN, within_s=600), power(Verb.REBOOT, within_s=600), Run(guest=GUEST, hook="slow")]
SLOW: Final = HookOptions(allowed=[Hook(name="slow", command=["/bin/sleep", "600"], deadline_s=600)])


@pytest.fixture(params=LONG, ids=["shutdown", "reboot", "hook"])
def occupied(request: pytest.FixtureRequest, host: OneHost, tmp_path: Path) -> Iterator[Executor]:
    """An executor that holds a lease until second 60 on a guest with which something else takes very long."""
    host.obeys = False
    made = Executor(host, Journal(tmp_path / "journal.jsonl"), host=HOST, hooks=SLOW)
    made.submit(command(set_to(256)), at(0))
    assert made.submit(command(request.param, "cm-2"), at(1)) == []
    yield made
    assert made.busy(GUEST)
    made.close()


def test_only_a_move_holds_back_the_end_of_a_lease(occupied: Executor, host: OneHost) -> None:
    assert only(occupied.poll(at(60))).command == "cm-1"
    assert (host.shares, occupied.leases()) == (1024, [])


def test_only_a_move_holds_back_a_release(occupied: Executor, host: OneHost) -> None:
    assert only(occupied.submit(command(release(), "cm-3"), at(5))).result is Result.REVERTED
    assert (host.shares, occupied.leases()) == (1024, [])


def test_only_a_move_holds_back_what_the_guest_cannot_do_without(occupied: Executor, host: OneHost) -> None:
    """Its balloon is given back as soon as it falls short, whatever else is under way."""
    balloon, full = "memory_balloon", 2**30
    host.knobs[GUEST, balloon] = full - 2**26
    held = Lease(guest=GUEST, knob=balloon, baseline=full, value=full - 2**26, rule="r", command="cm-0", end_ns=at(600),
                 state=LeaseState.HELD)  # fmt: skip
    occupied._journal.note(LeaseKept(held))
    host.footprints[GUEST] = Footprint(vcpus=1, memory_bytes=full, usable_bytes=2**20, told_s=1)
    (given_back,) = occupied.poll(at(10))
    assert (given_back.command, host.knobs[GUEST, balloon]) == ("cm-0", full)
