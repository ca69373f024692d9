"""Where one guest goes: by examples, and by the properties that every answer has."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.thoroughness import examples
from virtpilot.planner.placement import MIB, GuestLoad, HostLoad, NoMove, Placement, Reserve, best_target

GIB = 1024 * MIB


def host(name: str, used: float = 1.0, available_gib: float = 32.0, **more: object) -> HostLoad:
    load = HostLoad(
        name=name,
        cpus=8,
        cpu_used_cores=used,
        memory_total_bytes=64 * GIB,
        memory_available_bytes=int(available_gib * GIB),
    )
    return replace(load, **more)


def guest(cores: float = 1.5, wanted: float = 3.6, memory_gib: float = 4.0, vcpus: int = 4) -> GuestLoad:
    return GuestLoad(
        id="g",
        name="web-1",
        host="host-1",
        cpu_cores=cores,
        cpu_wanted_cores=wanted,
        memory_bytes=int(memory_gib * GIB),
        vcpus=vcpus,
    )


CROWDED = host("host-1", used=8.0)


def test_the_host_with_most_headroom_after_the_move_is_taken_and_the_reason_tells_why() -> None:
    found = best_target(guest(), [CROWDED, host("host-3", used=2.6), host("host-2", used=1.0, available_gib=48)])
    assert isinstance(found, Placement)
    assert found.host == "host-2"
    assert found.reason == (
        "host-2: CPU 12 % now, 57 % after the move; memory 69 % free after it; "
        "the next best host-3 would be at 78 %, memory 44 % free"
    )
    assert found.cpu_after_ratio == pytest.approx(4.6 / 8)
    # staying would take (8 + 2.1) / 8 of the host: headroom -26 % against 42 %
    assert found.benefit_ratio == pytest.approx(1 - 4.6 / 8 - (1 - 10.1 / 8))


def test_what_the_guest_lacks_now_counts_on_the_target() -> None:
    """It uses 1.5 cores and wants 3.6: a host with room for 1.5 only does not do."""
    assert isinstance(best_target(guest(), [CROWDED, host("host-2", used=4.5)]), NoMove)
    assert isinstance(best_target(guest(wanted=1.5), [CROWDED, host("host-2", used=4.5)]), Placement)


def test_memory_can_be_what_is_scarce() -> None:
    hosts = [CROWDED, host("host-2", used=0.5, available_gib=11), host("host-3", used=2.0, available_gib=40)]
    found = best_target(guest(), hosts)
    assert isinstance(found, Placement)
    assert found.host == "host-3"


REFUSED = [
    (host("b", online=False), "offline"),
    (host("b", fresh=False), "its measurements are stale"),
    (host("b", used=math.nan), "its measurements are stale"),
    (host("b", memory_total_bytes=0), "its measurements are stale"),
    (host("b", cpus=2), "has 2 CPUs for 4 vCPUs"),
    (host("b", migrations_in_flight=2), "2 migrations under way already"),
    (host("b", used=4.0), "CPU would be at 95 %, more than 90 %"),
    (host("b", used=2.0, incoming_cores=2.0), "CPU would be at 95 %, more than 90 %"),
    (host("b", available_gib=10), "memory would be 9 % free, less than 10 %"),
    (host("b", available_gib=20, incoming_memory_bytes=10 * GIB), "memory would be 9 % free, less than 10 %"),
]


@pytest.mark.parametrize(("candidate", "why"), REFUSED, ids=[why for _, why in REFUSED])
def test_a_host_that_will_not_do_is_refused_by_name(candidate: HostLoad, why: str) -> None:
    found = best_target(guest(), [CROWDED, candidate])
    assert isinstance(found, NoMove)
    assert found.refused == {"b": why}
    assert found.reason == f"no beneficial move: b: {why}"


def test_a_small_host_keeps_the_reserve_in_bytes() -> None:
    small = host("b", memory_total_bytes=4 * GIB, available_gib=1.4)
    light = guest(memory_gib=1.0)
    assert isinstance(best_target(light, [CROWDED, small]), NoMove)
    assert isinstance(
        best_target(light, [CROWDED, small], Reserve(memory_bytes=100 * MIB, memory_ratio=0.05)), Placement
    )


def test_a_move_that_gains_little_is_refused() -> None:
    found = best_target(guest(cores=1.0, wanted=1.0), [host("host-1", used=2.0), host("host-2", used=1.0)])
    assert isinstance(found, NoMove)
    assert found.refused["host-2"].startswith("headroom would change by ")


@pytest.mark.parametrize(
    ("hosts", "why"),
    [
        ([], "web-1's present host host-1 is not measured"),
        ([host("b")], "web-1's present host host-1 is not measured"),
        ([replace(CROWDED, online=False), host("b")], "web-1's present host host-1 is offline"),
        ([replace(CROWDED, fresh=False), host("b")], "the measurements of web-1's present host host-1 are stale"),
        ([CROWDED], "there is no other host"),
    ],
)
def test_without_anything_to_compare_there_is_no_move(hosts: list[HostLoad], why: str) -> None:
    assert best_target(guest(), hosts) == NoMove(reason=f"no beneficial move: {why}")


@pytest.mark.parametrize("broken", [{"cpu_wanted_cores": math.nan}, {"cpu_cores": -1.0}, {"memory_bytes": -1}])
def test_a_guest_with_unusable_measurements_stays(broken: dict[str, float]) -> None:
    found = best_target(replace(guest(), **broken), [CROWDED, host("b")])
    assert isinstance(found, NoMove)


def test_one_name_twice_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="same name"):
        best_target(guest(), [CROWDED, host("b"), host("b", used=2)])


def test_equal_hosts_are_taken_by_name() -> None:
    found = best_target(guest(), [host("c"), host("b"), CROWDED, host("d")])
    assert isinstance(found, Placement)
    assert found.host == "b"


loads = st.builds(
    host,
    name=st.just(""),
    # few distinct values, so that ties are common
    used=st.sampled_from([0.0, 1.0, 2.5, 4.0, 7.9]) | st.floats(0, 9),
    available_gib=st.sampled_from([2.0, 10.0, 32.0]) | st.floats(0, 64),
    cpus=st.sampled_from([2, 8, 8, 64]),
    online=st.sampled_from([True, True, True, False]),
    fresh=st.sampled_from([True, True, True, False]),
    migrations_in_flight=st.integers(0, 3),
    incoming_cores=st.sampled_from([0.0, 0.0, 2.0]),
)
fleets = st.lists(loads, min_size=1, max_size=6).map(
    lambda found: [replace(load, name=f"host-{number}") for number, load in enumerate(found, start=1)]
)
guests = st.builds(
    guest,
    cores=st.floats(0, 4),
    wanted=st.floats(0, 4),
    memory_gib=st.floats(0.1, 16),
    vcpus=st.integers(1, 8),
)
reserves = st.builds(
    Reserve, cpu_ratio=st.floats(0, 0.5), memory_ratio=st.floats(0, 0.5), benefit_ratio=st.floats(0, 0.5)
)
repeatable = settings(derandomize=True, deadline=None, max_examples=examples(150))


@repeatable
@given(guests, fleets, reserves)
def test_a_target_is_usable_and_keeps_its_reserve(moved: GuestLoad, fleet: list[HostLoad], reserve: Reserve) -> None:
    found = best_target(moved, fleet, reserve)
    if isinstance(found, NoMove):
        assert found.reason.startswith("no beneficial move: ")
        return
    target = next(load for load in fleet if load.name == found.host)
    assert target.name != moved.host
    assert target.online
    assert target.fresh
    cpu = target.cpu_used_cores + target.incoming_cores + max(moved.cpu_wanted_cores, moved.cpu_cores)
    assert cpu <= target.cpus * (1 - reserve.cpu_ratio) + 1e-9
    left = target.memory_available_bytes - moved.memory_bytes
    assert left >= max(reserve.memory_ratio * target.memory_total_bytes, reserve.memory_bytes) - 1
    assert found.benefit_ratio >= reserve.benefit_ratio - 1e-9
    assert found.reason.startswith(found.host)


@repeatable
@given(guests, fleets, reserves, st.randoms(use_true_random=False))
def test_the_order_of_the_hosts_does_not_matter(
    moved: GuestLoad, fleet: list[HostLoad], reserve: Reserve, random: object
) -> None:
    shuffled = list(fleet)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert best_target(moved, shuffled, reserve) == best_target(moved, fleet, reserve)


@repeatable
@given(guests, fleets, reserves, st.data())
def test_a_candidate_made_emptier_never_loses_to_another(
    moved: GuestLoad, fleet: list[HostLoad], reserve: Reserve, data: st.DataObject
) -> None:
    before = best_target(moved, fleet, reserve)
    place = data.draw(st.integers(0, len(fleet) - 1))
    if fleet[place].name == moved.host:
        return
    freed, memory = data.draw(st.floats(0, 1)), data.draw(st.floats(0, 1))
    load = fleet[place]
    emptier = replace(
        load,
        cpu_used_cores=load.cpu_used_cores * (1 - freed),
        memory_available_bytes=int(
            load.memory_available_bytes + memory * (load.memory_total_bytes - load.memory_available_bytes)
        ),
    )
    after = best_target(moved, [*fleet[:place], emptier, *fleet[place + 1 :]], reserve)
    chosen = before.host if isinstance(before, Placement) else None
    assert chosen is None or isinstance(after, Placement)
    if isinstance(after, Placement):
        assert after.host in {chosen, emptier.name}
        if chosen == emptier.name:
            assert after.host == chosen
