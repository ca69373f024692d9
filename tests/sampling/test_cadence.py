"""How often an agent samples: it obeys within its own bounds, and goes back by itself when nobody asks any more."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.thoroughness import examples
from virtpilot.clock import SECOND
from virtpilot.model import Sample, Sampling
from virtpilot.pipeline.cadence import MAX_SILENCE_S, Cadence, CadenceOptions

NOW = 1_700_000_000 * SECOND
WEB, DB, BATCH = (f"5f0a1b5e-0000-4000-8000-00000000000{number}" for number in (1, 2, 3))


def order(**given: Any) -> bytes:
    fields: dict[str, Any] = {"host": "h1", "at_ns": NOW, "until_ns": NOW + 20 * SECOND} | given
    return msgspec.json.encode(Sampling(**fields))


def cadence_of(tick_s: float = 10.0, **options: Any) -> Cadence:
    return Cadence("h1", CadenceOptions(**options), tick_s)


def due_times(cadence: Cadence, for_s: int, took_s: float = 0.0) -> list[float]:
    """Return when the fast guests are sampled, looking ten times a second."""
    found = []
    for tenth in range(for_s * 10):
        now = tenth * SECOND // 10
        if cadence.due(now):
            found.append(tenth / 10)
            cadence.sampled(now, took_s)
    return found


def test_a_guest_that_is_asked_for_comes_each_second_until_the_order_ends() -> None:
    cadence = cadence_of()
    cadence.take(order(fast=[WEB]), NOW, 0)
    assert due_times(cadence, 60) == [float(second) for second in range(20)]
    assert (cadence.fast, cadence.interval_s(WEB)) == (frozenset(), 10.0)


def test_an_order_that_is_repeated_goes_on_in_its_beat() -> None:
    cadence = cadence_of()
    found = []
    for second in range(60):
        now = second * SECOND
        if second % 7 == 0 and second < 30:
            cadence.take(order(fast=[WEB], until_ns=NOW + now + 20 * SECOND), NOW + now, now)
        if cadence.due(now):
            found.append(second)
            cadence.sampled(now, 0.0)
    assert found == list(range(48))


def test_the_agents_own_bounds_hold() -> None:
    cadence = cadence_of(fastest_s=2.0, fast_guests=1)
    cadence.take(order(fast=[WEB, DB], fast_s=0.001), NOW, 0)
    assert (cadence.fast, cadence.interval_s(WEB), cadence.interval_s(DB)) == (frozenset({WEB}), 2.0, 10.0)
    cadence.take(order(fast=[WEB], until_ns=NOW + 10**6 * SECOND), NOW, 0)
    assert len(due_times(cadence, 300)) == 60  # two minutes at most without a word
    none = cadence_of(fast_guests=0)
    none.take(order(fast=[WEB]), NOW, 0)
    assert (none.fast, none.due(0)) == (frozenset(), False)


def test_what_the_tick_serves_as_often_gets_no_samples_of_its_own() -> None:
    cadence = cadence_of(tick_s=1.0)
    cadence.take(order(fast=[WEB]), NOW, 0)
    assert (cadence.fast, cadence.interval_s(WEB)) == (frozenset(), 1.0)


def test_samples_that_take_long_come_less_often() -> None:
    cadence = cadence_of(busy_ratio=0.2)
    cadence.take(order(fast=[WEB]), NOW, 0)
    # Half a second each: at a fifth of the time once in 2.5 s, the half second itself included.
    assert due_times(cadence, 10, took_s=0.5) == [0.0, 2.0, 4.0, 6.0, 8.0]


@pytest.mark.parametrize(("tick_s", "calm_s", "slowest", "every"), [
    (10, 30, 3, 3), (10, 300, 3, 3), (10, 30, 2, 2), (10, 25, 3, 2), (5, 30, 100, 6), (20, 30, 3, 1), (60, 60, 9, 1),
])  # fmt: skip
def test_a_calm_guest_is_left_out_of_some_ticks_but_never_silent_for_long(
    tick_s: float, calm_s: float, slowest: int, every: int
) -> None:
    cadence = cadence_of(tick_s=tick_s, slowest_ticks=slowest)
    cadence.take(order(calm=[DB], calm_s=calm_s), NOW, 0)
    sample = Sample("vm_disk", {"vm": DB, "disk": "vda"}, {"errors_total": 0}, NOW)
    host = Sample("host", {"host": "h1"}, {"cpus_count": 4}, NOW)
    told = []
    for _ in range(20 * every):
        cadence.beat()
        samples = cadence.told([host, sample])
        assert host in samples
        told.append(sample in samples)
    assert sum(told) == 20
    assert all(any(told[at : at + every]) for at in range(len(told) - every))
    assert every * tick_s <= max(MAX_SILENCE_S, tick_s)
    assert cadence.interval_s(DB) == tick_s * every


def test_calm_guests_do_not_all_come_in_the_same_tick() -> None:
    cadence = cadence_of()
    calm = [f"guest-{number}" for number in range(300)]
    cadence.take(order(calm=calm), NOW, 0)
    samples = [Sample("vm", {"vm": guest}, {"state_code": 1}, NOW) for guest in calm]
    for _ in range(3):
        cadence.beat()
        assert 60 < len(cadence.told(samples)) < 140


def test_a_guest_that_is_both_is_fast() -> None:
    cadence = cadence_of()
    cadence.take(order(calm=[WEB, DB], fast=[WEB]), NOW, 0)
    assert (cadence.fast, cadence.calm) == (frozenset({WEB}), frozenset({DB}))


def test_an_empty_order_takes_the_former_back() -> None:
    cadence = cadence_of()
    cadence.take(order(fast=[WEB], calm=[DB]), NOW, 0)
    cadence.take(order(), NOW, SECOND)
    assert (cadence.fast, cadence.calm, cadence.due(99 * SECOND)) == (frozenset(), frozenset(), False)


@pytest.mark.parametrize("payload", [
    b"", b"\xff", b"{}", b"[]", b'{"host": 1}', b"null",
    order(host="h2"), order(until_ns=NOW), order(until_ns=NOW - SECOND), order(fast_s=0), order(calm_s=-1.0),
    order(fast=[str(number) for number in range(10_001)]), order().replace(b'"fast_s":1.0', b'"fast_s":NaN'),
])  # fmt: skip
def test_what_is_malformed_late_or_for_another_host_changes_nothing(payload: bytes) -> None:
    cadence = cadence_of()
    cadence.take(order(fast=[WEB], calm=[DB]), NOW, 0)
    cadence.take(payload, NOW, 0)
    assert (cadence.fast, cadence.calm, cadence.orders, cadence.refused) == (frozenset({WEB}), frozenset({DB}), 1, 1)


guests = st.lists(st.sampled_from([WEB, DB, BATCH, "", "x" * 300]), max_size=8)


@settings(derandomize=True, deadline=None, max_examples=examples(200))
@given(
    st.lists(
        st.tuples(
            guests, guests, st.floats(allow_nan=False), st.floats(allow_nan=False), st.integers(-(10**12), 10**12)
        )
    )
)
def test_no_order_ever_leads_beyond_the_bounds(orders: list[tuple[list[str], list[str], float, float, int]]) -> None:
    cadence = cadence_of(fast_guests=2, fastest_s=1.5)
    for number, (fast, calm, fast_s, calm_s, lasts_ns) in enumerate(orders):
        payload = msgspec.json.encode(
            Sampling(host="h1", at_ns=NOW, until_ns=NOW + lasts_ns, fast=fast, fast_s=fast_s, calm=calm, calm_s=calm_s)
        )
        cadence.take(payload, NOW, number * SECOND)
        assert len(cadence.fast) <= 2
        assert all(1.5 <= cadence.interval_s(guest) <= MAX_SILENCE_S for guest in (WEB, DB, BATCH))
    cadence.expire(10**6 * SECOND)
    assert (cadence.fast, cadence.calm) == (frozenset(), frozenset())
