"""The controller as a process: a kill in the middle of a `for`, rules that break and come right while it runs."""

from __future__ import annotations

import base64
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.processes.running import Process, Site
from tests.services import Mosquitto, until
from virtpilot.clock import SystemClock, seconds
from virtpilot.lineprotocol import encode_lines
from virtpilot.model import Message, Outcome, Result, Sample, Signal, SignalState
from virtpilot.pipeline.bus.mqtt import MqttBus, MqttOptions
from virtpilot.topics import BOOT_PROPERTY, SEQUENCE_PROPERTY, Topics

pytestmark = pytest.mark.server

BUSY = """\
virtpilot: 1
rules:
  - name: busy
    about: A host is busy.
    on: host
    when: cpu_usage_ratio > 50%
    for: 20s
"""
IDLE = """\
  - name: idle
    about: A host has nothing to do.
    on: host
    when: cpu_usage_ratio < 1%
    for: 20s
"""


STARVED = """\
virtpilot: 1
rules:
  - name: starved
    on: vm
    when: cpu_steal_ratio > 10%
    mode: act
    cooldown: 10m
    remedies:
      - set: {cpu_shares: current * 2}
        lease: 15m
"""
GUEST = "cd613e30-d8f1-6adf-91b7-584a2265b1f5"


class Host:
    """Publishes what a host would measure, at times of the test's choice, and hears what is said of it."""

    def __init__(self, port: int, cluster: str) -> None:
        self._topics = Topics(cluster)
        self._bus = MqttBus(MqttOptions(port=port), "a-host")
        self._bus.subscribe(self._topics.signals("+"))
        assert until(lambda: self._bus.generation)
        self.begun_ns = SystemClock().now_ns() - seconds(40)
        self.signals: list[Signal] = []
        self.orders = MqttBus(MqttOptions(port=port), "a-host-that-obeys")
        self.orders.subscribe(self._topics.commands("h1"))
        assert until(lambda: self.orders.generation)
        self.commands: list[str] = []

    def busy(self, *at_s: float) -> None:
        """Measure 90 % CPU at so many seconds from its beginning."""
        for moment_s in at_s:
            tags = {"cluster": self._topics.cluster, "host": "h1"}
            sample = Sample("host", tags, {"cpu_usage_ratio": 0.9}, self.begun_ns + seconds(moment_s))
            self._bus.publish(Message(self._topics.metrics("h1"), encode_lines([sample]))).result(10)

    def starving(self, steal: float = 0.5) -> None:
        """Measure now a guest that lacks a CPU (or not), and its shares."""
        tags = {"cluster": self._topics.cluster, "host": "h1", "vm": GUEST, "name": "web-1"}
        now_ns = SystemClock().now_ns()
        samples = [
            Sample("vm", tags, {"state_code": 1, "cpu_steal_ratio": steal}, now_ns),
            Sample("knob", tags | {"knob": "cpu_shares"}, {"value_count": 1024}, now_ns),
        ]
        # As an agent's messages are, and not those of somebody else who measures something too.
        numbers = {BOOT_PROPERTY: "b1", SEQUENCE_PROPERTY: str(now_ns)}
        self._bus.publish(Message(self._topics.metrics("h1"), encode_lines(samples), numbers)).result(10)

    def commanded(self) -> list[str]:
        """Return what commands have been heard so far, whoever understands them."""
        while (delivery := self.orders.receive(0)) is not None:
            self.commands.append(delivery.message.payload.decode())
            delivery.ack()
        return self.commands

    def obeyed(self) -> None:
        """Say that the last command that was heard is done."""
        (command,) = set(re.findall(r"cm-[0-9a-f]{16}", self.commanded()[-1]))
        done = Outcome(
            id="oc-1",
            cause=command,
            command=command,
            host="h1",
            guest=GUEST,
            result=Result.DONE,
            at_ns=SystemClock().now_ns(),
            action="set cpu_shares",
            rule="starved",
        )
        self._bus.publish(Message(self._topics.outcomes("h1"), msgspec.json.encode(done))).result(10)

    def states(self, rule: str) -> list[tuple[SignalState, float]]:
        """Return what a rule has said so far: its states with their times in seconds from the beginning."""
        while (delivery := self._bus.receive(0)) is not None:
            self.signals.append(msgspec.json.decode(delivery.message.payload, type=Signal))
            delivery.ack()
        return [(one.state, (one.at_ns - self.begun_ns) / 1e9) for one in self.signals if one.rule == rule]

    def close(self) -> None:
        """Leave."""
        self._bus.close()
        self.orders.close()


@pytest.fixture
def host(site: Site, broker: Mosquitto) -> Iterator[Host]:
    """A host whose clock the test owns."""
    made = Host(broker.port, site.cluster)
    yield made
    made.close()


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    """A file with one rule."""
    file = tmp_path / "rules.yaml"
    file.write_text(BUSY)
    return file


def handled(controller: Process, count: int) -> None:
    """Wait until so many samples are evaluated."""
    controller.reaches("virtpilot_controller_samples_total", count)


def saved(site: Site, text: str) -> bool:
    """Return whether the state on disk holds a word: the document, or what has changed since."""
    return any(f'"{text}"' in file.read_text() for file in (site.folder / "controller").glob("state*.json*"))


def saved_whole(site: Site, newest_ns: int) -> bool:
    """Return whether the document on disk has its one host's newest sample."""
    column = base64.b64encode(newest_ns.to_bytes(8, "little")).decode()
    return f'"time":"{column}"' in (site.folder / "controller" / "state.json").read_text()


