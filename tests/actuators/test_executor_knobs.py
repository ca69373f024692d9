"""The executor and knobs: pre-checks, verification, leases to their end, faults of the hypervisor and of the disk."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.actuators.one_host import GUEST, HOST, OTHER, SHARES, OneHost, at, command, executor, move, release, set_to
from virtpilot.action import Action
from virtpilot.actuators.caps import Caps
from virtpilot.actuators.ledger import LeaseState
from virtpilot.errors import GuestNotFound, HypervisorError, HypervisorTimeout, HypervisorUnavailable
from virtpilot.hypervisor import GuestState
from virtpilot.model import Command, Outcome, Result, record_id


@pytest.fixture
def host() -> OneHost:
    return OneHost()


def only(outcomes: list[Outcome]) -> Outcome:
    (outcome,) = outcomes
    return outcome


def test_set_verify_keep_and_give_back(host: OneHost, tmp_path: Path) -> None:
    """The whole life of a lease, with what it tells."""
    made = executor(host, tmp_path)
    done = only(made.submit(command(set_to(2048)), at(0)))
    assert done == Outcome(
        id=record_id("oc", "cm-1", Result.DONE),
        cause="cm-1",
        command="cm-1",
        host=HOST,
        guest=GUEST,
        result=Result.DONE,
        at_ns=at(0),
        action="set cpu_shares",
        rule="starved",
        before={SHARES: 1024},
        after={SHARES: 2048},
    )
    lease = made.leases()[0]
    assert (lease.state, lease.baseline, lease.end_ns) == (LeaseState.HELD, 1024, at(60))
    assert made.leased(GUEST, SHARES)
    assert made.poll(at(59.9)) == []
    ended = only(made.poll(at(60)))
    assert (ended.result, ended.command, ended.reason) == (Result.REVERTED, "cm-1", "the lease has ended")
    assert (ended.before, ended.after, host.shares) == ({SHARES: 2048}, {SHARES: 1024}, 1024)
    assert (made.leases(), made.leased(GUEST, SHARES), made.poll(at(61))) == ([], False, [])


def shut_off(host: OneHost) -> None:
    host.states[GUEST] = GuestState.SHUTOFF


def set_by_hand(host: OneHost) -> None:
    host.shares = 512


def without_knob(host: OneHost) -> None:
    del host.knobs[GUEST, SHARES]


def as_it_is(_host: OneHost) -> None:
    return


@pytest.mark.parametrize(
    ("prepare", "action", "guard", "reason"),
    [
        (lambda host: host.remove(GUEST), set_to(2048), "guest", f"guest {GUEST} is not on host-1"),
        (lambda host: host.remove(GUEST), move(), "guest", f"guest {GUEST} is not on host-1"),
        (shut_off, set_to(2048), "state", "is shutoff, not running"),
        (shut_off, move(), "state", "is shutoff, not running"),
        (set_by_hand, set_to(2048), "foreign-change", "is 512, the decision was based on 1024"),
        (without_knob, set_to(2048), "knob", "has no knob"),
        (as_it_is, set_to(2048, knob="memory"), "knob", "no knob 'memory' here"),
        (as_it_is, set_to(8193), "caps", "8193 is outside this host's 256 to 8192"),
        (as_it_is, set_to(255), "caps", "255 is outside this host's 256 to 8192"),
        (as_it_is, set_to(2048, lease_s=901), "caps", "a lease of 901 s is longer than this host's 900 s"),
        (as_it_is, move(target=HOST), "target", "is on host-1 already"),
    ],
)  # fmt: skip
def test_pre_checks(
    host: OneHost, tmp_path: Path, prepare: Callable[[OneHost], None], action: Action, guard: str, reason: str
) -> None:
    """Each pre-check refuses under its own name and changes nothing."""
    prepare(host)
    made = executor(host, tmp_path, caps=Caps(cpu_shares_min=256, cpu_shares_max=8192, lease_max_s=900))
    refused = only(made.submit(command(action), at(0)))
    assert (refused.result, refused.guard) == (Result.REFUSED, guard)
    assert reason in refused.reason
    assert (host.sets, host.jobs, made.leases()) == ([], [], [])


@pytest.mark.parametrize(
    ("sent", "guard"),
    [
        (command(set_to(2048), "cm-2", epoch=4), "epoch"),
        (command(set_to(2048), "cm-2", host="host-2", epoch=5), "host"),
        (command(set_to(2048), "cm-2", at_ns=at(-31), epoch=5), "expired"),
    ],
)
def test_what_the_journal_and_the_clock_refuse(host: OneHost, tmp_path: Path, sent: Command, guard: str) -> None:
    """An older controller's, another host's and an expired command are refused, after a restart too."""
    made = executor(host, tmp_path)
    made.submit(command(release(), epoch=5), at(0))
    made.close()
    refused = only(executor(host, tmp_path).submit(sent, at(0)))
    assert (refused.result, refused.guard, host.sets) == (Result.REFUSED, guard, [])


def test_a_refused_command_raises_the_epoch_too(host: OneHost, tmp_path: Path) -> None:
    """What a newer controller says counts, whether or not it can be done."""
    made = executor(host, tmp_path)
    made.submit(command(set_to(2), epoch=9), at(0))
    made.submit(command(set_to(2048, expected=7), "cm-2", epoch=10), at(0))
    assert only(made.submit(command(set_to(2048), "cm-3", epoch=9), at(0))).guard == "epoch"


@pytest.mark.parametrize("restart", [False, True], ids=["at once", "after a restart"])
@pytest.mark.parametrize("action", [set_to(2048), release(), set_to(1, expected=1024)], ids=["done", "none", "refused"])
def test_a_duplicate_acts_on_nothing(host: OneHost, tmp_path: Path, action: Action, restart: bool) -> None:
    """The same command again gives the same outcome again, to be published again."""
    made = executor(host, tmp_path)
    first = made.submit(command(action), at(0))
    made.published(first[0].id)
    assert made.unpublished() == []
    if restart:
        made.close()
        made = executor(host, tmp_path)
    sets = list(host.sets)
    again = made.submit(command(action, epoch=0), at(1))
    assert (again, made.unpublished(), host.sets) == (first, first, sets)


def test_a_second_set_keeps_the_first_baseline(host: OneHost, tmp_path: Path) -> None:
    made = executor(host, tmp_path)
    made.submit(command(set_to(2048)), at(0))
    done = only(made.submit(command(set_to(4096, expected=2048), "cm-2"), at(10)))
    assert (done.result, done.before, done.after) == (Result.DONE, {SHARES: 2048}, {SHARES: 4096})
    (lease,) = made.leases()
    assert (lease.baseline, lease.value, lease.command, lease.end_ns) == (1024, 4096, "cm-2", at(70))
    assert made.poll(at(61)) == []
    assert only(made.poll(at(70))).command == "cm-2"
    assert host.shares == 1024


def test_a_set_that_was_decided_before_another_one_is_stale(host: OneHost, tmp_path: Path) -> None:
    made = executor(host, tmp_path)
    made.submit(command(set_to(2048)), at(0))
    late = only(made.submit(command(set_to(512, expected=1024), "cm-2"), at(10)))
    assert (late.result, late.guard) == (Result.REFUSED, "stale")
    assert late.reason == "cpu_shares was 1024 when this was decided, and is 2048 by now"
    assert host.shares == 2048


def test_a_leased_knob_that_somebody_else_set_is_not_ours_to_set(host: OneHost, tmp_path: Path) -> None:
    made = executor(host, tmp_path)
    made.submit(command(set_to(2048)), at(0))
    host.shares = 300
    refused = only(made.submit(command(set_to(4096, expected=2048), "cm-2"), at(1)))
    assert refused.guard == "foreign-change"
    assert "is 300, virtpilot set it to 2048" in refused.reason
    ended = only(made.poll(at(60)))
    assert ended.reason == "the lease has ended; cpu_shares was changed by someone else to 300 and stays"
    assert (host.shares, made.leases(), ended.after) == (300, [], {SHARES: 300})


def test_release(host: OneHost, tmp_path: Path) -> None:
    """Releasing gives back at once, in the release command's name, and again means nothing."""
    made = executor(host, tmp_path)
    made.submit(command(set_to(2048)), at(0))
    reverted = only(made.submit(command(release(), "cm-2"), at(5)))
    assert (reverted.result, reverted.command, reverted.reason) == (Result.REVERTED, "cm-2", "released")
    assert (host.shares, made.leases()) == (1024, [])
    again = only(made.submit(command(release(), "cm-3"), at(6)))
    assert (again.result, again.reason) == (Result.REVERTED, "nothing leased")
    assert host.sets == [(GUEST, 2048), (GUEST, 1024)]


