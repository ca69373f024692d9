"""What operators order, and what is laid before them; orders travel signed (actuators/order.py), but for a stop."""

from __future__ import annotations

import msgspec

from virtpilot.action import Decided
from virtpilot.model import Subject


class Stop(msgspec.Struct, frozen=True, kw_only=True):
    """Nothing new is begun any more; `id` tells it from every other stop."""

    id: str = ""
    by: str = ""
    reason: str = ""
    at_ns: int = 0
    abort_migrations: bool = False
    """Whether migrations under way are to be aborted."""


class Resume(msgspec.Struct, frozen=True, kw_only=True):
    """The end of every stop before it."""

    cluster: str
    by: str
    at_ns: int
    reason: str = ""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """A person's word on what waits for approval."""

    cluster: str
    approval: str
    accepted: bool
    by: str
    at_ns: int
    not_after_ns: int
    reason: str = ""


class Pending(msgspec.Struct, frozen=True, kw_only=True):
    """An action that waits for approval until `until_ns`; accepted, exactly it is done in its turn, or nothing."""

    id: str
    cause: str
    rule: str
    subject: Subject
    rung: int
    action: Decided
    reason: str
    at_ns: int
    until_ns: int
    accepted_by: str = ""


class Settled(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a pending action: accepted, stale (a guard refused it after all), rejected, expired, withdrawn."""

    id: str
    result: str
    by: str
    reason: str
    at_ns: int


class Approvals(msgspec.Struct, frozen=True, kw_only=True):
    """The retained message of the controller: all that waits, and what was settled last."""

    at_ns: int
    pending: list[Pending] = []
    settled: list[Settled] = []


class Maintenance(msgspec.Struct, frozen=True, kw_only=True):
    """A host is to be emptied and takes no guests (`on`), or takes them again."""

    cluster: str
    host: str
    on: bool
    by: str
    at_ns: int
    reason: str = ""


class Emptying(msgspec.Struct, frozen=True, kw_only=True):
    """The retained word of the controller on a host's maintenance: who runs there still, and why who cannot leave."""

    host: str
    on: bool
    by: str
    reason: str
    since_ns: int
    left: list[str] = []
    refused: dict[str, str] = {}
