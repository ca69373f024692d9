"""A hook's program comes to an end whatever becomes of its process: what waits for it is never left waiting."""

from __future__ import annotations

import os
import selectors
import threading
from typing import Any

import pytest

from tests.services import until
from virtpilot.actuators.hooks import program as module
from virtpilot.actuators.hooks.ending import Ending
from virtpilot.actuators.hooks.program import Program


@pytest.fixture(autouse=True)
def those_of_other_tests_have_ended() -> None:
    """Wait for them: here nobody can kill them."""
    assert until(lambda: not any(thread.name.startswith("hook-") for thread in threading.enumerate()), 20)


def ended(program: Program) -> str:
    assert until(lambda: program.ending is not None, 20)
    assert program.ending is not None
    assert not program.ending.worked
    return program.ending.reason


def start(*argv: str, deadline_s: float = 0.2) -> Program:
    return Program(argv, deadline_s=deadline_s, output_max=1000)


def test_one_that_may_not_be_killed_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has changed its user, and goes on: it ends by itself here."""

    def refuse(_group: int, _signal: int) -> None:
        raise PermissionError("Operation not permitted")

    monkeypatch.setattr(os, "killpg", refuse)
    monkeypatch.setattr(module, "_GRACE_S", 0.2)
    program = start("/bin/sleep", "2")
    assert ended(program) == "to be ended after 0.2 s, but it cannot be killed"
    assert until(lambda: not followed("sleep"), 10)


def test_one_whose_rest_may_not_be_killed_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_group: int, _signal: int) -> None:
        raise PermissionError("Operation not permitted")

    monkeypatch.setattr(os, "killpg", refuse)
    assert ended(start("/bin/false", deadline_s=20)) == "exit status 1"


def test_one_whose_output_cannot_be_read_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_self: object, *_args: Any) -> None:
        raise OSError("Bad file descriptor")

    monkeypatch.setattr(selectors.DefaultSelector, "select", broken)
    assert ended(start("/bin/sleep", "600", deadline_s=20)).endswith("cannot be read: Bad file descriptor")


def followed(name: str) -> bool:
    return any(thread.name == f"hook-/bin/{name}" for thread in threading.enumerate())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_one_that_nobody_follows_any_more_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong in the thread."""

    def broken(_self: object) -> None:
        raise RuntimeError("a mistake")

    monkeypatch.setattr(Program, "_followed", broken)
    assert ended(start("/bin/true")) == "it was lost sight of"
    assert until(lambda: not followed("true"), 10)


def test_one_that_holds_its_thread_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    free = threading.Event()

    def held(_self: object) -> Ending:
        free.wait(30)
        return Ending(True, "at last")

    monkeypatch.setattr(Program, "_followed", held)
    monkeypatch.setattr(module, "_GRACE_S", 0.1)
    program = start("/bin/true")
    assert ended(program).startswith("it does not end, ")
    free.set()


def test_without_a_thread_it_was_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_self: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none)
    assert ended(start("/bin/true")) == "it cannot be started: can't start new thread"
