"""What the guards are asked in a whole virtpilot: tags, the engine's machine, others' doings; and their alarms."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from virtpilot.clock import seconds
from virtpilot.events import By, Event, EventKind
from virtpilot.model import Decision, Kind, Message, Mode, Result, Signal, SignalState
from virtpilot.pipeline.alarms import BREAKER, OSCILLATION, STOPPED, Alarms
from virtpilot.pipeline.demo import Demo
from virtpilot.pipeline.rulebook import LIBRARY, RuleOptions

SCENARIO = """
name = "small"
[[hosts]]
name = "host-1"
cpus = 2
memory_mib = 16384
[[guests]]
name = "web"
host = "host-1"
vcpus = 2
memory_mib = 256
tags = {{ {tags} }}
cpu_cores = 2.0
[[guests]]
name = "batch"
host = "host-1"
vcpus = 2
memory_mib = 256
tags = {{ virtpilot_ignore = "yes" }}
cpu_cores = 2.0
"""


class Story:
    """One starved guest of a host, with the tags that a test gives it."""

    def __init__(self, folder: Path, tags: str) -> None:
        (folder / "scenario.toml").write_text(SCENARIO.format(tags=tags))
        rules = RuleOptions(paths=[str(LIBRARY / "cpu.yaml")], modes={"*": Mode.ACT})
        self.demo = Demo(folder / "demo", folder / "scenario.toml", rules)
        self.controller = self.demo.controller

    @property
    def guest(self) -> str:
        found = self.controller.rulebook.evaluator.latest(Kind.VM)
        return next(row.subject.id for row in found.values() if row.subject.name == "web")

    def decisions(self, count: int) -> list[Decision]:
        for _ in range(count):
            self.demo.step()
        found = [one.record for one in self.controller.entries()]
        return [one for one in found if isinstance(one, Decision) and one.subject.name == "web"]

    def reasons(self, guard: str, count: int = 60) -> set[str]:
        return {one.reason for one in self.decisions(count) if one.guard == guard}

    def event(self, **changes: Any) -> None:
        now_ns = self.demo.clock.now_ns()
        event = Event(id=f"ev-{now_ns}", cause="", host="host-1", guest=self.guest, name="web", at_ns=now_ns, **changes)
        bus = self.demo.broker.connect(f"hand-{now_ns}")
        bus.publish(Message(self.demo.topics.events("host-1"), msgspec.json.encode(event))).result(1)
        self.demo.step()


@pytest.fixture
def story(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Story]:
    made = Story(tmp_path, getattr(request, "param", 'tier = "web"'))
    yield made
    made.demo.close()


@pytest.mark.parametrize("story", ['virtpilot_engine = "true"'], indirect=True)
def test_a_guest_that_says_that_virtpilot_runs_on_it(story: Story) -> None:
    assert story.reasons("own-machine") == {"virtpilot itself runs on this guest (its tag virtpilot_engine)"}
    assert not [one for one in story.decisions(0) if one.accepted]


@pytest.mark.parametrize("story", ['virtpilot_most_cpu_shares = "1500"'], indirect=True)
def test_a_guests_own_cap(story: Story) -> None:
    told = "cpu_shares would be 2048, the guest's tag virtpilot_most_cpu_shares wants 1500 at most"
    assert story.reasons("bounds") == {told}


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"kind": EventKind.KNOB_CHANGED, "numbers": {"cpu_shares": 7.0}}, "set cpu_shares of it"),
        ({"kind": EventKind.STOPPED, "detail": "migrated"}, "moved it away from host-1"),
    ],
)
def test_what_others_do_to_a_guest_is_left_to_them(story: Story, changes: dict[str, Any], what: str) -> None:
    story.decisions(5)
    story.event(**changes)
    (reason,) = story.reasons("foreign-change")
    assert reason.startswith(f"somebody else {what}: the guest is left alone for another ")


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": EventKind.KNOB_CHANGED, "numbers": {"cpu_shares": 7.0}, "by": By.VIRTPILOT},
        {"kind": EventKind.STOPPED, "detail": "shutdown"},
        {"kind": EventKind.BALLOON_CHANGED, "numbers": {"memory_balloon_bytes": 1.0}},
    ],
)
def test_what_is_nobodys_interference(story: Story, changes: dict[str, Any]) -> None:
    story.decisions(5)
    story.event(**changes)
    assert story.reasons("foreign-change") == set()
    assert [one for one in story.decisions(0) if one.accepted]


def test_alarms_begin_once_end_once_and_survive_a_restart(story: Story) -> None:
    story.decisions(5)
    guards, fleet = story.controller.pilot.guards, story.controller.pilot.fleet
    now_ns = story.demo.clock.now_ns()
    for _ in range(5):
        guards.breakers.effect("starved", Result.INEFFECTIVE, now_ns)
    guards.stopped.why = "stopped by ann"
    alarms = Alarms("demo")

    def news(made: Alarms) -> list[tuple[str, str, SignalState]]:
        found: list[Signal] = made.news(now_ns, made.of_guards(guards, fleet))
        return [(one.rule, one.subject.id, one.state) for one in found]

    first = alarms.news(now_ns, alarms.of_guards(guards, fleet))
    assert {(one.rule, one.subject.id) for one in first} == {(STOPPED, "demo"), (BREAKER, "starved")}
    assert news(alarms) == []
    again = Alarms("demo")
    again.resume(first)
    assert news(again) == [], "told before the restart"
    guards.stopped.why = ""
    guards.breakers.effect("starved", Result.EFFECTIVE, now_ns)
    ended = [(STOPPED, "demo", SignalState.INACTIVE), (BREAKER, "starved", SignalState.INACTIVE)]
    assert sorted(news(again)) == sorted(ended)


def test_a_guest_that_goes_to_and_fro_is_alarmed_about(story: Story) -> None:
    story.decisions(5)
    guards, clock = story.controller.pilot.guards, story.demo.clock
    row = story.controller.pilot.fleet.guest(story.guest)
    assert row is not None
    for number, (here, there) in enumerate([("host-2", "host-1"), ("host-1", "host-2")]):
        request = msgspec.structs.replace(_request(story), host=here, target=there)
        guards.started(request, f"cm-{number}", clock.now_ns())
        guards.finished(f"cm-{number}", clock.now_ns() + seconds(number))
    story.demo.step()
    signals = [one.record for one in story.controller.entries() if isinstance(one.record, Signal)]
    (alarm,) = [one for one in signals if one.rule == OSCILLATION]
    assert (alarm.subject.name, alarm.state, alarm.severity) == ("web", SignalState.FIRING, "warning")
    assert alarm.annotations["way"] == "the guest went from host-2 to host-1 to where it is"


def _request(story: Story) -> Any:
    from tests.guards.asked import wanted

    return wanted(guest=story.guest)
