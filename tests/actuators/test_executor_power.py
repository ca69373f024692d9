"""The executor and a guest's state: asked for once, believed when seen, done at once where it is so already."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.actuators.one_host import GUEST, OTHER, OneHost, at, command, executor, move, power, set_to
from virtpilot.action import Action, Verb
from virtpilot.actuators.caps import Caps
from virtpilot.errors import GuestNotFound, HypervisorError, HypervisorTimeout, HypervisorUnavailable, Unsupported
from virtpilot.hypervisor import FITTING, GOALS, GuestState
from virtpilot.model import Outcome, Result

MAY_DESTROY = Caps(destroy_guests=True)


@pytest.fixture
def host() -> OneHost:
    return OneHost()


def only(outcomes: list[Outcome]) -> Outcome:
    (outcome,) = outcomes
    return outcome


@pytest.mark.parametrize("verb", list(Verb))
def test_what_is_asked_for_is_done_when_it_is_seen(host: OneHost, tmp_path: Path, verb: Verb) -> None:
    host.states[GUEST] = min(FITTING[verb])
    made = executor(host, tmp_path, caps=MAY_DESTROY)
    done = only(made.submit(command(power(verb)), at(0)))
    assert (done.result, done.action, done.guest) == (Result.DONE, verb, GUEST)
    assert host.states[GUEST] in GOALS[verb]
    assert (host.asked, made.busy(GUEST)) == ([(GUEST, verb)], False)
    assert host.states[OTHER] is GuestState.RUNNING


@pytest.mark.parametrize("verb", [verb for verb in Verb if verb is not Verb.REBOOT])
def test_one_that_is_so_already_is_not_asked(host: OneHost, tmp_path: Path, verb: Verb) -> None:
    host.states[GUEST] = max(GOALS[verb])
    made = executor(host, tmp_path, caps=MAY_DESTROY)
    done = only(made.submit(command(power(verb)), at(0)))
    assert (done.result, host.asked) == (Result.DONE, [])
    assert done.reason == f"it is {host.states[GUEST]} already"


def test_the_same_command_again_asks_for_nothing(host: OneHost, tmp_path: Path) -> None:
    """Nor does it after somebody else has resumed the guest."""
    made = executor(host, tmp_path)
    first = made.submit(command(power(Verb.SUSPEND)), at(0))
    host.states[GUEST] = GuestState.RUNNING
    assert made.submit(command(power(Verb.SUSPEND)), at(1)) == first
    assert host.asked == [(GUEST, Verb.SUSPEND)]


@pytest.mark.parametrize(
    ("verb", "state"),
    [
        (verb, state)
        for verb in Verb
        for state in GuestState
        if state not in FITTING[verb] | (GOALS[verb] if verb is not Verb.REBOOT else frozenset())
    ],
)
def test_a_state_that_does_not_fit_is_refused(host: OneHost, tmp_path: Path, verb: Verb, state: GuestState) -> None:
    host.states[GUEST] = state
    refused = only(executor(host, tmp_path, caps=MAY_DESTROY).submit(command(power(verb)), at(0)))
    assert (refused.result, refused.guard, host.asked) == (Result.REFUSED, "state", [])
    assert f"is {state}: it cannot be" in refused.reason


def test_nobody_is_destroyed_without_the_hosts_own_permit(host: OneHost, tmp_path: Path) -> None:
    refused = only(executor(host, tmp_path).submit(command(power(Verb.DESTROY)), at(0)))
    assert (refused.result, refused.guard, host.asked) == (Result.REFUSED, "caps", [])
    assert host.states[GUEST] is GuestState.RUNNING


def test_a_guest_that_ignores_its_shutdown_is_told_of_and_left_alone(host: OneHost, tmp_path: Path) -> None:
    host.obeys = False
    made = executor(host, tmp_path)
    assert made.submit(command(power(Verb.SHUTDOWN, within_s=30)), at(0)) == []
    assert made.busy(GUEST)
    assert made.moving(GUEST) == "cm-1"  # by which what libvirt tells of it is known as ours
    assert made.poll(at(29.9)) == []
    failed = only(made.poll(at(30)))
    assert (failed.result, made.busy(GUEST), host.given_up) == (Result.FAILED, False, [GUEST])
    assert failed.reason.startswith("not shut down within 30 s: the guest is running on host-1")
    assert host.asked == [(GUEST, Verb.SHUTDOWN)]


def test_a_guest_that_takes_its_time_is_waited_for(host: OneHost, tmp_path: Path) -> None:
    host.obeys = False
    made = executor(host, tmp_path)
    made.submit(command(power(Verb.SHUTDOWN)), at(0))
    assert made.poll(at(12)) == []
    host.states[GUEST] = GuestState.SHUTOFF
    assert only(made.poll(at(12.5))).reason == "shut down in 12.5 s"


def test_while_it_lasts_nothing_else_is_done_to_the_guest(host: OneHost, tmp_path: Path) -> None:
    host.obeys = False
    made = executor(host, tmp_path, caps=Caps(migrations_out_max=1))
    made.submit(command(power(Verb.REBOOT)), at(0))
    others: list[Action] = [power(Verb.SUSPEND), move(), set_to(2048)]
    for number, action in enumerate(others, 2):
        refused = only(made.submit(command(action, f"cm-{number}"), at(1)))
        assert refused.guard == "busy"
    assert "under way already: reboot" in refused.reason
    # It is no migration: it takes no place of one.
    assert made.submit(command(move(OTHER), "cm-9"), at(1)) == []


@pytest.mark.parametrize(
    ("error", "result", "guard"),
    [
        (Unsupported("this function is not supported by the connection driver"), Result.REFUSED, "driver"),
        (HypervisorError("internal error: unable to execute QEMU command"), Result.FAILED, ""),
        (HypervisorUnavailable("gone"), Result.FAILED, ""),
    ],
)
def test_what_libvirt_does_not_do(
    host: OneHost, tmp_path: Path, error: HypervisorError, result: Result, guard: str
) -> None:
    host.errors["power"] = error
    made = executor(host, tmp_path)
    told = only(made.submit(command(power(Verb.SUSPEND)), at(0)))
    assert (told.result, told.guard, told.reason, made.busy(GUEST)) == (result, guard, str(error), False)


def test_a_call_that_hangs_may_have_worked(host: OneHost, tmp_path: Path) -> None:
    host.errors["power"] = HypervisorTimeout("no answer within 5 s")
    made = executor(host, tmp_path)
    assert made.submit(command(power(Verb.SUSPEND)), at(0)) == []
    assert made.poll(at(2)) == []
    host.states[GUEST] = GuestState.PAUSED
    assert only(made.poll(at(4))).result is Result.DONE


@pytest.mark.parametrize(
    ("verb", "after", "result"),
    [
        (Verb.SHUTDOWN, GuestState.SHUTOFF, Result.DONE),
        (Verb.SHUTDOWN, GuestState.RUNNING, Result.FAILED),
        (Verb.REBOOT, GuestState.RUNNING, Result.FAILED),
    ],
)
def test_an_agent_that_restarts_asks_not_again(
    host: OneHost, tmp_path: Path, verb: Verb, after: GuestState, result: Result
) -> None:
    """The guest's state tells; whether it has rebooted nobody can say."""
    host.obeys = False
    made = executor(host, tmp_path)
    made.submit(command(power(verb)), at(0))
    del made
    host.states[GUEST] = after
    made = executor(host, tmp_path)
    ended = only(made.recover(at(10)) + made.poll(at(61)))
    assert (ended.result, made.busy(GUEST), len(host.asked)) == (result, False, 1)
    assert ended.reason.endswith(f"the guest is {after} on host-1")


