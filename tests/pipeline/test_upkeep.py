"""Upkeep between messages: in turns, in slices, and the interpreter's own pauses with it."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

from virtpilot.clock import seconds
from virtpilot.model import Message
from virtpilot.pipeline.demo import Demo
from virtpilot.pipeline.pauses import Pauses
from virtpilot.pipeline.upkeep import Upkeep


def chore(name: str, slices: int, done: list[str]) -> Iterator[None]:
    for number in range(slices):
        done.append(f"{name}{number}")
        yield


def test_chores_take_turns() -> None:
    upkeep, done = Upkeep(), list[str]()
    upkeep.begin("a", chore("a", 3, done))
    upkeep.begin("b", chore("b", 1, done))
    upkeep.begin("a", chore("again", 1, done))
    assert upkeep.waits()
    upkeep.work()
    assert done == ["a0"]
    upkeep.finish()
    assert done == ["a0", "b0", "a1", "a2"], "what is under way is not begun anew"
    assert not upkeep.waits()
    upkeep.begin("a", chore("again", 1, done))
    upkeep.drop()
    upkeep.work()
    assert (len(done), upkeep.waits()) == (4, False)


def test_no_message_waits_for_more_than_a_slice_and_no_chore_for_all_messages(tmp_path: Path) -> None:
    demo, done = Demo(tmp_path), list[str]()
    controller = demo.controller
    demo.step()
    controller._next_tick_ns = sys.maxsize
    controller._upkeep.begin("long", chore("slice ", 100, done))
    sender = demo.broker.connect("sender")
    while controller._upkeep.waits():
        if len(done) < 5:
            for _ in range(20):
                sender.publish(Message(demo.topics.metrics("h9"), b"host,host=h9 load1_count=1 1\n"))
        handled, sliced = controller.counters.messages, len(done)
        controller.step(0.001)
        assert len(done) - sliced <= 1
        assert controller.counters.messages - handled <= 8
    assert controller.counters.messages >= 100
    demo.close()


class Ring:
    """Garbage that only the collector finds."""

    def __init__(self) -> None:
        self.me = self


def test_what_has_lived_for_long_is_looked_at_once_an_hour() -> None:
    before, pauses = (gc.get_threshold(), sys.getswitchinterval()), Pauses()
    with pauses.short():
        assert sys.getswitchinterval() < before[1]
        old = Ring()
        gone = weakref.ref(old)
        pauses.tick(0)
        frozen = gc.get_freeze_count()
        assert frozen > 0
        del old
        young = Ring()
        young_gone = weakref.ref(young)
        del young
        pauses.tick(seconds(9))
        assert young_gone() is not None, "not yet"
        pauses.tick(seconds(11))
        assert (young_gone(), gone() is None) == (None, False), "what is new is looked at, what is old is not"
        pauses.tick(seconds(3700))
        assert gone() is None
        lasting = Ring()
        lasting_gone = weakref.ref(lasting)
        pauses.tick(seconds(3720))
        del lasting
        pauses.look_at_all_soon()
        pauses.tick(seconds(3721))
        assert lasting_gone() is None, "soon also where much was replaced"
    assert (gc.get_threshold(), sys.getswitchinterval(), gc.get_freeze_count()) == (*before, 0)
