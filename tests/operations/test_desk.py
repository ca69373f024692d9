"""The desk: who may begin, what announced work is told, what a restart keeps."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.thoroughness import examples
from virtpilot.clock import SECOND
from virtpilot.errors import StateError
from virtpilot.pipeline.operations.announced import Announcement, Standing, Work
from virtpilot.pipeline.operations.desk import MAX_ANNOUNCED, Desk, SchedulingOptions
from virtpilot.planner.scheduling import Operation, SchedulingPolicy

NOW = 1_000_000 * SECOND
PLACES = {"out": 1, "in": 1, "cluster": 2}
SHORTEST, REMAINING = SchedulingPolicy.SHORTEST_JOB, SchedulingPolicy.SHORTEST_REMAINING


def desk(policy: SchedulingPolicy = SHORTEST, silent_s: float = 600.0) -> Desk:
    return Desk(SchedulingOptions(policy=policy, silent_s=silent_s), PLACES)


def backup(name: str, takes_s: float, *, pausable: bool = False, priority: int = 50) -> Announcement:
    return Announcement(
        id=name, takes_s=takes_s, kind=Work.BACKUP, guest="g-" + name, pausable=pausable, priority=priority
    )


def move(name: str, takes_s: float, source: str = "a", target: str = "b") -> Operation:
    places = frozenset({f"out {source}", f"in {target}", "cluster", f"guest {name}"})
    return Operation(id=f"want r {name}", arrived_s=NOW / SECOND, takes_s=takes_s, places=places)


def standings(made: Desk) -> dict[str, str]:
    return {one.work.id: one.standing for one in made.announced()}


def again(made: Desk) -> Desk:
    """Return the desk after a restart, its state by way of JSON."""
    other = desk()
    other.restore(msgspec.json.decode(msgspec.json.encode(made.saved())))
    return other


def test_one_backup_a_host_runs_and_the_shorter_goes_first() -> None:
    made = desk()
    for name, takes_s in (("long", 600.0), ("short", 60.0)):
        assert made.announce(backup(name, takes_s), "a", f"g-{name}", NOW) is not None
    assert made.turn([], [], NOW).begin == ()
    assert standings(made) == {"long": "waiting", "short": "running"}
    assert made.ended("short") is not None
    made.turn([], [], NOW + SECOND)
    assert standings(made) == {"long": "running"}
    assert made.ended("short") is None


def test_a_guest_is_not_moved_during_its_backup_and_not_backed_up_during_its_move() -> None:
    made = desk()
    made.announce(backup("x", 600.0), "a", "x", NOW)
    made.turn([], [], NOW)
    turn = made.turn([move("x", 5), move("y", 6, "c", "d")], [], NOW)
    assert (turn.begin, turn.waiting) == (("want r y",), {"want r x": "guest x"})
    assert made.words("guest x") == "waits for its turn (shortest-job): something else is being done with this guest"
    made.began("cm-1", move("y", 6, "c", "d"), NOW)
    made.announce(backup("y", 1.0), "c", "y", NOW)
    made.turn([], ["cm-1"], NOW)
    assert standings(made)["y"] == "waiting"
    made.turn([], [], NOW)  # the move has ended
    assert standings(made)["y"] == "running"


def test_the_same_announcement_again_is_only_asked_about() -> None:
    made = desk()
    made.announce(backup("x", 60.0), "a", "x", NOW)
    made.turn([], [], NOW)
    known = made.announce(backup("x", 60.0), "a", "x", NOW + SECOND)
    assert known is not None
    assert (known.standing, known.announced_ns, known.heard_ns) == (Standing.RUNNING, NOW, NOW + SECOND)


def test_who_only_announces_again_and_again_is_not_taken_for_gone() -> None:
    made = desk(silent_s=60.0)
    for name in ("x", "y"):
        made.announce(backup(name, 50.0), "a", name, NOW)
    for second in range(0, 200, 40):
        made.turn([], [], NOW + second * SECOND)
        made.announce(backup("y", 50.0), "a", "y", NOW + second * SECOND)
    assert standings(made) == {"y": "running"}


def test_pausable_work_is_paused_for_a_shorter_one_and_goes_on_where_it_was() -> None:
    made = desk(REMAINING)
    made.announce(backup("long", 600.0, pausable=True), "a", "x", NOW)
    made.turn([], [], NOW)
    made.announce(backup("short", 60.0), "a", "y", NOW + 100 * SECOND)
    made.turn([], [], NOW + 100 * SECOND)
    assert standings(made) == {"long": "paused", "short": "waiting"}
    made.turn([], [], NOW + 101 * SECOND)
    assert standings(made) == {"long": "paused", "short": "running"}
    made.ended("short")
    made.turn([], [], NOW + 160 * SECOND)
    long = made.heard("long", NOW + 170 * SECOND)
    assert long is not None
    assert (long.standing, long.done_s(NOW + 170 * SECOND)) == (Standing.RUNNING, 110.0)


def test_work_that_nobody_asks_about_ends_by_itself_and_other_goes_on() -> None:
    made = desk(silent_s=60.0)
    for name in ("gone", "next", "nobody"):
        made.announce(backup(name, 50.0), "a", name, NOW)
    made.turn([], [], NOW)
    assert standings(made) == {"gone": "running", "next": "waiting", "nobody": "waiting"}
    made.heard("next", NOW + 50 * SECOND)
    made.turn([], [], NOW + 70 * SECOND)
    assert standings(made) == {"gone": "running", "next": "waiting"}
    made.heard("next", NOW + 100 * SECOND)
    made.turn([], [], NOW + 111 * SECOND)
    assert standings(made) == {"next": "running"}


def test_a_long_backup_whose_script_asks_nothing_while_it_runs_keeps_its_guest() -> None:
    made = desk(REMAINING, silent_s=60.0)
    made.announce(backup("x", 6000.0, pausable=True), "a", "x", NOW)
    made.turn([], [], NOW)
    made.announce(backup("y", 50.0), "a", "y", NOW + 2000 * SECOND)
    made.turn([], [], NOW + 2000 * SECOND)
    made.turn([], [], NOW + 2001 * SECOND)
    made.heard("x", NOW + 2050 * SECOND)
    made.ended("y")
    # 4000 s are left of it.
    for second, there in ((2051, True), (6000, True), (6110, True), (6112, False)):
        made.turn([], [], NOW + second * SECOND)
        assert standings(made) == ({"x": "running"} if there else {}), second


def test_the_time_in_which_there_was_no_controller_makes_nobody_silent() -> None:
    made = desk(silent_s=60.0)
    for name in ("x", "y"):
        made.announce(backup(name, 50.0), "a", name, NOW)
    made.turn([], [], NOW)
    late = Desk(SchedulingOptions(policy=SHORTEST, silent_s=60.0), PLACES)
    late.restore(msgspec.json.decode(msgspec.json.encode(made.saved())))
    late.turn([], [], NOW + 3600 * SECOND)
    assert standings(late) == standings(made)
    late.turn([], [], NOW + 3661 * SECOND)
    assert standings(late) == {}


@pytest.mark.parametrize("by_s", [3600, -3600])
def test_clocks_that_are_set_end_no_work_and_no_move(by_s: int) -> None:
    made = desk(silent_s=60.0)
    for name, takes_s in (("x", 500.0), ("y", 50.0)):
        made.announce(backup(name, takes_s), "a", name, NOW)
        made.turn([], [], NOW)
    made.began("cm-1", move("z", 100), NOW)
    made.turn([], ["cm-1"], NOW)
    before = made.foresee(NOW)
    made.move(by_s * SECOND)
    now_ns = NOW + by_s * SECOND
    made.turn([], ["cm-1"], now_ns)
    after = made.foresee(now_ns)
    assert {name: run.ended_s - by_s for name, run in after.items()} == {
        name: run.ended_s for name, run in before.items()
    }
    assert standings(made) == {"x": "running", "y": "waiting"}


def test_a_clock_that_was_set_back_holds_no_work_for_ever() -> None:
    made = desk(silent_s=60.0)
    made.announce(backup("x", 60.0), "a", "x", NOW)
    made.turn([], [], NOW - 3600 * SECOND)
    assert standings(made) == {}


def test_the_policy_is_changed_while_it_runs_and_stays_so_after_a_restart() -> None:
    made = desk()
    for name, takes_s, priority in (("long", 600.0, 90), ("short", 60.0, 10)):
        made.announce(backup(name, takes_s, priority=priority), "a", name, NOW)
    made.choose(SchedulingPolicy.AGEING)
    made.turn([], [], NOW)
    assert standings(made) == {"long": "running", "short": "waiting"}
    assert again(made).policy is SchedulingPolicy.AGEING
    made.choose(None)
    assert again(made).policy is made.policy is SHORTEST


def test_a_restart_keeps_what_runs_what_waits_and_what_moves() -> None:
    made = desk()
    made.announce(backup("x", 600.0), "a", "x", NOW)
    made.announce(backup("y", 700.0), "a", "y", NOW)
    made.turn([], [], NOW)
    made.began("cm-1", move("z", 100), NOW)
    made.stopping("cm-1")
    other = again(made)
    assert (other.was_stopped("cm-1"), other.was_stopped("cm-2")) == (True, False)
    assert standings(other) == standings(made) == {"x": "running", "y": "waiting"}
    turn = other.turn([move("w", 1, "c")], ["cm-1"], NOW + SECOND)
    assert turn.waiting == {"want r w": "in b"}
    assert other.turn([move("w", 1, "c")], [], NOW + SECOND).begin == ("want r w",)
    assert not other.was_stopped("cm-1"), "it has ended"


def test_changes_tell_what_saved_would() -> None:
    made = desk()
    made.saved()
    made.announce(backup("x", 600.0), "a", "x", NOW)
    made.choose(REMAINING)
    made.began("cm-1", move("z", 100), NOW)
    made.stopping("cm-1")
    assert [place for place, _value in made.changes()] == [
        ("announced", "x"),
        ("moves", "cm-1"),
        ("stopped", "cm-1"),
        ("policy",),
    ]
    assert list(made.changes()) == []
    made.ended("x")
    assert list(made.changes()) == [(("announced", "x"), None)]


@pytest.mark.parametrize("document", [{"announced": {"x": 1}}, {"policy": "fair"}, [], "x", {"moves": {"c": {}}}])
def test_what_was_not_saved_here_is_refused(document: object) -> None:
    with pytest.raises(StateError):
        desk().restore(document)


def test_there_is_an_end_to_what_may_wait() -> None:
    made = desk()
    taken = [made.announce(backup(f"b{index}", 1.0), "a", "", NOW) for index in range(MAX_ANNOUNCED + 1)]
    assert [one is None for one in taken] == [False] * MAX_ANNOUNCED + [True]


def test_when_all_will_begin_is_foreseen() -> None:
    made = desk()
    for name, takes_s in (("a", 600.0), ("b", 60.0)):
        made.announce(backup(name, takes_s), "h", name, NOW)
    made.turn([], [], NOW)
    runs = made.foresee(NOW + 10 * SECOND)
    assert {name: (run.begun_s - NOW / SECOND, run.ended_s - NOW / SECOND) for name, run in runs.items()} == {
        "work b": (10.0, 60.0),
        "work a": (60.0, 660.0),
    }


def test_of_many_that_wait_only_the_first_are_foreseen() -> None:
    made = desk()
    for number in range(300):
        made.announce(backup(f"b{number}", 1000.0 - number), f"h{number % 5}", f"g-{number}", NOW)
    made.turn([], [], NOW)
    runs = made.foresee(NOW)
    # The five shortest run, the next hundred wait for them.
    assert set(runs) == {f"work b{number}" for number in range(195, 300)}
    assert runs["work b294"].begun_s == runs["work b299"].ended_s


@pytest.mark.parametrize("policy", SchedulingPolicy)
def test_what_runs_where_nobody_waits_is_foreseen_as_if_all_were_played(policy: SchedulingPolicy) -> None:
    made = desk(policy)
    for number, host in enumerate("aaabbcd"):
        made.announce(backup(host + str(number), 100.0 + number, pausable=True), host, f"g-{number}", NOW)
    made.turn([], [], NOW)
    made.began("cm-1", move("z", 100, "e", "f"), NOW)
    made.turn([move("y", 60, "a", "f"), move("x", 70, "a", "g")], ["cm-1"], NOW + SECOND)
    now_ns = NOW + 5 * SECOND
    whole = made.schedule.foresee(made._waiting, made._running(now_ns), now_ns / SECOND)
    assert len(whole) >= 9
    assert made.foresee(now_ns) == whole


class Queue(RuleBasedStateMachine):
    """Announcements, ends, other policies, restarts and time, in any order: no place is ever taken twice."""

    @initialize(policy=st.sampled_from(SchedulingPolicy))
    def begin(self, policy: SchedulingPolicy) -> None:
        self.desk, self.now_ns, self.count = desk(policy), NOW, 0

    @rule(takes_s=st.floats(1, 300), host=st.sampled_from("ab"), guest=st.sampled_from("xyz"), pausable=st.booleans())
    def announce(self, takes_s: float, host: str, guest: str, pausable: bool) -> None:
        self.count += 1
        work = backup(f"n{self.count}", takes_s, pausable=pausable, priority=self.count % 100)
        assert self.desk.announce(work, host, guest, self.now_ns) is not None

    def _running(self) -> list[str]:
        return [one.work.id for one in self.desk.announced() if one.standing is Standing.RUNNING]

    @rule(which=st.integers(0, 20))
    def end(self, which: int) -> None:
        running = self._running()
        if running:
            assert self.desk.ended(running[which % len(running)]) is not None

    @rule(passed_s=st.floats(0, 100))
    def turn(self, passed_s: float) -> None:
        self.now_ns += round(passed_s * SECOND)
        for one in list(self.desk.announced()):
            self.desk.heard(one.work.id, self.now_ns)
        self.desk.turn([], [], self.now_ns)

    @rule()
    def restart(self) -> None:
        before = list(self.desk.announced())
        self.desk = again(self.desk)
        assert list(self.desk.announced()) == before

    @rule(policy=st.sampled_from([None, *SchedulingPolicy]))
    def choose(self, policy: SchedulingPolicy | None) -> None:
        self.desk.choose(policy)

    @invariant()
    def no_place_is_taken_twice(self) -> None:
        running = [one for one in self.desk.announced() if one.standing is Standing.RUNNING]
        for taken in ([one.host for one in running], [one.guest for one in running]):
            assert len(taken) == len(set(taken))

    def teardown(self) -> None:
        """Whatever happened: when all that runs ends, one after the other, everything gets its turn."""
        for _ in range(2 * getattr(self, "count", 0)):
            self.desk.turn([], [], self.now_ns)
            for work in self._running():
                self.desk.ended(work)
        assert not hasattr(self, "desk") or list(self.desk.announced()) == []


Queue.TestCase.settings = settings(max_examples=examples(60), stateful_step_count=25, deadline=None)
TestQueue = Queue.TestCase
