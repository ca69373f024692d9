"""Adaptive sampling over the real broker: a simulated fleet whose guest comes near its threshold, calms, comes near."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise

import pytest

from tests.processes.running import Process, Site
from tests.services import Mosquitto, until
from virtpilot.clock import SECOND
from virtpilot.lineprotocol import parse
from virtpilot.model import Sample
from virtpilot.pipeline.bus.mqtt import MqttBus, MqttOptions
from virtpilot.simulator.scenario import guest_uuid

pytestmark = [pytest.mark.server, pytest.mark.slow]

NEAR, QUIET = guest_uuid("near"), guest_uuid("quiet")
TICK_S = 3.0
SCENARIO = """\
name = "approach"

[[hosts]]
name = "h1"
cpus = 4
memory_mib = 8192

[[guests]]
name = "near"
host = "h1"
vcpus = 1
memory_mib = 1024
cpu_cores = { shape = "steps", points = [[0, 0.1], [4, 0.7], [20, 0.1], [30, 0.7]] }

[[guests]]
name = "quiet"
host = "h1"
vcpus = 1
memory_mib = 1024
cpu_cores = 0.1
"""
RULES = """\
virtpilot: 1
rules:
  - name: busy
    about: It never fires here, it only comes near.
    on: vm
    when: cpu_usage_ratio > 80%
"""


class Stream:
    """The guests' samples as they come, by guest."""

    def __init__(self, bus: MqttBus) -> None:
        self._bus = bus
        self.guests: dict[str, list[Sample]] = {NEAR: [], QUIET: []}
        self.hosts: list[Sample] = []
        bus.subscribe("virtpilot/processes/metrics/+")

    def listen(self) -> None:
        while (delivery := self._bus.receive(0)) is not None:
            for sample in parse(delivery.message.payload).samples:
                if sample.measurement in {"vm", "host"}:
                    known = self.hosts if sample.measurement == "host" else self.guests[sample.tags["vm"]]
                    # Without a writer that reports them stored, agents send their samples again.
                    if not known or sample.time_ns > known[-1].time_ns:
                        known.append(sample)
            delivery.ack()

    def intervals(self, guest: str, last: int) -> list[float]:
        """Return the seconds between the last so many samples of a guest."""
        self.listen()
        return [(two.time_ns - one.time_ns) / SECOND for one, two in pairwise(self.guests[guest][-last:])]

    def declared(self, guest: str) -> float:
        """Return how often a guest is sampled, as its last sample says."""
        self.listen()
        return self.guests[guest][-1].fields["sample_interval_seconds"] if self.guests[guest] else 0.0


@pytest.fixture
def stream(broker: Mosquitto) -> Iterator[Stream]:
    with closing(MqttBus(MqttOptions(port=broker.port), "listener")) as bus:
        yield Stream(bus)


@pytest.fixture
def controller(site: Site) -> Process:
    rules = site.folder / "rules.yaml"
    rules.write_text(RULES)
    scenario = site.folder / "scenario.toml"
    scenario.write_text(SCENARIO)
    made = site.controller(rules, sampling={"every_s": 1.0, "hold_s": 2.0, "lease_s": 4.5}).start().up()
    site.process("fleet", scenario=str(scenario), timing={"tick_s": TICK_S}).start()
    return made


def test_a_guest_near_its_threshold_comes_each_second_while_it_is_near_and_somebody_asks(
    stream: Stream, controller: Process
) -> None:
    assert until(lambda: stream.declared(NEAR) == TICK_S, 30)
    assert until(lambda: stream.declared(NEAR) == 1.0, 40)
    assert until(lambda: max(stream.intervals(NEAR, 6) or [9]) < 2.5, 30), stream.intervals(NEAR, 6)
    assert controller.number('virtpilot_sampling_guests_count{pace="fast"}') == 1
    # It calms: nobody asks any more, and the agent goes back to its tick.
    assert until(lambda: stream.declared(NEAR) == TICK_S, 40)
    assert controller.number('virtpilot_sampling_guests_count{pace="fast"}') == 0
    # Near again; now the controller dies, and what it asked for ends by itself.
    assert until(lambda: stream.declared(NEAR) == 1.0, 60)
    controller.kill()
    ended = len(stream.guests[NEAR])
    assert until(lambda: stream.declared(NEAR) == TICK_S, 30)
    assert until(lambda: min(stream.intervals(NEAR, 3)) > TICK_S - 1, 40), stream.intervals(NEAR, 9)
    assert len(stream.guests[NEAR]) - ended < 20
    # The other guest has come with the tick all the time, and so has the host.
    assert stream.guests[NEAR][-1].fields["cpu_usage_ratio"] == pytest.approx(0.7, abs=0.1)
    # A tick that is late makes the next gap short, but there is no sample more than ticks.
    gaps = stream.intervals(QUIET, 99)
    assert len(gaps) <= sum(gaps) / TICK_S + 0.9, gaps
    assert {sample.fields["sample_interval_seconds"] for sample in stream.guests[QUIET]} == {TICK_S}
    assert len(stream.hosts) == len(stream.guests[QUIET])
    assert {sample.fields["guests_fast_count"] for sample in stream.hosts} == {0, 1}
