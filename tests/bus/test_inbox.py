"""What was received waits for whoever takes it, and the end is for all who wait."""

from __future__ import annotations

import threading

from tests.services import until
from virtpilot.pipeline.bus.inbox import Inbox


def test_what_is_there_is_taken_in_order_and_forgotten_on_demand() -> None:
    inbox: Inbox[int] = Inbox()
    for number in range(3):
        inbox.put(number)
    assert (inbox.take(0), inbox.take(5), len(inbox)) == (0, 1, 1)
    inbox.clear()
    inbox.clear()
    assert (inbox.take(0), inbox.take(0.01), len(inbox)) == (None, None, 0)
    inbox.put(4)
    assert inbox.take(0) == 4


def test_at_the_end_nobody_waits_and_what_is_there_is_still_taken() -> None:
    inbox: Inbox[int] = Inbox()
    ended: list[object] = []
    threads = [threading.Thread(target=lambda: ended.append(inbox.take(3600)), daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    inbox.end()
    assert until(lambda: ended == [None] * 3)
    assert inbox.take(3600) is None
    inbox.clear()
    assert inbox.take(3600) is None
    inbox.put(1)
    assert {inbox.take(0), inbox.take(0)} == {1, None}


def test_forgetting_leaves_the_end_for_who_waits() -> None:
    inbox: Inbox[int] = Inbox()
    inbox.put(1)
    inbox.end()
    inbox.clear()
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(inbox._queue.get()), daemon=True)
    thread.start()
    assert until(lambda: found == [None])
