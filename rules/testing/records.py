"""The records of rule tests: what is measured, what becomes of commands, what is expected."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

import msgspec

from virtpilot.model import Kind, Mode, Result
from virtpilot.rules.testing.series import Series

What = Literal["signal", "decision", "command", "outcome"]
WHATS: Final[tuple[What, ...]] = ("signal", "decision", "command", "outcome")
NONE: Final = "none"
"""The state of a record that must not come to be."""

Measured = dict[str, Series]


class Device(msgspec.Struct, frozen=True):
    """A disk, file system or other device of a guest or a host, or its job: its measurement, own tags, series."""

    measurement: str
    tags: dict[str, str]
    series: Measured


class Actor(msgspec.Struct, frozen=True, kw_only=True):
    """A host or a guest of a test; a guest starts on `host`."""

    kind: Kind
    name: str
    id: str
    host: str
    tags: dict[str, str]
    knobs: dict[str, int]
    series: Measured
    devices: tuple[Device, ...] = ()


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of one command on a guest; no result: nobody answers. `then` is measured from its outcome on."""

    to: str
    of: str
    after_ns: int
    result: Result | None
    reason: str
    then: Measured


class Expectation(msgspec.Struct, frozen=True, kw_only=True):
    """A signal's state at a time, or a record that came to be (or not) between two times, both included."""

    what: What
    rule: str
    of: str
    from_ns: int
    until_ns: int
    state: str
    guard: str
    action: str
    reason: str
    text: str
    line: int
    column: int


class RuleTest(msgspec.Struct, frozen=True, kw_only=True):
    """One test; times in ns, those of expectations from its start. Either `fleet` or actors."""

    name: str
    line: int
    every_ns: int
    start_ns: int
    mode: Mode | None
    fleet: Path | None
    actors: tuple[Actor, ...]
    answers: tuple[Answer, ...]
    expectations: tuple[Expectation, ...]

    @property
    def end_ns(self) -> int:
        """When all that is expected is known."""
        return max(one.until_ns for one in self.expectations)


class TestFile(msgspec.Struct, frozen=True):
    """A file of tests with the rule files that they test."""

    __test__ = False

    path: Path
    rules: tuple[Path, ...]
    tests: tuple[RuleTest, ...]
