"""Guests that belong together, apart, or on certain hosts: where such a one goes, and where it does not."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.planner.test_best_target import CROWDED, guest, host
from tests.thoroughness import examples
from virtpilot.planner.affinity import Company, Wishes, company, unwanted, wishes
from virtpilot.planner.placement import GuestLoad, NoMove, Placement, best_target

ROOMY, ROOMIER = host("host-2", used=2.0), host("host-3", used=1.0)


def tagged(*names: str, **values: str) -> GuestLoad:
    return replace(guest(), tags=dict.fromkeys(names, "true") | values)


def target(of: GuestLoad, *others: tuple[str, str]) -> str:
    """Where it goes, or why nowhere; the others by host and the tag that they have."""
    known = company(wishes(of.tags), [(at, {tag: "true"}) for at, tag in others])
    found = best_target(of, [CROWDED, ROOMY, ROOMIER], None, known)
    return found.host if isinstance(found, Placement) else found.reason


def test_tags_are_read_and_what_is_switched_off_is_not() -> None:
    tags = {
        "plb_affinity_web": "true",
        "plb_anti_affinity_db": "yes",
        "plb_pin_Host-2.lan": "1",
        "plb_affinity_x": "no",
    }
    assert wishes(tags) == Wishes(
        frozenset({"plb_affinity_web"}), frozenset({"plb_anti_affinity_db"}), frozenset({"host_2_lan"})
    )
    assert wishes({"tier": "gold", "plb_ignore_vm": "true"}) == Wishes()


def test_without_tags_nothing_but_headroom_counts() -> None:
    assert target(guest(), ("host-2", "plb_affinity_web")) == "host-3"


def test_one_that_is_apart_from_its_group_joins_it_before_it_goes_where_more_is_free() -> None:
    assert target(tagged("plb_affinity_web")) == "host-3"
    assert target(tagged("plb_affinity_web"), ("host-2", "plb_affinity_web")) == "host-2"
    assert target(tagged("plb_affinity_web"), ("host-2", "plb_affinity_db")) == "host-3"


def test_one_that_is_with_its_group_does_not_leave_it() -> None:
    found = target(tagged("plb_affinity_web"), ("host-1", "plb_affinity_web"), ("host-1", "plb_affinity_web"))
    assert "host-2: it would leave 2 of its affinity group for 0" in found
    both = [("host-1", "plb_affinity_web"), ("host-2", "plb_affinity_web"), ("host-2", "plb_affinity_web")]
    assert target(tagged("plb_affinity_web"), *both) == "host-2"


def test_those_of_an_anti_affinity_group_keep_apart_as_far_as_there_are_hosts_enough() -> None:
    db = tagged("plb_anti_affinity_db")
    assert target(db, ("host-3", "plb_anti_affinity_db")) == "host-2"
    full = target(db, ("host-2", "plb_anti_affinity_db"), ("host-3", "plb_anti_affinity_db"))
    assert "host-3: 1 of its anti-affinity group on it, 0 where it is" in full
    # More guests than hosts: it goes where fewest of them are, and never where more are than now.
    more = [(name, "plb_anti_affinity_db") for name in ("host-1", "host-1", "host-2", "host-3", "host-3")]
    assert target(db, *more) == "host-2"


@pytest.mark.parametrize(("pins", "goes"), [(["host_2"], "host-2"), (["host_2", "host_3"], "host-3")])
def test_a_pinned_guest_goes_to_no_other_host(pins: list[str], goes: str) -> None:
    assert target(tagged(*(f"plb_pin_{name}" for name in pins))) == goes


def test_a_guest_pinned_to_where_it_is_stays() -> None:
    found = best_target(tagged("plb_pin_host_1"), [CROWDED, ROOMY, ROOMIER])
    assert isinstance(found, NoMove)
    assert set(found.refused.values()) == {"the guest is pinned to others"}


def test_a_host_that_does_not_fit_is_not_taken_for_the_company() -> None:
    full = host("host-2", used=7.9)
    known = {"host-2": Company(together=3)}
    found = best_target(tagged("plb_affinity_web"), [CROWDED, full, ROOMIER], None, known)
    assert isinstance(found, Placement)
    assert found.host == "host-3"


_counts = st.fixed_dictionaries(
    {name: st.builds(Company, st.integers(0, 3), st.integers(0, 3)) for name in ("host-1", "host-2", "host-3")}
)


@settings(derandomize=True, deadline=None, max_examples=examples(100))
@given(_counts, st.sets(st.sampled_from(["plb_pin_host_1", "plb_pin_host_2", "plb_pin_host_3", "plb_affinity_a"])))
def test_no_move_makes_company_worse_or_breaks_a_pin(known: dict[str, Company], names: set[str]) -> None:
    moved = tagged(*names)
    found = best_target(moved, [CROWDED, ROOMY, ROOMIER], None, known)
    if isinstance(found, Placement):
        here, there = known["host-1"], known[found.host]
        assert not unwanted(wishes(moved.tags), found.host, there, here)
        assert there.apart <= here.apart
        assert there.together >= here.together