def test_a_guest_without_a_definition_is_gone_when_it_is_off(host: OneHost, tmp_path: Path) -> None:
    host.errors["power"] = HypervisorTimeout("no answer within 5 s")
    made = executor(host, tmp_path)
    made.submit(command(power(Verb.SHUTDOWN)), at(0))
    host.remove(GUEST)
    assert only(made.poll(at(1))).result is Result.DONE


def test_a_guest_that_is_off_holds_no_lease(host: OneHost, tmp_path: Path) -> None:
    """It starts with its own knobs, and may be set anew then."""
    made = executor(host, tmp_path)
    made.submit(command(set_to(2048)), at(0))
    made.submit(command(set_to(2048, guest=OTHER), "cm-2"), at(0))
    given, done = made.submit(command(power(Verb.SHUTDOWN), "cm-3"), at(5))
    assert (given.command, given.result, done.result) == ("cm-1", Result.REVERTED, Result.DONE)
    assert given.reason.startswith("the guest was shut down")
    assert [lease.guest for lease in made.leases()] == [OTHER]
    made.submit(command(power(Verb.START), "cm-4"), at(6))
    assert only(made.submit(command(set_to(4096), "cm-5"), at(7))).result is Result.DONE


def test_a_guest_that_is_elsewhere_is_refused(host: OneHost, tmp_path: Path) -> None:
    host.remove(GUEST)
    with pytest.raises(GuestNotFound):
        host.state(GUEST)
    refused = only(executor(host, tmp_path).submit(command(power(Verb.START)), at(0)))
    assert (refused.guard, host.asked) == ("guest", [])
