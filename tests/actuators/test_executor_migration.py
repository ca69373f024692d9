"""The executor and migrations: leases go along, the guest's real place decides, nothing goes on for ever."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.actuators.one_host import GUEST, OTHER, SHARES, OneHost, at, command, executor, move, release, set_to
from virtpilot.actuators.caps import Caps
from virtpilot.actuators.note import read_note
from virtpilot.errors import HypervisorError, HypervisorTimeout, HypervisorUnavailable
from virtpilot.events import EventKind
from virtpilot.hypervisor import GuestState
from virtpilot.model import Outcome, Result


@pytest.fixture
def host() -> OneHost:
    return OneHost()


def only(outcomes: list[Outcome]) -> Outcome:
    (outcome,) = outcomes
    return outcome


def test_a_move_is_done_when_the_guest_has_left(host: OneHost, tmp_path: Path) -> None:
    made = executor(host, tmp_path)
    assert made.submit(command(move()), at(0)) == []
    assert made.busy(GUEST)
    assert not made.busy(OTHER)
    assert made.poll(at(1)) == []
    host.jobs[0].finish()
    done = only(made.poll(at(6.5)))
    assert (done.result, done.action) == (Result.DONE, "migrate")
    assert done.reason == "moved from host-1 to host-2 in 6.5 s, where it is running"
    assert done.after == {"took_seconds": 6.5, "downtime_seconds": 0.1}
    assert (made.busy(GUEST), made.poll(at(7))) == (False, [])


def test_a_guest_left_shut_off_has_left(host: OneHost, tmp_path: Path) -> None:
    """A persistent guest stays defined at the source."""
    made = executor(host, tmp_path)
    made.submit(command(move()), at(0))
    host.jobs[0].finish(leave=False)
    host.states[GUEST] = GuestState.SHUTOFF
    assert only(made.poll(at(1))).result is Result.DONE


@pytest.mark.parametrize("state", [GuestState.RUNNING, GuestState.PAUSED])
def test_done_is_not_believed_while_the_guest_is_here(host: OneHost, tmp_path: Path, state: GuestState) -> None:
    made = executor(host, tmp_path)
    made.submit(command(move()), at(0))
    host.jobs[0].finish(leave=False)
    host.states[GUEST] = state
    failed = only(made.poll(at(1)))
    assert failed.result is Result.FAILED
    assert failed.reason.startswith("reported as done, but the guest")
    assert failed.reason.endswith("on host-1")


def test_a_failed_move_tells_libvirts_error_and_where_the_guest_is(host: OneHost, tmp_path: Path) -> None:
    made = executor(host, tmp_path)
    made.submit(command(move()), at(0))
    host.jobs[0].fail("unable to connect to server at 'host-2:16509': Connection refused")
    failed = only(made.poll(at(1)))
    assert failed.result is Result.FAILED
    assert failed.reason.endswith("Connection refused; the guest still runs on host-1")


def test_leases_go_with_the_guest(host: OneHost, tmp_path: Path) -> None:
    """Held here until the guest has left, let go then; others keep theirs."""
    made = executor(host, tmp_path)
    made.submit(command(set_to(2048)), at(0))
    made.submit(command(set_to(2048, guest=OTHER), "cm-2"), at(0))
    carried = read_note(GUEST, host.notes[GUEST])
    assert made.submit(command(move(), "cm-3"), at(5)) == []
    assert (host.shares, read_note(GUEST, host.notes[GUEST]), len(made.leases())) == (2048, carried, 2)
    host.jobs[0].finish()
    assert only(made.poll(at(6))).result is Result.DONE
    assert [lease.guest for lease in made.leases()] == [OTHER]
    ((left, command_id),) = made.news()
    assert (left.kind, left.guest, left.numbers, command_id) == (EventKind.LEASE_LEFT, GUEST, {SHARES: 2048}, "cm-1")


def test_a_lease_outlives_its_end_while_the_guest_is_on_its_way(host: OneHost, tmp_path: Path) -> None:
    """Nothing can be changed then: it ends here where the guest stays, and a release has to wait."""
    made = executor(host, tmp_path)
    made.submit(command(set_to(2048)), at(0))
    made.submit(command(move(), "cm-2"), at(5))
    assert only(made.submit(command(release(), "cm-3"), at(6))).guard == "busy"
    assert made.poll(at(61)) == []
    host.jobs[0].fail("no route to host")
    failed, ended = made.poll(at(62))
    assert (failed.command, ended.command, ended.result) == ("cm-2", "cm-1", Result.REVERTED)
    assert (host.shares, made.leases()) == (1024, [])


def test_no_move_without_its_note(host: OneHost, tmp_path: Path) -> None:
    """A note that cannot be written would leave the lease behind: the migration does not begin."""
    made = executor(host, tmp_path)
    made.submit(command(set_to(2048)), at(0))
    host.errors["write_note"] = HypervisorError("cannot acquire state change lock")
    failed = only(made.submit(command(move(), "cm-2"), at(5)))
    assert (failed.result, host.jobs, made.busy(GUEST)) == (Result.FAILED, [], False)
    assert "leases could not be made ready" in failed.reason
    assert (host.shares, len(made.leases())) == (2048, 1)


def test_a_guest_under_way_is_left_alone(host: OneHost, tmp_path: Path) -> None:
    """Nothing else is done to it: no second move, no knob; a release has nothing to give back."""
    made = executor(host, tmp_path)
    made.submit(command(move()), at(0))
    assert made.submit(command(move()), at(0)) == []
    assert only(made.submit(command(move(target="host-3"), "cm-2"), at(1))).guard == "busy"
    assert only(made.submit(command(set_to(2048), "cm-3"), at(1))).guard == "busy"
    assert only(made.submit(command(release(), "cm-4"), at(1))).reason == "nothing leased"
    assert (len(host.jobs), host.sets) == (1, [])


@pytest.mark.parametrize(("cap", "guard"), [(0, "caps"), (1, "caps"), (2, "")])
def test_the_host_caps_how_many_leave_at_once(host: OneHost, tmp_path: Path, cap: int, guard: str) -> None:
    made = executor(host, tmp_path, caps=Caps(migrations_out_max=cap))
    made.submit(command(move()), at(0))
    second = made.submit(command(move(OTHER), "cm-2"), at(0))
    assert [outcome.guard for outcome in second] == ([guard] if guard else [])


def test_a_move_that_takes_too_long_is_aborted(host: OneHost, tmp_path: Path) -> None:
    """Aborted once, reported when it has ended, with where the guest is."""
    made = executor(host, tmp_path, caps=Caps(migration_timeout_s=300))
    made.submit(command(move()), at(0))
    job = host.jobs[0]
    for second in (299, 300, 301, 302):
        assert made.poll(at(second)) == []
        assert job.aborts == (second >= 300)
    job.fail("operation aborted: canceled by client")
    failed = only(made.poll(at(303)))
    assert failed.reason.startswith("aborted: not finished within 300 s (operation aborted")
    assert failed.reason.endswith("the guest still runs on host-1")


def test_a_move_that_ends_just_as_it_is_aborted_is_done(host: OneHost, tmp_path: Path) -> None:
    made = executor(host, tmp_path, caps=Caps(migration_timeout_s=300))
    made.submit(command(move()), at(0))
    made.poll(at(300))
    host.jobs[0].finish()
    assert only(made.poll(at(301))).result is Result.DONE


def test_an_abort_that_does_nothing_is_given_up(host: OneHost, tmp_path: Path) -> None:
    made = executor(host, tmp_path, caps=Caps(migration_timeout_s=300))
    made.submit(command(move()), at(0))
    made.poll(at(300))
    assert made.poll(at(359)) == []
    failed = only(made.poll(at(360)))
    assert (failed.result, made.busy(GUEST)) == (Result.FAILED, False)
    assert "does not end on being aborted" in failed.reason


def test_a_start_that_fails(host: OneHost, tmp_path: Path) -> None:
    made = executor(host, tmp_path)
    host.errors["migrate"] = HypervisorUnavailable("the connection is gone")
    failed = only(made.submit(command(move()), at(0)))
    assert (failed.result, failed.reason, made.busy(GUEST)) == (Result.FAILED, "the connection is gone", False)


def test_a_start_that_times_out_may_have_begun(host: OneHost, tmp_path: Path) -> None:
    """The guest is watched: if it leaves after all, the move was done."""
    made = executor(host, tmp_path)
    host.errors["migrate"] = HypervisorTimeout("no answer within 5 s")
    assert made.submit(command(move()), at(0)) == []
    assert made.poll(at(10)) == []
    host.remove(GUEST)
    assert only(made.poll(at(20))).result is Result.DONE


def test_a_hypervisor_that_is_gone_at_the_end(host: OneHost, tmp_path: Path) -> None:
    """Nothing is reported before the guest's place is known."""
    made = executor(host, tmp_path)
    made.submit(command(move()), at(0))
    host.jobs[0].finish()
    host.errors["state"] = HypervisorUnavailable("gone")
    assert made.poll(at(1)) == []
    assert made.busy(GUEST)
    host.errors.clear()
    assert only(made.poll(at(10))).result is Result.DONE


