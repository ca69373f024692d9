"""What a guest carries in its metadata: read back as written, and nothing else is believed."""

from __future__ import annotations

from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.actuators.one_host import GUEST, OTHER, SHARES, at
from virtpilot.actuators.ledger import Lease, LeaseState
from virtpilot.actuators.note import Journey, read_journey, read_note, write_note

NUMBERS: Final = st.integers(-(2**62), 2**62)
WORDS: Final = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,40}", fullmatch=True)
KNOBS: Final = st.from_regex(r"[A-Za-z][A-Za-z0-9_.-]{0,40}", fullmatch=True)


def lease(*, knob: str = SHARES, prior: Lease | None = None, value: int = 2048) -> Lease:
    return Lease(guest=GUEST, knob=knob, baseline=1024, value=value, rule="starved", command="cm-1", end_ns=at(60),
                 state=LeaseState.HELD, prior=prior)  # fmt: skip


@given(
    st.lists(
        st.builds(
            Lease, guest=st.just(GUEST), knob=KNOBS, baseline=NUMBERS, value=NUMBERS, rule=WORDS, command=WORDS,
            end_ns=NUMBERS, state=st.just(LeaseState.HELD),
        ),
        max_size=8,
        unique_by=lambda one: one.knob,
    )
)  # fmt: skip
def test_what_is_written_is_read(leases: list[Lease]) -> None:
    assert read_note(GUEST, write_note(GUEST, leases)) == {one.knob: one for one in leases}


def test_nothing_leased_is_no_note() -> None:
    assert write_note(GUEST, []) == ""
    assert read_note(GUEST, "") == {}


def test_a_change_that_is_not_verified_is_carried_with_both_values() -> None:
    (read,) = read_note(GUEST, write_note(GUEST, [lease(value=4096, prior=lease())])).values()
    assert (read.value, read.prior and read.prior.value, read.baseline) == (4096, 2048, 1024)


GOOD: Final = write_note(GUEST, [lease()])


@pytest.mark.parametrize(
    "text",
    [
        write_note(OTHER, [lease()]),  # a copy of another guest, metadata and all
        GOOD.replace("leases", "tags"),
        GOOD.replace("2048", "many"),
        GOOD.replace("2048", "9" * 40),
        GOOD.replace("2048", "２０４８"),  # noqa: RUF001 - digits, but not ours
        GOOD.replace(SHARES, "cpu shares"),
        GOOD.replace("cm-1", "<cm-1"),
        GOOD.replace('end_ns="', 'begin_ns="'),
        GOOD.replace("starved", "x" * 200),
        "<!DOCTYPE a [<!ENTITY b 'c'>]>" + GOOD,
        GOOD + " " * 70_000,
        GOOD[:-3],
        "\x00",
        "no XML at all",
    ],
)
def test_what_is_not_ours_is_no_lease(text: str) -> None:
    assert SHARES in read_note(GUEST, GOOD)
    assert read_note(GUEST, text) == {}


def test_a_good_lease_beside_a_bad_one_is_read() -> None:
    text = write_note(GUEST, [lease(), lease(knob="vcpu_quota")]).replace('knob="vcpu_quota"', 'knob=""')
    assert read_note(GUEST, text) == {SHARES: lease()}


@given(st.text())
def test_any_text_is_borne(text: str) -> None:
    assert isinstance(read_note(GUEST, text), dict)


THERE: Final = Journey("cm-2", "host-2")


@pytest.mark.parametrize("leases", [[], [lease()]])
def test_a_move_stands_beside_the_leases(leases: list[Lease]) -> None:
    text = write_note(GUEST, leases, THERE)
    assert (read_journey(GUEST, text), list(read_note(GUEST, text))) == (THERE, [one.knob for one in leases])
    assert read_journey(GUEST, write_note(GUEST, leases)) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<leases",
        write_note(OTHER, [], THERE),
        write_note(GUEST, [], Journey("cm 2", "host-2")),
        write_note(GUEST, [], Journey("c" * 200, "host-2")),
        write_note(GUEST, [], Journey("cm-2", "")),
        write_note(GUEST, [], THERE).replace("move", "lease"),
    ],
)
def test_what_is_no_move(text: str) -> None:
    assert read_journey(GUEST, text) is None
