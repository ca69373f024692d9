"""Guards: small checks in a fixed order before anything is commanded; each refusal names its guard."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from virtpilot.clock import SECOND, seconds
from virtpilot.model import Mode

_RUNNING = 1


class GuardOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What holds for every action, whatever a rule says."""

    max_sample_age_s: Annotated[float, Meta(description="Nothing is done on measurements older than this.", gt=0)] = (
        60.0
    )
    warm_up_s: Annotated[
        float, Meta(description="A guest is left alone for so long after it was first seen on its host.", ge=0)
    ] = 30.0
    guest_cooldown_s: Annotated[
        float, Meta(description="No rule begins on a guest for so long after any action on it.", ge=0)
    ] = 60.0
    migrations_out: Annotated[int, Meta(description="Migrations at once from one host.", ge=1)] = 2
    migrations_in: Annotated[int, Meta(description="Migrations at once to one host.", ge=1)] = 2
    migrations_cluster: Annotated[int, Meta(description="Migrations at once in the cluster.", ge=1)] = 5


class GuardRequest(msgspec.Struct, frozen=True, kw_only=True):
    """An action that is about to be commanded; `target` is empty unless the guest is to move."""

    mode: Mode
    rule: str
    cooldown_ns: int
    rung: int
    guest: str
    host: str
    target: str
    sample_ns: int
    first_seen_ns: int
    state_code: int


class Refusal(msgspec.Struct, frozen=True):
    """Which guard says no, and why."""

    guard: str
    reason: str


class _InFlight(msgspec.Struct, frozen=True):
    guest: str
    rule: str
    host: str
    target: str


class Guards:
    """Remembers what is in flight and when each rule and guest was last acted on."""

    def __init__(self, options: GuardOptions) -> None:
        self._options = options
        self._in_flight: dict[str, _InFlight] = {}
        self._by_rule: dict[tuple[str, str], int] = {}
        self._by_guest: dict[str, int] = {}
        self._chain: tuple[tuple[str, Callable[[GuardRequest, int], str]], ...] = (
            ("mode", self._mode),
            ("freshness", self._freshness),
            ("warm-up", self._warm_up),
            ("state", self._state),
            ("cooldown", self._cooldown),
            ("concurrency", self._concurrency),
        )

    def check(self, request: GuardRequest, now_ns: int) -> Refusal | None:
        """Return the first guard's refusal, None where all agree."""
        for name, guard in self._chain:
            if reason := guard(request, now_ns):
                return Refusal(name, reason)
        return None

    def _mode(self, request: GuardRequest, _now_ns: int) -> str:
        match request.mode:
            case Mode.ACT:
                return ""
            case Mode.OBSERVE:
                return "the rule only observes"
            case Mode.APPROVE:
                return "the rule waits for a person's approval, and there is none"

    def _freshness(self, request: GuardRequest, now_ns: int) -> str:
        age_s = (now_ns - request.sample_ns) / SECOND
        limit = self._options.max_sample_age_s
        return f"the newest sample is {age_s:.0f} s old, {limit:g} s at most" if age_s > limit else ""

    def _warm_up(self, request: GuardRequest, now_ns: int) -> str:
        left_s = self._options.warm_up_s - (now_ns - request.first_seen_ns) / SECOND
        return f"the guest is new on {request.host}: {left_s:.0f} s to go" if left_s > 0 else ""

    def _state(self, request: GuardRequest, _now_ns: int) -> str:
        return "" if request.state_code == _RUNNING else f"the guest is not running (state {request.state_code})"

    def _cooldown(self, request: GuardRequest, now_ns: int) -> str:
        """Hold back a rule's first remedy; the next rungs of a ladder belong to the same intervention."""
        if request.rung > 0:
            return ""
        rule_ns = self._by_rule.get((request.rule, request.guest), 0) + request.cooldown_ns
        guest_ns = self._by_guest.get(request.guest, 0) + seconds(self._options.guest_cooldown_s)
        if request.guest in self._by_guest and now_ns < max(rule_ns, guest_ns):
            return f"{(max(rule_ns, guest_ns) - now_ns) / SECOND:.0f} s to go since the last action on this guest"
        return ""

    def _concurrency(self, request: GuardRequest, _now_ns: int) -> str:
        flying = self._in_flight.values()
        if any(other.guest == request.guest for other in flying):
            return "an action on this guest is in flight"
        if not request.target:
            return ""
        moves = [other for other in flying if other.target]
        options = self._options
        counts = (
            (sum(other.host == request.host for other in moves), options.migrations_out, f"from {request.host}"),
            (sum(other.target == request.target for other in moves), options.migrations_in, f"to {request.target}"),
            (len(moves), options.migrations_cluster, "in the cluster"),
        )
        return next((f"{n} migrations {where}, {most} at most" for n, most, where in counts if n >= most), "")

    def migrations(self) -> Mapping[str, int]:
        """Return how many migrations go from or to each host."""
        return Counter(host for move in self._in_flight.values() if move.target for host in (move.host, move.target))

    def incoming(self) -> Iterator[tuple[str, str]]:
        """Yield (guest, target) of each migration in flight: promised, and in no measurement of the target yet."""
        return ((move.guest, move.target) for move in self._in_flight.values() if move.target)

    def started(self, request: GuardRequest, command: str, now_ns: int) -> None:
        """Note that a command is on its way."""
        self._in_flight[command] = _InFlight(request.guest, request.rule, request.host, request.target)
        self._touch(request.rule, request.guest, now_ns)

    def finished(self, command: str, now_ns: int) -> None:
        """Note that a command has come to its outcome; its cooldown counts from here. One not known is no matter."""
        done = self._in_flight.pop(command, None)
        if done is not None:
            self._touch(done.rule, done.guest, now_ns)

    def _touch(self, rule: str, guest: str, now_ns: int) -> None:
        self._by_rule[rule, guest] = now_ns
        self._by_guest[guest] = now_ns

    def snapshot(self) -> dict[str, Any]:
        """Return the state, JSON-able."""
        return {
            "in_flight": {command: msgspec.to_builtins(item) for command, item in self._in_flight.items()},
            "by_rule": [[rule, guest, at] for (rule, guest), at in self._by_rule.items()],
            "by_guest": dict(self._by_guest),
        }

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Take up a former state."""
        self._in_flight = msgspec.convert(snapshot["in_flight"], dict[str, _InFlight])
        self._by_rule = {(rule, guest): at for rule, guest, at in snapshot["by_rule"]}
        self._by_guest = dict(snapshot["by_guest"])
