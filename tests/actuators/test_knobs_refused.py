"""Changes that the hypervisor refuses: nothing is held for what was never made, and what was made is not forgotten."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.actuators.one_host import GUEST, SHARES, OneHost, at, command, executor, set_to
from virtpilot.actuators.ledger import LeaseState
from virtpilot.errors import HypervisorError, HypervisorTimeout, KnobUnsupported
from virtpilot.model import Outcome, Result


@pytest.fixture
def host() -> OneHost:
    return OneHost()


def only(outcomes: list[Outcome]) -> Outcome:
    (outcome,) = outcomes
    return outcome


REFUSALS = [HypervisorError("operation failed: no"), KnobUnsupported("not supported")]


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_change_that_is_refused_for_good_holds_nothing(
    host: OneHost, tmp_path: Path, refusal: HypervisorError
) -> None:
    """Setting it back is refused as well, and need not be done: it reads what it read."""
    made = executor(host, tmp_path)
    host.errors["set_knob"] = refusal
    failed = only(made.submit(command(set_to(2048)), at(0)))
    assert (failed.result, failed.reason) == (Result.FAILED, f"{refusal}; it is back at 1024")
    assert (made.leases(), made.busy(GUEST), host.notes[GUEST]) == ([], False, "")
    host.errors.clear()
    assert only(made.submit(command(set_to(512), "cm-2"), at(1))).result is Result.DONE


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_second_change_that_is_refused_leaves_the_first(
    host: OneHost, tmp_path: Path, refusal: HypervisorError
) -> None:
    made = executor(host, tmp_path)
    made.submit(command(set_to(2048)), at(0))
    host.errors["set_knob"] = refusal
    assert only(made.submit(command(set_to(4096, 2048), "cm-2"), at(1))).result is Result.FAILED
    (lease,) = made.leases()
    assert (lease.command, lease.state, lease.value) == ("cm-1", LeaseState.HELD, 2048)


def test_what_cannot_be_taken_back_stays_in_hand(host: OneHost, tmp_path: Path) -> None:
    """It was rounded to what nobody wants, and libvirt refuses another change: it is tried until it works."""
    made = executor(host, tmp_path)

    def rounds(value: int) -> int:
        host.errors["set_knob"] = HypervisorError("operation failed: not now")
        return value - 48

    host.rounds = rounds
    failed = only(made.submit(command(set_to(2048)), at(0)))
    assert (failed.result, host.shares, made.busy(GUEST)) == (Result.FAILED, 2000, True)
    assert (made.poll(at(5)), made.busy(GUEST)) == ([], True)
    host.errors.clear()
    host.rounds = lambda value: value
    made.poll(at(40))
    assert (host.shares, made.leases()) == (1024, [])


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_lease_does_not_end_before_its_value_does(host: OneHost, tmp_path: Path, refusal: HypervisorError) -> None:
    """A driver that says no to giving back is asked again: the guest would stay throttled."""
    made = executor(host, tmp_path)
    made.submit(command(set_to(256)), at(0))
    host.errors["set_knob"] = refusal
    assert made.poll(at(60)) == []
    assert made.leased(GUEST, SHARES)
    host.errors.clear()
    assert only(made.poll(at(61))).after == {SHARES: 1024}


def test_a_change_that_may_come_still_is_not_taken_for_refused(host: OneHost, tmp_path: Path) -> None:
    """One call hangs, the next gets no turn behind it: what it reads meanwhile proves nothing."""
    made = executor(host, tmp_path)
    host.errors["set_knob"] = HypervisorTimeout("cannot acquire state change lock")
    made.submit(command(set_to(2048)), at(0))
    assert (made.poll(at(2)), made.busy(GUEST)) == ([], True)
    host.shares = 2048
    host.errors.clear()
    made.poll(at(9))
    assert (host.shares, made.leases()) == (1024, [])
