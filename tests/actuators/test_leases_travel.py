"""A lease goes where its guest goes: one holder at the end, whoever moved the guest and whoever was killed when."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.actuators.crash_scenes import BASELINE, Killed
from tests.actuators.one_host import GUEST, SHARES, at, command, move, release, set_to
from tests.actuators.two_hosts import HOSTS, TwoHosts
from virtpilot.actuators.lifecycle import Point
from virtpilot.errors import HypervisorError
from virtpilot.events import EventKind
from virtpilot.hypervisor import GuestState
from virtpilot.model import Result


@pytest.fixture
def pair(tmp_path: Path) -> TwoHosts:
    """Two hosts whose agents run; the guest on the first has a lease until second 60."""
    pair = TwoHosts(tmp_path)
    for name in HOSTS:
        pair.start(name, at(0))
    pair.executors["host-1"].submit(command(set_to(2048)), at(0))
    return pair


def arrive(pair: TwoHosts) -> None:
    """Let both agents notice that the guest has moved by hand."""
    pair.executors["host-1"].look_at(GUEST, left=True)
    pair.executors["host-2"].look_at(GUEST)
    assert pair.executors["host-1"].poll(at(20)) == pair.executors["host-2"].poll(at(20)) == []


def test_a_guest_moved_by_hand_takes_its_lease_along(pair: TwoHosts) -> None:
    pair.move(GUEST, "host-2")
    arrive(pair)
    assert pair.holders(GUEST) == ["host-2"]
    (lease,) = pair.executors["host-2"].leases()
    assert (lease.baseline, lease.value, lease.end_ns, lease.command) == (1024, 2048, at(60), "cm-1")
    ((left, by),) = pair.executors["host-1"].news()
    ((taken, taken_by),) = pair.executors["host-2"].news()
    assert (left.kind, taken.kind, by, taken_by) == (EventKind.LEASE_LEFT, EventKind.LEASE_TAKEN, "cm-1", "cm-1")
    (ended,) = pair.executors["host-2"].poll(at(60))
    assert (ended.result, ended.host, ended.cause, pair.value(GUEST)) == (Result.REVERTED, "host-2", "cm-1", 1024)
    assert pair.hosts["host-2"].notes[GUEST] == ""


def test_there_and_back_again(pair: TwoHosts) -> None:
    """The first host holds it again; nobody ever holds it twice."""
    pair.move(GUEST, "host-2")
    arrive(pair)
    pair.move(GUEST, "host-1")
    pair.executors["host-2"].look_at(GUEST, left=True)
    pair.executors["host-1"].look_at(GUEST)
    for made in pair.executors.values():
        made.poll(at(30))
    assert pair.holders(GUEST) == ["host-1"]
    (ended,) = pair.executors["host-1"].poll(at(60))
    assert (ended.result, pair.value(GUEST)) == (Result.REVERTED, BASELINE)


def test_a_guest_that_is_still_on_its_way_is_left_to_its_source(pair: TwoHosts) -> None:
    """On the target it is there, paused, while it runs at the source."""
    note = pair.hosts["host-1"].notes[GUEST]
    target = pair.hosts["host-2"]
    target.states[GUEST], target.knobs[GUEST, SHARES], target.notes[GUEST] = GuestState.PAUSED, 2048, note
    made = pair.executors["host-2"]
    made.look_at(GUEST)
    assert (made.poll(at(5)), made.leases()) == ([], [])
    target.states[GUEST] = GuestState.RUNNING
    made.poll(at(7))
    assert made.leased(GUEST, SHARES)


@pytest.mark.parametrize("act", ["set", "release"])
def test_a_command_that_comes_before_the_look_finds_the_lease(pair: TwoHosts, act: str) -> None:
    """The baseline is the one from before, not the value that the guest came with."""
    pair.move(GUEST, "host-2")
    made = pair.executors["host-2"]
    action = set_to(4096, 2048) if act == "set" else release()
    outcomes = made.submit(command(action, "cm-2", host="host-2"), at(10))
    assert [outcome.result for outcome in outcomes] == [Result.DONE if act == "set" else Result.REVERTED]
    made.poll(at(70))
    assert (pair.value(GUEST), made.leases()) == (BASELINE, [])


def test_a_release_of_what_has_left_fails(pair: TwoHosts) -> None:
    """It is not given back here: the source says so, and lets go."""
    pair.move(GUEST, "host-2")
    (failed,) = pair.executors["host-1"].submit(command(release(), "cm-2"), at(10))
    assert (failed.result, failed.command, pair.holders(GUEST)) == (Result.FAILED, "cm-2", [])
    assert "the lease is where the guest is" in failed.reason


def test_an_agent_that_was_away_takes_the_note_over_its_own_journal(pair: TwoHosts) -> None:
    """The guest left, got another lease there, and came back, all while the first agent was down."""
    pair.move(GUEST, "host-2")
    pair.executors["host-2"].submit(command(set_to(4096, 2048, lease_s=100), "cm-2", host="host-2"), at(10))
    pair.move(GUEST, "host-1")
    made = pair.start("host-1", at(20))
    (lease,) = made.leases()
    assert (lease.command, lease.value, lease.baseline) == ("cm-2", 4096, BASELINE)
    made.poll(at(70))
    assert pair.value(GUEST) == 4096
    made.poll(at(110))
    assert pair.value(GUEST) == BASELINE


def test_a_lease_that_ended_on_the_way_is_given_back_on_arrival(pair: TwoHosts) -> None:
    pair.move(GUEST, "host-2")
    made = pair.start("host-2", at(500))
    assert (pair.value(GUEST), made.leases()) == (BASELINE, [])


def test_a_note_is_bounded_by_the_hosts_own_cap(pair: TwoHosts) -> None:
    """A note that says for ever is held no longer than any lease here."""
    host = pair.hosts["host-1"]
    host.notes[GUEST] = host.notes[GUEST].replace(str(at(60)), str(2**62)).replace("cm-1", "cm-7")
    pair.move(GUEST, "host-2")
    (lease,) = pair.start("host-2", at(20)).leases()
    assert (lease.command, lease.end_ns) == ("cm-7", at(20 + 86400))


@pytest.mark.parametrize(
    ("knob", "value", "baseline"),
    [
        ("ksm_run", 1, 0),  # the host's, not the guest's
        (SHARES, 2048, 1),
        (SHARES, 2048, 2**40),
        (SHARES, 2**40, 1024),
        ("memory_hard_limit", 2**30, 4097),
    ],
)
def test_a_note_can_lease_only_what_a_guests_knob_can_be(pair: TwoHosts, knob: str, value: int, baseline: int) -> None:
    """Anybody may have written it: at its end the host would set what it says."""
    pair.move(GUEST, "host-2")
    host = pair.hosts["host-2"]
    told = host.notes[GUEST].replace("2048", str(value)).replace("1024", str(baseline)).replace(SHARES, knob)
    host.notes[GUEST], host.knobs[GUEST, knob] = told, value
    made = pair.start("host-2", at(20))
    assert (made.leases(), host.notes[GUEST]) == ([], "")
    made.poll(at(70))
    assert (host.sets, host.knobs[GUEST, knob]) == ([], value)


@pytest.mark.parametrize(("value", "held"), [(2048, True), (300, False), (1024, False)])
def test_only_a_value_of_ours_is_taken_up(pair: TwoHosts, value: int, held: bool) -> None:
    """What somebody has set on the way stays, and the stale note goes."""
    pair.move(GUEST, "host-2")
    pair.hosts["host-2"].knobs[GUEST, SHARES] = value
    made = pair.start("host-2", at(20))
    assert made.leased(GUEST, SHARES) is held
    assert bool(pair.hosts["host-2"].notes[GUEST]) is held
    made.poll(at(70))
    assert pair.value(GUEST) == (BASELINE if held else value)


@pytest.mark.parametrize("anew", [False, True])
def test_a_value_that_is_not_ours_ends_the_lease_and_stays(pair: TwoHosts, anew: bool) -> None:
    """Somebody set it, or the guest was started anew (then nobody is to be blamed for it)."""
    made = pair.executors["host-1"]
    pair.start_anew(GUEST, 300) if anew else pair.hosts["host-1"].knobs.update({(GUEST, SHARES): 300})
    made.see(GUEST, SHARES, 300.0)
    (ended,) = made.poll(at(10))
    assert (ended.result, ended.guard, ended.after) == (
        Result.REVERTED,
        "" if anew else "foreign-change",
        {SHARES: 300},
    )
    assert (pair.value(GUEST), made.leases()) == (300, [])
    # It is the baseline from now on.
    made.submit(command(set_to(600, 300), "cm-2"), at(11))
    made.poll(at(80))
    assert pair.value(GUEST) == 300


def test_what_was_measured_before_our_own_change_is_no_foreign_change(pair: TwoHosts) -> None:
    made = pair.executors["host-1"]
    made.see(GUEST, SHARES, 1024.0)
    assert (made.poll(at(10)), pair.holders(GUEST)) == ([], ["host-1"])


def test_a_note_that_somebody_removed_is_written_again(pair: TwoHosts) -> None:
    host, made = pair.hosts["host-1"], pair.executors["host-1"]
    note = host.notes.pop(GUEST)
    made.look_at(GUEST)
    made.poll(at(10))
    assert host.notes[GUEST] == note


def test_a_guest_restored_from_a_saved_state_is_held_again(pair: TwoHosts) -> None:
    """A host's reboot saves its guests: they come back as they were, notes and values too."""
    host, made = pair.hosts["host-1"], pair.executors["host-1"]
    host.states[GUEST] = GuestState.SHUTOFF
    made.look_at(GUEST)
    (ended,) = made.poll(at(10))
    assert (ended.result, made.leases()) == (Result.REVERTED, [])
    host.states[GUEST] = GuestState.RUNNING
    made = pair.start("host-1", at(30))
    assert made.leased(GUEST, SHARES)
    made.poll(at(70))
    assert pair.value(GUEST) == BASELINE


