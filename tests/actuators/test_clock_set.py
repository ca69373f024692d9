"""Somebody sets the machine's clock: no lease and no operation becomes longer or shorter by it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.actuators.one_host import GUEST, HOST, NOTHING, SHARES, START, OneHost, command, move, set_to
from virtpilot.actuators.caps import Caps
from virtpilot.actuators.executor import Executor
from virtpilot.actuators.journal import Journal
from virtpilot.actuators.note import read_note
from virtpilot.clock import SECOND, VirtualClock
from virtpilot.hypervisor import JobState, JobStatus
from virtpilot.model import Outcome, Result

STEPS = pytest.mark.parametrize("by_s", [-7200.0, -30.0, 30.0, 7200.0])


class Machine:
    """A host with an executor and a clock that can be set."""

    def __init__(self, folder: Path) -> None:
        self.host, self.clock, self._folder = OneHost(), VirtualClock(START), folder
        self.made = self._start()

    def _start(self) -> Executor:
        journal = Journal(self._folder / "journal.jsonl")
        caps = Caps(migration_timeout_s=300)
        return Executor(self.host, journal, host=HOST, caps=caps, hooks=NOTHING, clock=self.clock)

    def restart(self) -> list[Outcome]:
        self.made.close()
        self.made = self._start()
        return self.made.recover(self.clock.now_ns())

    def submit(self, action: object, name: str = "cm-1") -> list[Outcome]:
        return self.made.submit(command(action, name, at_ns=self.clock.now_ns()), self.clock.now_ns())  # type: ignore[arg-type]

    def after(self, seconds: float) -> list[Outcome]:
        """Let time pass, polled every second."""
        outcomes: list[Outcome] = []
        for _ in range(round(seconds)):
            self.clock.advance(1)
            outcomes += self.made.poll(self.clock.now_ns())
        return outcomes


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@STEPS
def test_a_lease_is_as_long_as_it_is(machine: Machine, by_s: float) -> None:
    machine.submit(set_to(2048))
    machine.after(10)
    machine.clock.step(by_s)
    assert machine.after(49) == []
    (ended,) = machine.after(1)
    assert (ended.result, ended.at_ns, machine.host.shares) == (Result.REVERTED, machine.clock.now_ns(), 1024)


@STEPS
def test_one_that_is_begun_right_after_is_not_moved_along(machine: Machine, by_s: float) -> None:
    """The clock was set, and nobody has looked since."""
    machine.clock.step(by_s)
    machine.submit(set_to(2048))
    assert machine.after(59) == []
    assert len(machine.after(1)) == 1


@STEPS
def test_the_guests_note_tells_the_new_end(machine: Machine, by_s: float) -> None:
    machine.submit(set_to(2048))
    machine.clock.step(by_s)
    machine.after(1)
    note = read_note(GUEST, machine.host.notes[GUEST])
    assert note[SHARES].end_ns == machine.made.leases()[0].end_ns == START + round((60 + by_s) * SECOND)


def test_a_small_correction_is_followed(machine: Machine) -> None:
    machine.submit(set_to(2048))
    machine.clock.step(1.5)
    assert machine.after(58) == []
    assert len(machine.after(1)) == 1


@STEPS
def test_a_migration_has_the_time_that_it_has(machine: Machine, by_s: float) -> None:
    machine.submit(move())
    machine.after(10)
    machine.clock.step(by_s)
    machine.after(289)
    assert machine.host.aborted == []
    machine.after(1)
    assert machine.host.aborted == [GUEST]
    assert machine.after(59) == []
    (failed,) = machine.after(1)
    assert "not finished within 300 s" in failed.reason


def test_no_progress_for_an_hour_that_never_was_is_no_reason_to_end_it(machine: Machine) -> None:
    machine.submit(move())
    job = machine.host.jobs[0]
    for number in range(1, 5):
        told = {"iterations_count": number, "data_remaining_bytes": 5e7}
        job.status = JobStatus(JobState.RUNNING, progress=told)
        machine.after(5)
    machine.clock.step(7200)
    machine.after(5)
    assert machine.host.aborted == []


@pytest.mark.parametrize(("by_s", "left_s"), [(-7200.0, 50), (7200.0, 1)])
def test_what_an_earlier_process_left_never_lasts_longer(machine: Machine, by_s: float, left_s: int) -> None:
    """A clock that is put right after a boot ends it at the time that was written, one set back at its length."""
    machine.submit(set_to(2048))
    machine.after(10)
    assert machine.restart() == []
    machine.clock.step(by_s)
    assert machine.after(left_s - 1) == []
    assert len(machine.after(1)) == 1


def test_an_operation_from_before_the_clock_was_set_back_has_no_more_time_than_before(machine: Machine) -> None:
    """Nobody saw that it was set: the agent was down."""
    machine.submit(move())
    machine.restart()
    machine.made.abort_migrations(machine.clock.now_ns())
    machine.clock.step(-7200)
    machine.restart()
    assert machine.after(10) == []
    (failed,) = machine.after(60)
    assert (failed.result, machine.made.busy(GUEST)) == (Result.FAILED, False)
