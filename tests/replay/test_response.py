"""How recorded guests respond to actions that were not taken: shares, moves, and where the record is believed."""

from __future__ import annotations

import pytest

from tests.replay.recorded import GIB, guest, host, knob
from virtpilot.model import Sample
from virtpilot.pipeline.response import Response

H1 = [host("h1", 0, 1.0), guest("a", "h1", 0, 0.75, 0.25), guest("b", "h1", 0, 0.75, 0.25)]
H2 = [host("h2", 0, 0.25), guest("c", "h2", 0, 0.25, 0.0)]


def value(samples: list[Sample], name: str, field: str) -> float:
    (found,) = (one for one in samples if one.tags.get("name", one.tags["host"]) == name and one.measurement != "knob")
    return float(found.fields[field])


def test_where_nothing_was_done_everything_stays_as_recorded() -> None:
    response = Response({}, {})
    assert response.respond("h1", H1) == {"h1": H1}


def test_more_shares_bring_more_of_what_is_wanted_and_the_others_pay() -> None:
    knobs: dict[tuple[str, str], int] = {}
    response = Response({}, knobs)
    response.respond("h1", H1)
    knobs["id-a", "cpu_shares"] = 2048
    found = response.respond("h1", H1)["h1"]
    # h1 has 4 cores, 1 is its own; both want 2: by 2 to 1 they get 2 and 1.
    assert value(found, "a", "cpu_usage_ratio") == pytest.approx(1.0)
    assert value(found, "a", "cpu_steal_ratio") == pytest.approx(0.0)
    assert value(found, "b", "cpu_usage_ratio") == pytest.approx(0.5)
    assert value(found, "b", "cpu_steal_ratio") == pytest.approx(0.5)
    assert value(found, "h1", "cpu_usage_ratio") == pytest.approx(1.0)


def test_a_moved_guest_is_measured_by_its_new_host_and_its_load_goes_with_it() -> None:
    places: dict[str, str] = {}
    response = Response(places, {})
    response.respond("h1", H1)
    response.respond("h2", H2)
    places["id-a"] = "h2"
    given = response.respond("h1", H1)
    assert set(given) == {"h1", "h2"}
    (moved,) = given["h2"]
    assert moved.tags["host"] == "h2"
    assert moved.fields["cpu_usage_ratio"] == pytest.approx(1.0)
    assert moved.fields["cpu_steal_ratio"] == pytest.approx(0.0)
    assert value(given["h1"], "b", "cpu_steal_ratio") == pytest.approx(0.0)
    assert value(given["h1"], "h1", "cpu_usage_ratio") == pytest.approx((1 + 2) / 4)
    assert value(given["h1"], "h1", "memory_available_bytes") == 36 * GIB
    there = response.respond("h2", H2)["h2"]
    assert value(there, "h2", "cpu_usage_ratio") == pytest.approx((0.5 + 0.5 + 2) / 4)
    assert value(there, "h2", "memory_available_bytes") == 28 * GIB
    assert value(there, "c", "cpu_usage_ratio") == pytest.approx(0.25)


def test_a_move_in_the_record_is_believed() -> None:
    places = {"id-a": "h2"}
    response = Response(places, {})
    response.respond("h1", H1)
    assert places == {"id-a": "h2"}
    response.respond("h3", [guest("a", "h3", 5, 0.9, 0.0)])
    assert places == {}


def test_a_knob_set_anew_in_the_record_is_believed() -> None:
    knobs = {("id-a", "cpu_shares"): 2048}
    response = Response({}, knobs)
    found = response.respond("h1", [knob("a", "h1", 0, 1024)])["h1"]
    assert found[0].fields == {"value_count": 2048}
    found = response.respond("h1", [knob("a", "h1", 5, 4096)])["h1"]
    assert found[0].fields == {"value_count": 4096}
    assert knobs == {}


def test_what_was_not_recorded_is_not_made_up() -> None:
    bare = Sample("vm", {"host": "h1", "vm": "id-a", "name": "a"}, {"state_code": 1}, 1)
    places = {"id-a": "h2"}
    response = Response(places, {("id-a", "cpu_shares"): 2048})
    assert response.respond("h1", [bare])["h2"][0].fields == {"state_code": 1}