def test_libvirt_is_away_when_the_guest_is_to_be_looked_at(pair: TwoHosts) -> None:
    pair.move(GUEST, "host-2")
    host, made = pair.hosts["host-2"], pair.executors["host-2"]
    host.errors["read_note"] = HypervisorError("no answer")
    made.look_at(GUEST)
    assert (made.poll(at(10)), made.leases()) == ([], [])
    host.errors.clear()
    made.poll(at(12))
    assert made.leased(GUEST, SHARES)


def by_command(pair: TwoHosts) -> None:
    """The first agent moves it, and sees it gone."""
    pair.executors["host-1"].submit(command(move(), "cm-2"), at(5))
    pair.move(GUEST, "host-2")
    pair.hosts["host-1"].jobs[-1].finish(leave=False)
    pair.executors["host-1"].poll(at(10))
    pair.executors["host-2"].look_at(GUEST)
    pair.executors["host-2"].poll(at(10))


def by_hand(pair: TwoHosts) -> None:
    pair.move(GUEST, "host-2")
    pair.executors["host-1"].look_at(GUEST, left=True)
    pair.executors["host-1"].poll(at(10))
    pair.executors["host-2"].look_at(GUEST)
    pair.executors["host-2"].poll(at(10))


def in_the_end(pair: TwoHosts) -> None:
    pair.executors["host-2"].poll(at(60))


