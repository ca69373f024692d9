"""Random commands, clock moves, foreign changes, outages and crashes: what must hold whatever happens."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.actuators.crash_scenes import Killed
from tests.actuators.one_host import GUEST, OTHER, SHARES, OneHost, OneJob, at, command, executor, move, release, set_to
from tests.thoroughness import examples
from virtpilot.action import Action, Way
from virtpilot.actuators.executor import Executor
from virtpilot.actuators.ledger import LeaseState
from virtpilot.actuators.lifecycle import Point
from virtpilot.errors import HypervisorError, HypervisorTimeout, HypervisorUnavailable
from virtpilot.hypervisor import GuestState, JobState, Move
from virtpilot.model import Command, Outcome, Result

GUESTS = st.sampled_from([GUEST, OTHER])
ENDINGS = {Result.DONE, Result.FAILED, Result.REFUSED}
# At which passing of a crash point the process dies during a step; mostly it does not.
KILLS = st.one_of(st.none(), st.none(), st.none(), st.integers(0, 6))


class CountingHost(OneHost):
    """A host that knows which guest each of its jobs moves."""

    def __init__(self) -> None:
        super().__init__()
        self.moves: list[tuple[str, OneJob]] = []

    def migrate(self, guest: str, uri: str, way: Way = Way()) -> Move:  # noqa: B008 - frozen
        job = super().migrate(guest, uri, way)
        self.moves.append((guest, self.jobs[-1]))
        return job


class OneExecutor(RuleBasedStateMachine):
    """One agent's executor among people, faults and crashes."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self.host = CountingHost()
        self.second = 0.0
        # What each knob was last set to by anybody but virtpilot.
        self.theirs = {GUEST: 1024, OTHER: 1024}
        self.commands: dict[str, Command] = {}
        self.outcomes: dict[tuple[str, Result], set[str]] = defaultdict(set)
        self.kill: int | None = None
        self.made: Executor | None = None
        self._open()

    def _open(self) -> None:
        self.kill = None
        self.made = executor(self.host, Path(self._folder.name), reached=self._reached)
        self._told(self.made.recover(self.now))

    @property
    def now(self) -> int:
        return at(self.second)

    def _reached(self, _point: Point) -> None:
        if self.kill is not None:
            self.kill -= 1
            if self.kill < 0:
                raise Killed

    def _told(self, outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            self.outcomes[outcome.command, outcome.result].add(outcome.id)

    def _do(self, work: Callable[[Executor], list[Outcome]], kill: int | None) -> None:
        """Do something, be killed meanwhile perhaps, and then come back."""
        assert self.made is not None
        self.kill = kill
        try:
            self._told(work(self.made))
        except Killed:
            self._die()
        self.kill = None

    def _die(self) -> None:
        """Lose what is in memory and start anew; the kernel lets go of a dead process's locks and files."""
        assert self.made is not None
        self.made._journal._unlock()
        self._open()

    def _submit(self, action: Action, kill: int | None) -> None:
        name = f"cm-{len(self.commands)}"
        self.commands[name] = command(action, name, at_ns=self.now)
        self._do(lambda made: made.submit(self.commands[name], self.now), kill)
        # What was not acknowledged is delivered again.
        self._do(lambda made: made.submit(self.commands[name], self.now), None)

    @rule(guest=GUESTS, right=st.integers(0, 4), lease_s=st.sampled_from([5, 60, 600]), kill=KILLS)
    def set(self, guest: str, right: int, lease_s: float, kill: int | None) -> None:
        """Set a value that no other command sets; mostly on the right expectation."""
        expected = self.host.knobs.get((guest, SHARES), 7) if right else 7
        self._submit(set_to(2000 + 2 * len(self.commands), expected, guest=guest, lease_s=lease_s), kill)

    @rule(guest=GUESTS, kill=KILLS)
    def release(self, guest: str, kill: int | None) -> None:
        self._submit(release(guest), kill)

    @rule(guest=GUESTS, kill=KILLS)
    def move(self, guest: str, kill: int | None) -> None:
        self._submit(move(guest), kill)

    @rule(data=st.data(), leave=st.booleans(), kill=KILLS)
    def end_a_move(self, data: st.DataObject, leave: bool, kill: int | None) -> None:
        """A migration comes to its end, for better or worse; nothing changed travels."""
        assert self.made is not None
        running = [each for each in self.host.moves if each[1].status.state is JobState.RUNNING]
        if not running:
            return
        guest, job = data.draw(st.sampled_from(running))
        if leave and guest in self.host.states and self.made.busy(guest):
            assert self.host.knobs[guest, SHARES] == self.theirs[guest]
            job.finish()
        else:
            job.fail("cut off")
        self._do(lambda made: made.poll(self.now), kill)

    @rule(seconds=st.sampled_from([0.2, 1, 7, 61, 130, 700]), kill=KILLS)
    def time_passes(self, seconds: float, kill: int | None) -> None:
        self.second += seconds
        self._do(lambda made: made.poll(self.now), kill)

    @rule(guest=GUESTS)
    def somebody_sets_it(self, guest: str) -> None:
        """A person sets a value of their own; not while a change is still to be taken back, which is not told apart."""
        assert self.made is not None
        unsettled = [lease for lease in self.made.leases() if lease.state is LeaseState.INTENDED]
        if guest in self.host.states and guest not in {lease.guest for lease in unsettled}:
            self.theirs[guest] += 2
            self.host.knobs[guest, SHARES] = self.theirs[guest] = 301 + 2 * self.theirs[guest] % 1000

    @rule(guest=GUESTS)
    def a_guest_is_shut_off_or_started(self, guest: str) -> None:
        """A start brings the guest's own value back."""
        if guest not in self.host.states:
            self.host.states[guest] = GuestState.RUNNING
        elif self.host.states[guest] is GuestState.RUNNING:
            self.host.states[guest] = GuestState.SHUTOFF
            return
        self.host.states[guest] = GuestState.RUNNING
        self.theirs[guest] = self.host.knobs[guest, SHARES] = 1024

    @rule(kind=st.sampled_from([HypervisorError, HypervisorTimeout, HypervisorUnavailable]),
          call=st.sampled_from(["state", "get_knob", "set_knob", "migrate", "poll"]))  # fmt: skip
    def libvirt_fails(self, kind: type[HypervisorError], call: str) -> None:
        self.host.errors[call] = kind(f"{call} fails")

    @precondition(lambda self: self.host.errors)
    @rule()
    def libvirt_works(self) -> None:
        self.host.errors.clear()

    @precondition(lambda self: self.commands)
    @rule(data=st.data(), kill=KILLS)
    def an_old_command_comes_again(self, data: st.DataObject, kill: int | None) -> None:
        """Acted upon once already, within its time or after it."""
        old = self.commands[data.draw(st.sampled_from(sorted(self.commands)))]
        sets, jobs = list(self.host.sets), len(self.host.jobs)
        self._do(lambda made: made.submit(old, self.now), None)
        assert (self.host.sets, len(self.host.jobs)) == (sets, jobs)

    @rule()
    def killed_between_two_steps(self) -> None:
        self._die()

    @invariant()
    def no_knob_is_changed_without_a_lease(self) -> None:
        assert self.made is not None
        for (guest, _knob), live in self.host.knobs.items():
            running = self.host.states[guest] is GuestState.RUNNING
            if running and live != self.theirs[guest]:
                assert self.made.leased(guest, SHARES), f"{live} is nobody's"

    @invariant()
    def a_command_and_a_result_have_one_outcome(self) -> None:
        assert self.made is not None
        self._told(self.made.unpublished())
        assert all(len(ids) == 1 for ids in self.outcomes.values())
        results = defaultdict(set)
        for name, result in self.outcomes:
            results[name].add(result)
        assert all(len(found & ENDINGS) <= 1 for found in results.values())

    @invariant()
    def nothing_is_done_twice(self) -> None:
        """A value is set once; once more at most for each later change that was taken back to it."""
        values = [value for _guest, value in self.host.sets if value >= 2000]
        undone = sum(result is Result.FAILED for _name, result in self.outcomes) + sum(
            lease.state is LeaseState.INTENDED for lease in (self.made.leases() if self.made else ())
        )
        assert len(values) - len(set(values)) <= undone + len(self.host.errors) * len(values)
        moved = [name for name, sent in self.commands.items() if sent.action == move(sent.action.guest)]
        assert len(self.host.jobs) <= len(moved)

    def teardown(self) -> None:
        try:
            self._the_end()
        finally:
            self._folder.cleanup()

    def _the_end(self) -> None:
        """When all faults are over and all time has passed, nothing is left and everything was told."""
        self.host.errors.clear()
        for _guest, job in self.host.moves:
            if job.status.state is JobState.RUNNING:
                job.fail("cut off")
        for _again in range(3):
            self.second += 1000
            self._do(lambda made: made.poll(self.now), None)
        assert self.made is not None
        assert self.made.leases() == []
        assert not any(map(self.made.busy, (GUEST, OTHER)))
        for guest, state in self.host.states.items():
            if state is GuestState.RUNNING:
                assert self.host.knobs[guest, SHARES] == self.theirs[guest]
        assert set(self.commands) <= {name for name, _result in self.outcomes}


TestExecutorAmongFaults = OneExecutor.TestCase
TestExecutorAmongFaults.settings = settings(
    derandomize=True,
    deadline=None,
    max_examples=examples(40),
    stateful_step_count=30,
    suppress_health_check=[HealthCheck.too_slow],
)
