"""The whole loop in virtual time: who is in trouble comes each second, the calm each third tick, hosts always."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.demos import CPU_RULES
from virtpilot.clock import SECOND
from virtpilot.lineprotocol import parse
from virtpilot.model import Sample
from virtpilot.pipeline.cadence import MAX_SILENCE_S
from virtpilot.pipeline.demo import TICK_S, Demo


class Played(NamedTuple):
    """All samples of a demo, those of guests and hosts by name."""

    demo: Demo
    guests: dict[str, list[Sample]]
    hosts: dict[str, list[Sample]]


def gaps(samples: list[Sample]) -> list[float]:
    return [(later.time_ns - earlier.time_ns) / SECOND for earlier, later in pairwise(samples)]


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Played:
    demo = Demo(tmp_path_factory.mktemp("demo"), rules=CPU_RULES)
    reader = demo.broker.connect("reader")
    reader.subscribe(demo.topics.metrics("+"))
    guests: dict[str, list[Sample]] = {}
    hosts: dict[str, list[Sample]] = {}
    for _ in range(460):
        demo.step()
        while (delivery := reader.receive(0)) is not None:
            for sample in parse(delivery.message.payload).samples:
                if sample.measurement == "vm":
                    guests.setdefault(sample.tags["name"], []).append(sample)
                elif sample.measurement == "host":
                    hosts.setdefault(sample.tags["host"], []).append(sample)
            delivery.ack()
    demo.close()
    return Played(demo, guests, hosts)


def test_the_guest_in_trouble_comes_each_second_until_it_is_well(played: Played) -> None:
    samples = played.guests["web-1"]
    fast = [sample for sample in samples if sample.fields["sample_interval_seconds"] == 1]
    assert len(fast) > 100
    assert max(gaps(samples)) <= 2 * TICK_S
    assert any(trail.helped for trail in played.demo.trails() if trail.name == "web-1")


def test_calm_guests_come_each_third_tick_and_none_is_ever_silent_for_long(played: Played) -> None:
    calm = [
        name for name, samples in played.guests.items() if samples[-1].fields["sample_interval_seconds"] == 3 * TICK_S
    ]
    assert len(calm) > 5
    for name in calm:
        assert gaps(played.guests[name])[-3:] == [3 * TICK_S] * 3
    assert all(max(gaps(samples)) <= MAX_SILENCE_S for samples in played.guests.values())


def test_hosts_come_with_every_tick(played: Played) -> None:
    for samples in played.hosts.values():
        assert set(gaps(samples)[1:]) == {TICK_S}
    fast = [sample.fields["guests_fast_count"] for samples in played.hosts.values() for sample in samples]
    assert max(fast) == 1
    assert all(samples[-1].fields["guests_calm_count"] > 0 for samples in played.hosts.values())


def test_an_agent_whose_controller_has_gone_samples_as_usual(tmp_path: Path) -> None:
    demo = Demo(tmp_path, rules=CPU_RULES)
    for _ in range(60):
        demo.step()
    agent = next(agent for agent in demo.agents if agent.cadence.fast)
    for _ in range(25):
        demo.fleet.advance(1.0)
        demo.clock.advance(1.0)
        agent.step(0)
    assert (agent.cadence.fast, agent.cadence.calm) == (frozenset(), frozenset())
    demo.close()