def played(folder: Path, moves: Callable[[TwoHosts], None], kill: tuple[str, int] | None) -> tuple[TwoHosts, list[str]]:
    """Play the whole life of a lease that travels; `kill` ends one agent at its n-th passing of a point."""
    pair = TwoHosts(folder)
    passed: list[str] = []

    def reaching(name: str) -> Callable[[Point], None]:
        def reached(_point: Point) -> None:
            passed.append(name)
            if kill == (name, passed.count(name) - 1):
                raise Killed

        return reached

    for name in HOSTS:
        pair.start(name, at(0), reaching(name))
    try:
        pair.executors["host-1"].submit(command(set_to(2048)), at(0))
        moves(pair)
        in_the_end(pair)
    except Killed:
        pass
    return pair, passed


def passings(moves: Callable[[TwoHosts], None]) -> list[tuple[str, int]]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        passed = played(Path(folder), moves, None)[1]
    return [(name, number) for name in HOSTS for number in range(passed.count(name))]


CRASHES = [(moves, *where) for moves in (by_command, by_hand) for where in passings(moves)]


@pytest.mark.parametrize(("moves", "name", "number"), CRASHES)
@pytest.mark.parametrize("gone", [False, True], ids=["stays", "goes"])
def test_killed_on_either_side_at_any_point(
    tmp_path: Path, moves: Callable[[TwoHosts], None], name: str, number: int, gone: bool
) -> None:
    """Wherever the guest is then: one holder where the value is ours, none where it is not, the baseline at the end."""
    pair, _passed = played(tmp_path, moves, (name, number))
    if gone and pair.where(GUEST) == "host-1":
        pair.move(GUEST, "host-2")  # libvirt carries it on, or somebody moves it, while the agent is down
    pair.start(name, at(20))
    other = next(one for one in HOSTS if one != name)
    for one in (name, other):
        pair.executors[one].look_at(GUEST)
    for second in (21, 24, 30):
        for one in HOSTS:
            pair.executors[one].poll(at(second))
    assert pair.holders(GUEST) == ([] if pair.value(GUEST) == BASELINE else [pair.where(GUEST)])
    for second in (200, 260, 330, 400):
        for one in HOSTS:
            pair.executors[one].poll(at(second))
    assert (pair.value(GUEST), pair.holders(GUEST)) == (BASELINE, [])
    assert not any(made.busy(GUEST) for made in pair.executors.values())