@pytest.mark.parametrize(
    ("happen", "reason"),
    [
        (shut_off, "the guest is shutoff"),
        (without_knob, "has no knob"),
    ],
)
def test_a_guest_that_is_gone_at_the_leases_end(
    host: OneHost, tmp_path: Path, happen: Callable[[OneHost], None], reason: str
) -> None:
    """What cannot be given back is dropped with the reason, not tried for ever."""
    made = executor(host, tmp_path)
    made.submit(command(set_to(2048)), at(0))
    happen(host)
    ended = only(made.poll(at(60)))
    assert (ended.result, made.leases()) == (Result.REVERTED, [])
    assert reason in ended.reason


def test_a_value_that_is_not_taken_is_taken_back(host: OneHost, tmp_path: Path) -> None:
    """Set 2048, read 2000: the change is reverted and reported as failed, with both values."""
    host.rounds = lambda value: 2000 if value == 2048 else value
    made = executor(host, tmp_path)
    failed = only(made.submit(command(set_to(2048)), at(0)))
    assert (failed.result, host.shares, made.leases()) == (Result.FAILED, 1024, [])
    assert failed.reason == "cpu_shares was set to 2048 and reads 2000; it is back at 1024"


def test_a_failed_second_set_goes_back_to_the_first(host: OneHost, tmp_path: Path) -> None:
    """What a failed change takes back is itself, not the lease before it."""
    made = executor(host, tmp_path)
    made.submit(command(set_to(2048)), at(0))
    host.rounds = lambda value: 4000 if value == 4096 else value
    failed = only(made.submit(command(set_to(4096, expected=2048), "cm-2"), at(10)))
    assert (failed.result, host.shares) == (Result.FAILED, 2048)
    (lease,) = made.leases()
    assert (lease.command, lease.value, lease.baseline, lease.state) == ("cm-1", 2048, 1024, LeaseState.HELD)
    assert only(made.poll(at(60))).command == "cm-1"
    assert host.shares == 1024


