"""Migrations of which sight was lost, aborts that do not work at once, targets that lack something: hosts are asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.actuators.one_host import GUEST, SHARES, URI, OneHost, abort, at, command, executor, move, set_to
from virtpilot.action import Stuck, Way
from virtpilot.actuators.caps import Caps
from virtpilot.actuators.executor import Executor
from virtpilot.errors import HypervisorError, HypervisorTimeout
from virtpilot.hypervisor import GuestState
from virtpilot.model import Outcome, Result

POST_COPY = Way(when_stuck=Stuck.POST_COPY, within_s=5)


class AskingHost(OneHost):
    """A host that can ask the target; `other` is what that says."""

    def __init__(self) -> None:
        super().__init__()
        self.other: GuestState | None = GuestState.RUNNING
        self.asked_at: list[str] = []
        self.job = True
        self.lacks = ""
        self.ways_asked: list[Way] = []

    def unfit(self, guest: str, uri: str, way: Way = Way()) -> str:  # noqa: B008 - frozen
        self.answer("unfit")
        self.ways_asked.append(way)
        return self.lacks

    def there(self, guest: str, uri: str) -> GuestState | None:
        self.asked_at.append(uri)
        return self.other

    def moving(self, guest: str) -> bool:
        self.answer("moving")
        self.state(guest)
        return self.job


@pytest.fixture
def host() -> AskingHost:
    return AskingHost()


def only(outcomes: list[Outcome]) -> Outcome:
    (outcome,) = outcomes
    return outcome


def restarted(host: OneHost, folder: Path, made: Executor) -> Executor:
    made.close()
    return executor(host, folder)


def orphan(host: OneHost, folder: Path) -> Executor:
    """Begin a migration of a guest with a lease, and start the agent anew."""
    made = executor(host, folder)
    made.submit(command(set_to(2048)), at(0))
    made.submit(command(move(), "cm-2"), at(1))
    return restarted(host, folder, made)


@pytest.mark.parametrize(
    ("here", "other", "result", "reason"),
    [
        (None, GuestState.RUNNING, Result.DONE, "no longer on host-1, and is running on host-2"),
        (GuestState.SHUTOFF, GuestState.RUNNING, Result.DONE, "is shutoff on host-1, and is running on host-2"),
        (None, None, Result.DONE, "no longer on host-1"),
        (None, GuestState.NOSTATE, Result.FAILED, "no longer on host-1, but it is not known on host-2"),
        (None, GuestState.SHUTOFF, Result.FAILED, "no longer on host-1, but it is shutoff on host-2"),
        (GuestState.SHUTOFF, GuestState.NOSTATE, Result.FAILED, "shutoff on host-1, but it is not known on host-2"),
        (GuestState.SHUTOFF, None, Result.FAILED, "shutoff on host-1, and host-2 could not be asked"),
    ],
)
def test_a_guest_that_runs_here_no_longer_may_have_come_or_have_ended(
    host: AskingHost, tmp_path: Path, here: GuestState | None, other: GuestState | None, result: Result, reason: str
) -> None:
    made = orphan(host, tmp_path)
    host.other = other
    host.remove(GUEST) if here is None else host.states.update({GUEST: here})
    ended = next(outcome for outcome in made.recover(at(10)) if outcome.command == "cm-2")
    assert (ended.result, host.asked_at) == (result, [URI])
    assert ended.reason.endswith(reason)
    made.poll(at(11))
    assert made.leases() == []


def test_without_a_target_to_ask_a_guest_that_is_off_has_not_come(tmp_path: Path) -> None:
    """It may as well have been shut down from inside."""
    host = OneHost()
    made = orphan(host, tmp_path)
    host.states[GUEST] = GuestState.SHUTOFF
    failed, ended = made.recover(at(10)) + made.poll(at(11))
    assert (failed.result, ended.result, ended.command) == (Result.FAILED, Result.REVERTED, "cm-1")
    assert made.leases() == []


def test_post_copy_is_waited_for_over_a_restart(host: AskingHost, tmp_path: Path) -> None:
    """The guest is paused here, and runs there already: nothing is aborted, and it is no failure."""
    made = executor(host, tmp_path)
    made.submit(command(move(way=POST_COPY)), at(0))
    made.poll(at(5))
    host.states[GUEST] = GuestState.PAUSED
    made = restarted(host, tmp_path, made)
    assert made.recover(at(10)) == []
    assert made.poll(at(1000)) == []
    assert only(made.submit(command(abort(), "cm-2", at_ns=at(1000)), at(1001))).guard == "state"
    made.abort_migrations(at(1002))
    assert host.aborted == []
    host.remove(GUEST)
    assert only(made.poll(at(1003))).result is Result.DONE


def test_post_copy_that_never_ends_is_told_of(host: AskingHost, tmp_path: Path) -> None:
    made = executor(host, tmp_path)
    made.submit(command(move(way=POST_COPY)), at(0))
    made.poll(at(5))
    host.states[GUEST] = GuestState.PAUSED
    made = restarted(host, tmp_path, made)
    assert made.poll(at(3604)) == []
    failed = only(made.poll(at(3605)))
    assert (failed.result, host.aborted, made.busy(GUEST)) == (Result.FAILED, [], False)
    assert failed.reason.endswith("in post-copy; the guest is paused on host-1")


def test_post_copy_is_written_down_before_it_is_asked_for(host: AskingHost, tmp_path: Path) -> None:
    """Killed in between, the guest runs here: it is watched as any other."""
    made = executor(host, tmp_path)
    made.submit(command(move(way=POST_COPY)), at(0))
    host.errors["post_copy"] = KeyboardInterrupt()  # type: ignore[assignment] # the kill
    with pytest.raises(KeyboardInterrupt):
        made.poll(at(5))
    made = restarted(host, tmp_path, made)
    assert made.recover(at(10)) == []
    made.poll(at(129))
    assert host.aborted == []
    made.poll(at(131))
    assert host.aborted == [GUEST]


def test_post_copy_that_may_have_begun_is_asked_for_again_and_not_aborted(host: AskingHost, tmp_path: Path) -> None:
    made = executor(host, tmp_path)
    made.submit(command(move(way=POST_COPY)), at(0))
    host.errors["post_copy"] = HypervisorTimeout("no answer within 5 s")
    made.poll(at(5))
    made.poll(at(6))
    assert (host.jobs[0].switches, host.aborted) == (0, [])
    host.errors.clear()
    for second in (20, 21, 22):
        made.poll(at(second))
    assert (host.jobs[0].switches, host.aborted) == (1, [])
    host.jobs[0].finish()
    assert "by post-copy" in only(made.poll(at(23))).reason


NOT_NOW = HypervisorError("cannot acquire state change lock")


def test_an_abort_that_libvirt_did_not_take_is_asked_for_again(host: AskingHost, tmp_path: Path) -> None:
    made = executor(host, tmp_path, caps=Caps(migration_timeout_s=300))
    made.submit(command(move()), at(0))
    host.errors["abort_job"] = NOT_NOW
    made.poll(at(300))
    made.poll(at(301))
    assert host.aborted == []
    host.errors.clear()
    made.poll(at(302))
    made.poll(at(303))
    assert host.aborted == [GUEST]
    host.jobs[0].fail("operation aborted: canceled by client")
    assert only(made.poll(at(304))).reason.startswith("aborted: not finished within 300 s")


@pytest.mark.parametrize("lost", [False, True], ids=["job", "orphan"])
@pytest.mark.parametrize("by", ["command", "kill switch"])
def test_so_is_one_by_command_and_one_of_everything(host: AskingHost, tmp_path: Path, by: str, lost: bool) -> None:
    made = executor(host, tmp_path)
    made.submit(command(move()), at(0))
    if lost:
        made = restarted(host, tmp_path, made)
        made.recover(at(1))
    host.errors["abort_job"] = NOT_NOW
    made.abort_migrations(at(2)) if by == "kill switch" else made.submit(command(abort(), "cm-2"), at(2))
    assert host.aborted == []
    host.errors.clear()
    for second in (3, 4, 5):
        made.poll(at(second))
    assert host.aborted == [GUEST]


def test_everything_that_is_to_stop_includes_what_sight_was_lost_of(host: AskingHost, tmp_path: Path) -> None:
    made = orphan(host, tmp_path)
    made.recover(at(2))
    made.abort_migrations(at(3))
    assert host.aborted == [GUEST]
    failed = next(outcome for outcome in made.poll(at(63)) if outcome.command == "cm-2")
    assert failed.reason.startswith("aborted: everything is to stop; the agent restarted")
    made.poll(at(64))
    assert host.knobs[GUEST, SHARES] == 1024


def lost(host: AskingHost, folder: Path) -> Executor:
    """Begin a migration that comes to nothing, for the agent ends with it."""
    host.job, host.other = False, GuestState.NOSTATE
    host.errors["abort_job"] = HypervisorError("no job is active on the domain")
    made = orphan(host, folder)
    assert made.recover(at(10)) == []
    return made


def of_move(outcomes: list[Outcome]) -> list[tuple[Result, str]]:
    return [(outcome.result, outcome.reason) for outcome in outcomes if outcome.command == "cm-2"]


@pytest.mark.parametrize("other", [GuestState.NOSTATE, GuestState.SHUTOFF])
def test_what_neither_host_knows_of_any_more_has_come_to_nothing(
    host: AskingHost, tmp_path: Path, other: GuestState
) -> None:
    """What was asked for just before the end may take a moment to begin."""
    made = lost(host, tmp_path)
    host.other = other
    for second in (12, 14, 14.9):
        assert of_move(made.poll(at(second))) == []
    ((result, reason),) = of_move(made.poll(at(15)))
    assert (result, made.busy(GUEST)) == (Result.FAILED, False)
    assert reason.endswith("neither host knows of it any more; the guest still runs on host-1")


def test_what_begins_at_the_last_moment_is_aborted(host: AskingHost, tmp_path: Path) -> None:
    made = lost(host, tmp_path)
    host.errors.clear()
    assert of_move(made.poll(at(15))) == []
    assert (host.aborted, made.busy(GUEST)) == ([GUEST], True)


@pytest.mark.parametrize("sign", ["job", "arriving", "running", "no word of a job"])
def test_a_sign_of_it_has_it_watched_on(host: AskingHost, tmp_path: Path, sign: str) -> None:
    made = lost(host, tmp_path)
    host.job = sign == "job"
    host.other = {"arriving": GuestState.PAUSED, "running": GuestState.RUNNING}.get(sign, host.other)
    if sign == "no word of a job":
        host.errors["moving"] = HypervisorTimeout("no answer")
    assert of_move(made.poll(at(14))) == []
    host.job, host.other = False, GuestState.NOSTATE
    host.errors.pop("moving", None)
    quiet = 29 if sign == "no word of a job" else 15
    for second in range(15, quiet + 5):
        assert of_move(made.poll(at(second))) == []
    assert of_move(made.poll(at(quiet + 5)))


def test_a_target_without_an_answer_is_asked_seldom_and_says_nothing(host: AskingHost, tmp_path: Path) -> None:
    made = lost(host, tmp_path)
    host.other, host.asked_at = None, []
    for second in range(11, 130):
        assert of_move(made.poll(at(second))) == []
    assert 7 <= len(host.asked_at) <= 9
    assert of_move(made.poll(at(130)))


def test_an_abort_of_what_is_nowhere_is_over_as_soon(host: AskingHost, tmp_path: Path) -> None:
    made = lost(host, tmp_path)
    made.abort_migrations(at(11))
    ((result, reason),) = of_move(made.poll(at(15)))
    assert result is Result.FAILED
    assert reason.startswith("aborted: everything is to stop")


@pytest.mark.parametrize("way", [Way(), Way(copy_disks=False)])
def test_what_the_target_lacks_is_named_before_anything_is_begun(host: AskingHost, tmp_path: Path, way: Way) -> None:
    host.lacks = "the bridge br0, the disk vda, /srv/web-1.raw"
    made = executor(host, tmp_path)
    refused = only(made.submit(command(move(way=way)), at(0)))
    assert (refused.result, refused.guard) == (Result.REFUSED, "target")
    assert refused.reason == f"host-2 does not offer {host.lacks}"
    assert (host.jobs, host.notes, host.ways_asked, made.busy(GUEST)) == ([], {}, [way], False)


def test_a_move_whose_disks_are_not_known_to_be_shared_or_not_fails_before_it_begins(
    host: AskingHost, tmp_path: Path
) -> None:
    host.errors["unfit"] = HypervisorError("the disk vda cannot be seen from here")
    made = executor(host, tmp_path)
    failed = only(made.submit(command(move()), at(0)))
    assert (failed.result, failed.reason) == (Result.FAILED, "the disk vda cannot be seen from here")
    assert (host.jobs, made.busy(GUEST)) == ([], False)