def test_a_guest_carries_by_which_command_it_is_moved_until_it_is_there(pair: TwoHosts) -> None:
    """The target's agent tells its arrival as virtpilot's; one that comes by another way is nobody's."""
    source, target = pair.executors["host-1"], pair.executors["host-2"]
    assert [made.came_by(GUEST) for made in (source, target)] == ["", ""]
    source.submit(command(move(), "cm-2"), at(5))
    assert source.came_by(GUEST) == ""  # it leaves
    pair.move(GUEST, "host-2")
    assert target.came_by(GUEST) == "cm-2"
    target.look_at(GUEST)
    target.poll(at(10))
    assert (target.came_by(GUEST), target.leased(GUEST, SHARES)) == ("", True)


def test_a_guest_without_leases_carries_it_too(pair: TwoHosts) -> None:
    source, host = pair.executors["host-1"], pair.hosts["host-1"]
    source.submit(command(release(), "cm-3"), at(1))
    source.submit(command(move(), "cm-2"), at(5))
    assert "cm-2" in host.notes[GUEST]
    host.jobs[-1].fail("no route to host")
    source.poll(at(6))
    source.poll(at(7))
    assert host.notes[GUEST] == ""  # it stays


@pytest.mark.parametrize("leased", [False, True])
def test_what_cannot_be_written_holds_back_a_move_only_where_leases_are_to_go_along(
    pair: TwoHosts, leased: bool
) -> None:
    source, host = pair.executors["host-1"], pair.hosts["host-1"]
    if not leased:
        source.submit(command(release(), "cm-3"), at(1))
    host.errors["write_note"] = HypervisorError("cannot acquire state change lock")
    source.submit(command(move(), "cm-2"), at(5))
    assert len(host.jobs) == int(not leased)


def test_how_a_guest_came_is_not_known_where_libvirt_does_not_say(pair: TwoHosts) -> None:
    pair.executors["host-1"].submit(command(move(), "cm-2"), at(5))
    pair.move(GUEST, "host-2")
    pair.hosts["host-2"].errors["read_note"] = HypervisorError("no answer")
    assert pair.executors["host-2"].came_by(GUEST) == ""