def test_a_guest_that_was_stopped_uses_nothing_and_the_others_get_it() -> None:
    states: dict[str, int] = {}
    response = Response({}, {}, states)
    response.respond("h1", H1)
    states["id-a"] = 3
    found = response.respond("h1", H1)["h1"]
    assert (value(found, "a", "state_code"), value(found, "a", "cpu_usage_ratio")) == (3, 0)
    assert (value(found, "a", "cpu_steal_ratio"), value(found, "b", "cpu_steal_ratio")) == (0, 0)
    assert value(found, "b", "cpu_usage_ratio") == pytest.approx(1.0)
    assert value(found, "h1", "memory_available_bytes") == 32 * GIB
    states["id-a"] = 5
    assert value(response.respond("h1", H1)["h1"], "h1", "memory_available_bytes") == 36 * GIB


def test_another_state_in_the_record_is_believed() -> None:
    states = {"id-a": 5}
    response = Response({}, {}, states)
    response.respond("h1", H1)
    assert states == {"id-a": 5}
    stopped = guest("a", "h1", 5, 0.0, 0.0)
    response.respond("h1", [Sample("vm", stopped.tags, stopped.fields | {"state_code": 3}, stopped.time_ns)])
    assert states == {}


def test_a_quota_leaves_a_guest_no_more_than_it_says_and_the_others_have_the_rest() -> None:
    knobs: dict[tuple[str, str], int] = {}
    response = Response({}, knobs)
    response.respond("h1", H1)
    knobs["id-a", "vcpu_quota"] = 25_000
    found = response.respond("h1", H1)["h1"]
    # Two vCPUs of a quarter of a core each; b has what it wants of the two and a half cores that are left.
    assert value(found, "a", "cpu_usage_ratio") == pytest.approx(0.25)
    assert value(found, "a", "cpu_steal_ratio") == pytest.approx(0.75)
    assert value(found, "b", "cpu_usage_ratio") == pytest.approx(1.0)
    del knobs["id-a", "vcpu_quota"]
    knobs["id-a", "global_quota"] = 50_000
    assert value(response.respond("h1", H1)["h1"], "a", "cpu_usage_ratio") == pytest.approx(0.25)
    knobs["id-a", "global_quota"] = 0
    assert value(response.respond("h1", H1)["h1"], "a", "cpu_usage_ratio") == pytest.approx(0.75)


def test_a_quota_is_a_share_of_the_period_that_was_set() -> None:
    knobs = {("id-a", "vcpu_quota"): 25_000, ("id-a", "vcpu_period"): 50_000}
    response = Response({}, knobs)
    response.respond("h1", H1)
    assert value(response.respond("h1", H1)["h1"], "a", "cpu_usage_ratio") == pytest.approx(0.5)


def test_fewer_vcpus_can_use_no_more_than_there_are() -> None:
    knobs = {("id-a", "vcpus"): 1}
    response = Response({}, knobs)
    response.respond("h1", H1)
    found = response.respond("h1", H1)["h1"]
    assert value(found, "a", "vcpus_count") == 1
    assert value(found, "a", "cpu_usage_ratio") == pytest.approx(1.0)
    assert value(found, "a", "cpu_steal_ratio") == pytest.approx(0.0)
    assert value(found, "b", "cpu_usage_ratio") == pytest.approx(1.0)


def test_a_smaller_balloon_gives_the_host_what_the_guest_has_no_more() -> None:
    (own,) = (one for one in H1 if one.tags.get("name") == "a")
    memory = {"memory_balloon_bytes": 4 * GIB, "memory_available_bytes": 4 * GIB, "memory_usable_bytes": 3 * GIB}
    full = Sample("vm", own.tags, own.fields | memory | {"memory_used_ratio": 0.25}, own.time_ns)
    knobs: dict[tuple[str, str], int] = {}
    response = Response({}, knobs)
    before = response.respond("h1", [H1[0], full])["h1"]
    knobs["id-a", "memory_balloon"] = 2 * GIB
    after = response.respond("h1", [H1[0], full])["h1"]
    assert value(after, "a", "memory_balloon_bytes") == 2 * GIB
    assert value(after, "a", "memory_usable_bytes") == 1 * GIB
    assert value(after, "a", "memory_used_ratio") == pytest.approx(0.5)
    freed = value(after, "h1", "memory_available_bytes") - value(before, "h1", "memory_available_bytes")
    assert freed == 2 * GIB


def test_the_record_is_believed_where_a_balloon_has_another_size_in_it_by_then() -> None:
    knobs: dict[tuple[str, str], int] = {}
    response = Response({}, knobs)
    response.respond("h1", [*H1, knob("a", "h1", 0, 4 * GIB, "memory_balloon")])
    knobs["id-a", "memory_balloon"] = 2 * GIB
    response.respond("h1", [*H1, knob("a", "h1", 10, 3 * GIB, "memory_balloon")])
    assert knobs == {}