@pytest.mark.parametrize("error", [HypervisorUnavailable("gone"), HypervisorTimeout("slow"), HypervisorError("no")])
@pytest.mark.parametrize("call", ["state", "get_knob"])
def test_a_hypervisor_that_does_not_answer_the_pre_check(
    host: OneHost, tmp_path: Path, call: str, error: HypervisorError
) -> None:
    host.errors[call] = error
    made = executor(host, tmp_path)
    failed = only(made.submit(command(set_to(2048)), at(0)))
    assert (failed.result, failed.reason, made.leases(), host.sets) == (Result.FAILED, str(error), [], [])


@pytest.mark.parametrize("error", [HypervisorUnavailable("gone"), HypervisorTimeout("slow")])
def test_a_set_that_fails_is_taken_back_as_soon_as_possible(
    host: OneHost, tmp_path: Path, error: HypervisorError
) -> None:
    """A call that timed out may still come through: its lease stays until the value before was set once more."""
    made = executor(host, tmp_path)
    host.errors["set_knob"] = error
    failed = only(made.submit(command(set_to(2048)), at(0)))
    assert (failed.result, made.busy(GUEST)) == (Result.FAILED, True)
    assert "it is set back to 1024 as soon as the hypervisor answers" in failed.reason
    assert only(made.submit(command(set_to(512), "cm-2"), at(1))).guard == "busy"
    host.knobs[GUEST, SHARES] = 2048  # the hung call came through
    assert made.poll(at(2)) == []
    host.errors.clear()
    assert made.poll(at(60)) == []  # told already
    assert (host.shares, made.leases(), made.busy(GUEST)) == (1024, [], False)
    assert [outcome.result for outcome in made.unpublished()] == [Result.FAILED, Result.REFUSED]


def test_a_guest_that_vanishes_during_the_change(host: OneHost, tmp_path: Path) -> None:
    made = executor(host, tmp_path)
    host.errors["set_knob"] = GuestNotFound("gone")
    failed = only(made.submit(command(set_to(2048)), at(0)))
    assert (failed.result, made.leases()) == (Result.FAILED, [])


def test_restoring_is_tried_again_ever_slower(host: OneHost, tmp_path: Path) -> None:
    """While libvirt is gone the lease stays; it is asked after 1, 2, 4 … 30 s, and given back when it answers."""
    made = executor(host, tmp_path)
    made.submit(command(set_to(2048)), at(0))
    host.errors["state"] = HypervisorUnavailable("gone")
    asked: list[int] = []
    host.answer = lambda call: asked.append(second) or OneHost.answer(host, call)  # type: ignore[method-assign, func-returns-value]
    for second in range(60, 160):
        assert made.poll(at(second)) == []
    assert asked == [60, 61, 63, 67, 75, 91, 121, 151]
    assert made.leased(GUEST, SHARES)
    host.errors.clear()
    second = 181
    assert only(made.poll(at(181))).result is Result.REVERTED
    assert host.shares == 1024


def test_one_stuck_guest_does_not_hold_up_the_others(host: OneHost, tmp_path: Path) -> None:
    made = executor(host, tmp_path)
    made.submit(command(set_to(2048)), at(0))
    made.submit(command(set_to(2048, guest=OTHER), "cm-2"), at(0))
    state = host.state

    def stuck(guest: str) -> GuestState:
        if guest == GUEST:
            raise HypervisorTimeout("monitor is stuck")
        return state(guest)

    host.state = stuck  # type: ignore[method-assign]
    assert only(made.poll(at(60))).guest == OTHER
    assert made.leased(GUEST, SHARES)