@pytest.mark.parametrize(
    ("after", "result", "reason"),
    [
        (lambda host: host.remove(GUEST), Result.DONE, "the guest is no longer on host-1"),
        (lambda host: None, Result.FAILED, "the guest still runs on host-1"),
    ],
    ids=["left", "stayed"],
)
def test_a_move_cut_short_by_a_restart(
    host: OneHost, tmp_path: Path, after: Callable[[OneHost], None], result: Result, reason: str
) -> None:
    """The guest's real place decides; libvirtd may carry a migration on: a guest that is here still is watched."""
    made = executor(host, tmp_path)
    made.submit(command(move()), at(0))
    del made
    made = executor(host, tmp_path)
    host.errors["abort_job"] = HypervisorError("no job is active on the domain")
    if result is Result.DONE:
        after(host)
        outcomes = made.recover(at(10))
    else:
        assert made.recover(at(10)) == []
        assert only(made.submit(command(set_to(2048), "cm-2"), at(11))).guard == "busy"
        assert made.poll(at(129)) == []
        outcomes = made.poll(at(130))
    ended = only(outcomes)
    assert (ended.command, ended.result, made.busy(GUEST)) == ("cm-1", result, False)
    assert ended.reason.endswith(reason)
    assert ended in made.unpublished()


def test_a_move_of_which_sight_was_lost_is_aborted_when_it_goes_on_for_too_long(host: OneHost, tmp_path: Path) -> None:
    """It might never end by itself, and nothing could be changed on the guest meanwhile."""
    made = executor(host, tmp_path)
    made.submit(command(move()), at(0))
    del made
    made = executor(host, tmp_path)
    made.recover(at(10))
    assert (made.poll(at(129)), host.aborted) == ([], [])
    assert (made.poll(at(130)), host.aborted) == ([], [GUEST])
    failed = only(made.poll(at(190)))
    assert (failed.result, made.busy(GUEST)) == (Result.FAILED, False)
    assert failed.reason.startswith("aborted: it went on for too long")


def test_a_move_that_libvirt_carried_on_over_a_restart(host: OneHost, tmp_path: Path) -> None:
    made = executor(host, tmp_path)
    made.submit(command(move()), at(0))
    del made
    made = executor(host, tmp_path)
    assert made.recover(at(10)) == []
    host.remove(GUEST)
    assert only(made.poll(at(30))).result is Result.DONE


def test_recovery_waits_for_the_hypervisor(host: OneHost, tmp_path: Path) -> None:
    made = executor(host, tmp_path)
    made.submit(command(set_to(2048, guest=OTHER), "cm-0"), at(0))
    made.submit(command(move()), at(0))
    del made
    host.errors["state"] = HypervisorUnavailable("libvirtd is starting")
    made = executor(host, tmp_path)
    assert made.recover(at(100)) == []
    host.errors.clear()
    host.remove(GUEST)
    assert {outcome.command for outcome in made.poll(at(101))} == {"cm-0", "cm-1"}
    assert host.knobs[OTHER, SHARES] == 1024
