"""What is kept of the controller: all of it, at every moment, and nothing leaves that is not."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.demos import CPU_RULES
from tests.pipeline.test_state_log import copied
from virtpilot.action import ReleaseKnob
from virtpilot.actuators.command import Signer
from virtpilot.clock import VirtualClock, seconds
from virtpilot.errors import StateError
from virtpilot.model import Command, Message, Outcome
from virtpilot.pipeline import window_files
from virtpilot.pipeline.bus.memory import MemoryBroker
from virtpilot.pipeline.demo import Demo
from virtpilot.pipeline.keeping import Entries, Keeper, Large, Part, Recent, Small
from virtpilot.pipeline.measured_fleet import ALSO
from virtpilot.pipeline.outbox import Outbox
from virtpilot.pipeline.state import StateLog, load
from virtpilot.rules.signals.evaluator import Evaluator
from virtpilot.topics import Topics
from virtpilot.tracked import Tracked

KEPT = ("epoch", "decisions", "guards", "alerts", "statuses", "outbox")


def test_at_every_moment_of_the_main_job_a_crash_would_lose_nothing(tmp_path: Path) -> None:
    """All that the parts hold is found on disk, with one whole save a minute and only changes between."""
    demo = Demo(tmp_path / "demo", rules=CPU_RULES)
    controller, folder = demo.controller, tmp_path / "demo" / "controller"
    phases: set[str] = set()
    for second in range(260):
        demo.step()
        if second % 7:
            continue
        controller._keeper.save()
        found = load(copied(folder, tmp_path / "copy") / "state.json")
        assert found is not None
        alive = msgspec.json.decode(msgspec.json.encode({name: controller._parts()[name].saved() for name in KEPT}))
        assert {name: found[name] for name in KEPT} == alive
        again = Evaluator(controller.rulebook.ruleset, also=ALSO)
        again.restore(found["signals"], window_files.load(folder))
        again.resume(found["turns"])
        assert again.firing_counts() == controller.rulebook.evaluator.firing_counts()
        phases |= {ladder["phase"] for ladder in found["decisions"]["ladders"].values()}
    demo.close()
    assert {"commanded", "measuring", "finished"} <= phases, "the moments that matter were among those looked at"


class FullDisk(StateLog):
    """A disk that takes nothing while `full`."""

    full = False

    def commit(self, changes: Any) -> None:
        if self.full:
            raise StateError("no space left")
        super().commit(changes)

    def replace(self, pieces: Any) -> None:
        if self.full:
            raise StateError("no space left")
        super().replace(pieces)


def test_what_could_not_be_saved_is_saved_whole_when_it_can_be(tmp_path: Path) -> None:
    file, items, clock = FullDisk(tmp_path / "state.json"), Tracked[str, int](), VirtualClock()
    recent: Recent[int] = Recent()
    keeper = Keeper(file, {"items": Entries(items, str), "recent": recent}, clock, seconds(10))
    keeper.save()
    items["a"] = 1
    file.full = True
    keeper.save()
    assert (keeper.reached(0), keeper.failures) == (False, 1)
    items["b"] = 2
    file.full = False
    recent.add("r", 3)
    keeper.save()
    assert keeper.reached(keeper.mark())
    assert load(tmp_path / "state.json") == {"items": {"a": 1, "b": 2}, "recent": {}}
    recent.add("r", 4)
    keeper.save()
    assert load(tmp_path / "state.json") == {"items": {"a": 1, "b": 2}, "recent": {"r": 4}}


def test_a_small_state_is_written_only_when_it_is_another(tmp_path: Path) -> None:
    state = {"n": 1}
    keeper = Keeper(StateLog(tmp_path / "state.json"), {"s": Small(lambda: state)}, VirtualClock(), seconds(10))
    keeper.save()
    keeper.save()
    assert sum(one.stat().st_size for one in tmp_path.glob("*.jsonl")) == 0
    state["n"] = 2
    keeper.save()
    assert load(tmp_path / "state.json") == {"s": {"n": 2}}


def test_no_command_leaves_while_the_state_cannot_be_saved(tmp_path: Path) -> None:
    demo = Demo(tmp_path, rules=CPU_RULES)
    controller = demo.controller
    controller._keeper._file = file = FullDisk(tmp_path / "full" / "state.json")
    listener = demo.broker.connect("listener")
    for topic in (demo.topics.commands("+"), demo.topics.outcomes("+")):
        listener.subscribe(topic)
    file.full = True
    while not controller.counters.commands:
        demo.step()
    for _ in range(5):
        demo.step()
    assert controller.save_failures > 0
    assert listener.receive(0) is None, "decided, but not on disk"
    file.full = False
    for _ in range(5):
        demo.step()
    heard = listener.receive(0)
    assert heard is not None, "sent once it is"
    demo.close()


def test_records_of_the_job_are_the_same_whether_anything_is_kept_or_not(tmp_path: Path) -> None:
    kept, free = Demo(tmp_path / "kept", rules=CPU_RULES), Demo(tmp_path / "free", rules=CPU_RULES)
    free.controller._keeper._file = None
    told = []
    for demo in (kept, free):
        for _ in range(250):
            demo.step()
        records = [entry.record for entry in demo.controller.entries()]
        told.append([(type(one).__name__, one.rule) for one in records if isinstance(one, Command | Outcome)])
        demo.close()
    assert told[0] == told[1] != []


@pytest.mark.parametrize("text", [str.upper, str.lower])
def test_entries_are_saved_by_their_text(text: Any) -> None:
    items = Tracked[str, int]()
    part = Entries(items, text)
    items["k"] = 1
    assert list(part.changes()) == [((text("k"),), 1)]
    assert list(part.changes()) == []
    del items["k"]
    assert list(part.changes()) == [((text("k"),), None)]
    assert part.saved() == {}


class Received:
    """A delivery that knows whether it was acknowledged."""

    message = Message("t", b"")

    def __init__(self) -> None:
        self.acked = False

    def ack(self) -> None:
        self.acked = True


def test_what_waits_for_a_slow_disk_is_only_what_must(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Saved at once, for this process may crash; commands and acknowledgements leave when the disk has it."""
    disk_goes_on, really = threading.Event(), os.fdatasync

    def slowly(handle: int) -> None:
        assert disk_goes_on.wait(30)
        really(handle)

    monkeypatch.setattr(os, "fdatasync", slowly)
    clock = VirtualClock()
    broker, topics = MemoryBroker(clock), Topics("c")
    host = broker.connect("host")
    host.subscribe(topics.commands("+"))
    outbox = Outbox(broker.connect("controller"), topics, Signer(Ed25519PrivateKey.generate()))
    keeper = Keeper(StateLog(tmp_path / "state.json"), {"outbox": outbox.part}, clock, seconds(10))
    keeper.save()
    command = Command(
        id="cm-1", cause="dc-1", host="h1", action=ReleaseKnob(guest="g", knob="cpu_shares"), rule="r",
        issued_ns=clock.now_ns(), not_after_ns=clock.now_ns() + seconds(30), epoch=1,
    )  # fmt: skip
    outbox.add([command])
    keeper.save()
    delivery = Received()
    outbox.acknowledge(delivery, keeper)
    outbox.send(keeper, clock.now_ns())
    assert outbox.waits()
    assert (host.receive(0), delivery.acked) == (None, False)
    found = load(tmp_path / "state.json")
    assert found is not None
    assert list(found["outbox"]) == ["cm-1"]
    disk_goes_on.set()
    keeper.settle()
    outbox.send(keeper, clock.now_ns())
    assert delivery.acked
    assert host.receive(0) is not None
    keeper.close()


def test_a_whole_is_made_piece_by_piece_while_changes_go_on(tmp_path: Path) -> None:
    """Between two pieces the crash would lose nothing, and no call makes more than one slice."""
    items, clock, made = Tracked[str, int](), VirtualClock(), []

    def fragments() -> Iterator[bytes]:
        for number, text in enumerate((b"[0", b",1", b",2]")):
            made.append(number)
            yield text

    parts: dict[str, Part] = {"large": Large(fragments), "items": Entries(items, str)}
    keeper = Keeper(StateLog(tmp_path / "state.json"), parts, clock, seconds(10))
    keeper.save()
    clock.advance(11)
    keeper.tick()
    for step in range(6):
        made.clear()
        items[f"k{step}"] = step
        keeper.work()
        assert len(made) <= 1
        found = load(tmp_path / "state.json")
        assert found is not None
        assert found["items"] | {f"k{step}": step} == dict(items)
    keeper.settle()
    keeper.close()
    assert load(tmp_path / "state.json") == {"large": [0, 1, 2], "items": dict(items)}