def test_a_release_that_fails_is_finished_later(host: OneHost, tmp_path: Path) -> None:
    """The release command's outcome comes when the knob is back, in its name; another release meanwhile is refused."""
    made = executor(host, tmp_path)
    made.submit(command(set_to(2048)), at(0))
    host.errors["set_knob"] = HypervisorError("cannot acquire state change lock")
    assert made.submit(command(release(), "cm-2"), at(5)) == []
    assert made.submit(command(release(), "cm-2"), at(5)) == []
    assert only(made.submit(command(release(), "cm-3"), at(5))).guard == "busy"
    host.errors.clear()
    made.close()
    made = executor(host, tmp_path)
    reverted = only(made.recover(at(6)))
    assert (reverted.command, reverted.result, host.shares) == ("cm-2", Result.REVERTED, 1024)


def test_a_baseline_that_does_not_hold_is_not_called_restored(host: OneHost, tmp_path: Path) -> None:
    made = executor(host, tmp_path)
    made.submit(command(set_to(2048)), at(0))
    host.rounds = lambda value: 2048
    assert made.poll(at(60)) == []
    assert made.leased(GUEST, SHARES)
    host.rounds = lambda value: value
    assert only(made.poll(at(90))).after == {SHARES: 1024}


def fill(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int, _content: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)


@pytest.mark.parametrize("action", [set_to(2048), move()], ids=["set", "move"])
def test_a_full_disk_refuses_every_change(
    host: OneHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: Action
) -> None:
    """What cannot be written down is not done; it is said, and known as said when there is room again."""
    made = executor(host, tmp_path)
    fill(monkeypatch)
    refused = only(made.submit(command(action), at(0)))
    assert (refused.result, refused.guard) == (Result.REFUSED, "journal")
    assert "No space left" in refused.reason
    assert (host.sets, host.jobs, made.leases(), made.unpublished()) == ([], [], [], [refused])
    monkeypatch.undo()
    made.poll(at(1))
    del made
    assert executor(host, tmp_path).unpublished() == [refused]


def test_a_full_disk_does_not_keep_a_knob_changed(
    host: OneHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Giving back needs no room on disk."""
    made = executor(host, tmp_path)
    made.submit(command(set_to(2048)), at(0))
    fill(monkeypatch)
    ended = only(made.poll(at(60)))
    assert (ended.result, host.shares, made.leases()) == (Result.REVERTED, 1024, [])


def test_a_clock_set_back_does_not_lengthen_a_lease_beyond_the_cap(host: OneHost, tmp_path: Path) -> None:
    made = executor(host, tmp_path, caps=Caps(lease_max_s=900))
    made.submit(command(set_to(2048, lease_s=900)), at(0))
    assert made.poll(at(-10)) == []
    assert only(made.poll(at(-3600))).result is Result.REVERTED


def test_a_cap_that_is_lowered_ends_longer_leases(host: OneHost, tmp_path: Path) -> None:
    """The host's file has the last word, also on what was let through before."""
    made = executor(host, tmp_path)
    made.submit(command(set_to(2048, lease_s=3600)), at(0))
    made.close()
    assert only(executor(host, tmp_path, caps=Caps(lease_max_s=60)).recover(at(1))).result is Result.REVERTED


def test_outcomes_stay_until_they_are_published(host: OneHost, tmp_path: Path) -> None:
    made = executor(host, tmp_path)
    sent = [made.submit(command(set_to(2), f"cm-{number}"), at(0))[0] for number in range(3)]
    made.published(sent[1].id)
    del made
    made = executor(host, tmp_path)
    assert made.unpublished() == [sent[0], sent[2]]
    made.poll(at(10**6))
    assert made.unpublished()[:2] == [sent[0], sent[2]]


def test_a_live_lease_survives_a_restart(host: OneHost, tmp_path: Path) -> None:
    made = executor(host, tmp_path)
    made.submit(command(set_to(2048)), at(0))
    leases = made.leases()
    made.close()
    made = executor(host, tmp_path)
    assert made.recover(at(30)) == []
    assert (made.leases(), host.shares) == (leases, 2048)
    assert replace(leases[0], value=1) != leases[0]
    assert only(made.poll(at(60))).result is Result.REVERTED


def test_caps_that_contradict_themselves_are_an_error() -> None:
    with pytest.raises(ValueError, match="cpu_shares_min is above"):
        Caps(cpu_shares_min=9, cpu_shares_max=8)