@pytest.mark.parametrize("save_s", [0.2, 3600.0], ids=["saved whole", "only the changes saved"])
def test_killed_in_the_middle_of_a_for_it_goes_on_where_it_was(
    site: Site, host: Host, rules: Path, save_s: float
) -> None:
    """Forgotten, the condition would have to hold for 20 s from the next sample on, and would be told as pending anew.

    So it would where the newest samples are not saved: then more of them are missing than a `for` bears. Where only
    changes are saved there is therefore one sample alone, with which the signal changes.
    """
    controller = site.controller(rules, timing={"tick_s": 0.2, "save_s": save_s}).start().hears()
    before = range(0, 12, 2) if save_s < 1 else range(0, 2, 2)
    host.busy(*before)
    handled(controller, len(before))
    assert until(lambda: saved(site, "pending"), 20)
    if save_s < 1:
        assert until(lambda: saved_whole(site, host.begun_ns + seconds(before[-1])), 20)
    controller.kill()
    controller.start().hears()
    after = range(before.stop, 30, 2)
    host.busy(*after)
    handled(controller, len(after))
    firing = (SignalState.FIRING, 20.0)
    assert until(lambda: firing in host.states("busy"), 20.0), (host.signals, controller.output())
    assert host.states("busy") == [(SignalState.PENDING, 0.0), firing], "each said once"
    controller.terminate()
    assert saved(site, "firing")


def test_killed_when_its_command_is_heard_it_knows_it_and_gives_no_other(site: Site, host: Host, rules: Path) -> None:
    """A command leaves only when it is on disk: whoever heard it can be sure that a restart remembers it."""
    rules.write_text(STARVED)
    options = {"timing": {"tick_s": 0.2, "save_s": 3600.0}, "guards": {"warm_up_s": 0.0, "guest_cooldown_s": 0.0}}
    controller = site.controller(rules, **options).start().hears()
    host.starving()
    host.starving()
    assert until(lambda: len(host.commanded()) == 1), controller.output()
    controller.kill()
    controller.start().hears()
    for number in range(1, 6):
        host.starving()
        controller.reaches("virtpilot_controller_samples_total", 2 * number)
    assert controller.number("virtpilot_commands_total") == 0
    assert len(set(host.commanded())) == 1, "the one that was heard, perhaps again"
    controller.terminate()


def test_killed_in_the_middle_of_a_cooldown_it_goes_on_cooling_down(site: Site, host: Host, rules: Path) -> None:
    """The guest starves anew, and nothing else keeps the rule from acting again: only that it has just helped."""
    rules.write_text(STARVED)
    options = {"timing": {"tick_s": 0.2, "save_s": 3600.0}, "guards": {"warm_up_s": 0.0, "guest_cooldown_s": 0.0}}
    controller = site.controller(rules, **options).start().hears()
    host.starving()
    host.starving()
    assert until(lambda: len(host.commanded()) == 1), controller.output()
    host.obeyed()
    controller.reaches('virtpilot_outcomes_total{result="done"}', 1)
    assert until(lambda: saved(site, "finished"), 20.0)
    controller.kill()
    controller.start().hears()
    host.starving(0.0)
    host.starving()
    controller.reaches('virtpilot_decisions_refused_total{guard="cooldown"}', 1)
    assert controller.number("virtpilot_commands_total") == 0
    assert len(set(host.commanded())) == 1
    controller.terminate()


def test_broken_rules_change_nothing_mended_ones_come_into_force_and_stay_so_when_they_are_gone(
    site: Site, host: Host, rules: Path
) -> None:
    controller = site.controller(rules).start().hears()
    host.busy(0, 2)
    handled(controller, 2)
    rules.write_text(BUSY.replace("cpu_usage_ratio", "cpu_usage_rato").replace("for: 20s", "for: soon"))
    controller.reaches("virtpilot_rules_refused_total", 1)
    for line in (6, 7):
        assert re.search(rf"{re.escape(str(rules))}:{line}:\d+: ", controller.output()), controller.output()
    assert controller.number("virtpilot_rules_count") == 1
    assert controller.health() == (503, {"bus": True, "rules": False})
    host.busy(4, 6, 8, 10, 12, 14, 16, 18, 20)
    assert until(lambda: (SignalState.FIRING, 20.0) in host.states("busy"), 20.0), "the last good ones stay in force"
    assert [state for state, _at in host.states("virtpilot-rules-refused")] == [SignalState.FIRING]

    rules.write_text(BUSY + IDLE)
    controller.reaches("virtpilot_rules_count", 2)
    assert controller.health() == (200, {"bus": True, "rules": True})
    assert until(lambda: len(host.states("virtpilot-rules-refused")) == 2, 20.0)
    assert host.states("virtpilot-rules-refused")[1][0] is SignalState.INACTIVE
    assert len(host.states("busy")) == 2, "an unchanged rule's signal goes on"

    refused = controller.number("virtpilot_rules_refused_total")
    rules.unlink()
    controller.reaches("virtpilot_rules_refused_total", refused + 1)
    assert f"{rules}:0:0: cannot be read" in controller.output()
    assert controller.number("virtpilot_rules_count") == 2
    controller.terminate()


def test_a_hangup_reloads_at_once_also_what_looks_unchanged(site: Site, host: Host, rules: Path) -> None:
    controller = site.controller(rules).start().hears()
    assert "rules loaded" not in controller.output()
    host.busy(0, 2, 4)
    handled(controller, 3)
    controller.signal(signal.SIGHUP)
    assert until(lambda: "rules loaded" in controller.output()), controller.output()
    host.busy(6, 8, 10, 12, 14, 16, 18, 20)
    assert until(lambda: (SignalState.FIRING, 20.0) in host.states("busy"), 20.0), "what was pending still is"
    controller.terminate()
