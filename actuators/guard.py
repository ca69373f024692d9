"""The controller's guards: what stands between an action that a rule wants and the command.

In order: mode, calendar, opt-out, freshness, warm-up, state, cooldown, budget, concurrency. Each is one small function
that gives a reason or "".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from virtpilot.actuators.budget import Bucket, Budget, Budgets, Scope
from virtpilot.calendar import Calendar
from virtpilot.clock import SECOND, seconds
from virtpilot.errors import StateError
from virtpilot.model import Mode, Result

# virDomainState; Xen shows an idle guest as blocked.
_STATES: Final[Mapping[int, str]] = {
    0: "in no state",
    1: "running",
    2: "blocked",
    3: "paused",
    4: "shutting down",
    5: "shut off",
    6: "crashed",
    7: "suspended",
}
_ALIVE: Final = frozenset({1, 2})

_SCOPES: Final[tuple[Scope, ...]] = ("guest", "host", "cluster")
Seconds = Annotated[float, Meta(ge=0, le=86400)]
Places = Annotated[int, Meta(ge=0, le=1000)]


class GuardOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When an action that a rule wants is refused."""

    max_sample_age_s: Annotated[
        Seconds, Meta(description="No action on a guest whose newest sample is older than this.")
    ] = 60.0
    warm_up_s: Annotated[
        Seconds, Meta(description="No action on a guest that this host has measured for less time than this.")
    ] = 30.0
    guest_cooldown_s: Annotated[
        Seconds, Meta(description="No further action on a guest so long after one; later rungs of its rule are exempt.")
    ] = 60.0
    migrations_out: Annotated[Places, Meta(description="Guests that may leave one host at the same time.")] = 2
    migrations_in: Annotated[Places, Meta(description="Guests that may come to one host at the same time.")] = 2
    migrations_cluster: Annotated[Places, Meta(description="Guests that may be on their way in the whole cluster.")] = 5
    freezes: Annotated[
        list[str],
        Meta(description="Times in which nothing is done, such as `Sat,Sun 22:00-06:00 Europe/Berlin`."),
    ] = []
    guest_actions_per_hour: Annotated[
        int, Meta(description="Actions on one guest in an hour, of all rules together; 0: any.", ge=0, le=3600)
    ] = 0
    host_actions_per_hour: Annotated[
        int, Meta(description="Actions on the guests of one host in an hour; 0: any.", ge=0, le=100_000)
    ] = 0
    cluster_actions_per_hour: Annotated[
        int, Meta(description="Actions in the whole cluster in an hour; 0: any.", ge=0, le=1_000_000)
    ] = 0
    operation_timeout_s: Annotated[
        float, Meta(description="A command whose outcome has not come by then is no longer waited for.", gt=0, le=86400)
    ] = 1200.0

    def __post_init__(self) -> None:
        """Refuse freezes that are no times."""
        for text in self.freezes:
            Calendar(text)


class GuardRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What is wanted, and what is known of its guest; `target` is "" where nothing moves."""

    mode: Mode
    rule: str
    cooldown_ns: int
    guest: str
    host: str
    sample_ns: int
    first_seen_ns: int
    state_code: int
    rung: int = 0
    target: str = ""
    opt_out: str = ""
    """The guest's tag that forbids every action, "" where it has none."""
    budgets: tuple[Budget, ...] = ()
    """The rule's own."""


class Refusal(msgspec.Struct, frozen=True):
    """The guard that refuses, and why, for people."""

    guard: str
    reason: str


class InFlight(msgspec.Struct, frozen=True, kw_only=True):
    """A command on its way whose outcome has not come."""

    rule: str
    guest: str
    host: str
    target: str
    cooldown_ns: int
    started_ns: int
    spent: list[tuple[Budget, str]] = []


class Cooldown(msgspec.Struct, frozen=True):
    """Until when a guest is left alone, and the rule that acted on it last."""

    rule: str
    guest: str
    until_ns: int


class Snapshot(msgspec.Struct, frozen=True):
    """What survives a restart."""

    in_flight: dict[str, InFlight]
    rules: list[Cooldown]
    guests: list[Cooldown]
    budgets: list[Bucket] = []


class Guards:
    """The chain of guards, with the memory that some of them need."""

    def __init__(self, limits: GuardOptions) -> None:
        self._limits = limits
        self._in_flight: dict[str, InFlight] = {}
        self._rules: dict[tuple[str, str], Cooldown] = {}
        self._guests: dict[str, Cooldown] = {}
        self._budgets = Budgets()
        self._freezes = [Calendar(text) for text in limits.freezes]
        per_hour = (limits.guest_actions_per_hour, limits.host_actions_per_hour, limits.cluster_actions_per_hour)
        self._common = [
            Budget(scope, count, 3600 * SECOND) for scope, count in zip(_SCOPES, per_hour, strict=True) if count
        ]
        self._forgot_ns = 0
        self._chain: Mapping[str, Callable[[GuardRequest, int], str]] = {
            "mode": self._mode,
            "calendar": self._calendar,
            "opt-out": self._opt_out,
            "freshness": self._freshness,
            "warm-up": self._warm_up,
            "state": self._state,
            "cooldown": self._cooldown,
            "budget": self._budget,
            "concurrency": self._concurrency,
        }

    def check(self, request: GuardRequest, now_ns: int) -> Refusal | None:
        """Return the first guard's refusal, None where all let it through."""
        self._forget(now_ns)
        for guard, reason_of in self._chain.items():
            if reason := reason_of(request, now_ns):
                return Refusal(guard, reason)
        return None

    def _mode(self, request: GuardRequest, _now_ns: int) -> str:
        match request.mode:
            case Mode.ACT:
                return ""
            case Mode.APPROVE:
                return f"rule {request.rule} acts on approval only, and approval is not given"
            case Mode.OBSERVE:
                return f"rule {request.rule} only observes"

    def _calendar(self, _request: GuardRequest, now_ns: int) -> str:
        frozen = next((freeze.text for freeze in self._freezes if freeze.covers(now_ns)), "")
        return f"nothing is done in the freeze {frozen}" if frozen else ""

    def _opt_out(self, request: GuardRequest, _now_ns: int) -> str:
        return f"the guest's tag {request.opt_out} forbids it" if request.opt_out else ""

    def _freshness(self, request: GuardRequest, now_ns: int) -> str:
        age_ns, limit_ns = now_ns - request.sample_ns, seconds(self._limits.max_sample_age_s)
        if age_ns > limit_ns:
            return f"the newest sample is {_s(age_ns)} old, {_s(limit_ns)} at most"
        if -age_ns > limit_ns:
            return f"the newest sample lies {_s(-age_ns)} in the future: the clock of {request.host} is wrong"
        return ""

    def _warm_up(self, request: GuardRequest, now_ns: int) -> str:
        left_ns = request.first_seen_ns + seconds(self._limits.warm_up_s) - now_ns
        return f"measured on {request.host} only just, {_s(left_ns)} of warm-up left" if left_ns > 0 else ""

    def _state(self, request: GuardRequest, _now_ns: int) -> str:
        if request.state_code in _ALIVE:
            return ""
        return f"the guest is {_STATES.get(request.state_code, f'in state {request.state_code}')}, not running"

    def _cooldown(self, request: GuardRequest, now_ns: int) -> str:
        """Later rungs follow their own rule's earlier ones at once: they are one remedy."""
        guest = self._guests.get(request.guest)
        follows = request.rung > 0 and guest is not None and guest.rule == request.rule
        rule = self._rules.get((request.rule, request.guest))
        if rule is not None and request.rung == 0 and rule.until_ns > now_ns:
            return f"rule {request.rule} helped this guest lately, {_s(rule.until_ns - now_ns)} of cooldown left"
        if guest is not None and not follows and guest.until_ns > now_ns:
            left = _s(guest.until_ns - now_ns)
            return f"something was done to this guest lately (rule {guest.rule}), {left} of cooldown left"
        return ""

    def _budget(self, request: GuardRequest, now_ns: int) -> str:
        reasons = (self._budgets.refusal(budget, who, now_ns) for budget, who in self._costs(request))
        return next((reason for reason in reasons if reason), "")

    def _costs(self, request: GuardRequest) -> list[tuple[Budget, str]]:
        """Return whose budgets an action is on: a migration's on both of its hosts."""
        hosts = [request.host, *([request.target] if request.target else [])]
        whose = {"rule": [""], "cluster": [""], "guest": [request.guest], "host": hosts}
        return [(budget, who) for budget in (*request.budgets, *self._common) for who in whose[budget.scope]]

    def _concurrency(self, request: GuardRequest, now_ns: int) -> str:
        for command, flight in self._in_flight.items():
            if flight.guest == request.guest:
                return f"{command} on this guest is under way since {_s(now_ns - flight.started_ns)}"
        return self._room(request) if request.target else ""

    def _room(self, request: GuardRequest) -> str:
        moves = [flight for flight in self._in_flight.values() if flight.target]
        limits = self._limits
        for count, limit, where in (
            (sum(move.host == request.host for move in moves), limits.migrations_out, f"out of {request.host}"),
            (sum(move.target == request.target for move in moves), limits.migrations_in, f"to {request.target}"),
            (len(moves), limits.migrations_cluster, "in the cluster"),
        ):
            if count >= limit:
                return f"{count} migrations {where} are under way, {limit} at most"
        return ""

    def migrations(self) -> Mapping[str, int]:
        """Return for each host how many migrations to or from it are under way."""
        moves = [flight for flight in self._in_flight.values() if flight.target]
        return Counter(host for move in moves for host in (move.host, move.target))

    def incoming(self) -> list[tuple[str, str]]:
        """Return each guest on its way with the host that it goes to."""
        return [(flight.guest, flight.target) for flight in self._in_flight.values() if flight.target]

    def started(self, request: GuardRequest, command: str, now_ns: int) -> None:
        """Note that a command is on its way, and what it costs."""
        spent = self._costs(request)
        for budget, who in spent:
            self._budgets.spend(budget, who, now_ns)
        self._in_flight[command] = InFlight(
            rule=request.rule,
            guest=request.guest,
            host=request.host,
            target=request.target,
            cooldown_ns=request.cooldown_ns,
            started_ns=now_ns,
            spent=spent,
        )

    def finished(self, command: str, now_ns: int, result: Result = Result.DONE) -> None:
        """Note a command's outcome: its cooldowns begin, except when it was refused; an unknown one is ignored."""
        flight = self._in_flight.pop(command, None)
        if flight is None:
            return
        if result is Result.REFUSED:
            for budget, who in flight.spent:
                self._budgets.give_back(budget, who, now_ns)
            return
        until_ns = now_ns + seconds(self._limits.guest_cooldown_s)
        self._guests[flight.guest] = Cooldown(flight.rule, flight.guest, until_ns)
        rule = Cooldown(flight.rule, flight.guest, now_ns + flight.cooldown_ns)
        self._rules[flight.rule, flight.guest] = rule

    def _forget(self, now_ns: int) -> None:
        if now_ns == self._forgot_ns:
            return  # many requests are checked at one moment
        self._forgot_ns = now_ns
        timeout_ns = seconds(self._limits.operation_timeout_s)
        for command, flight in list(self._in_flight.items()):
            # A start in the future: the clock was set back, and this would never end.
            if not -timeout_ns <= now_ns - flight.started_ns <= timeout_ns:
                del self._in_flight[command]
        self._rules = {key: each for key, each in self._rules.items() if each.until_ns > now_ns}
        self._guests = {key: each for key, each in self._guests.items() if each.until_ns > now_ns}
        self._budgets.forget(now_ns)

    def snapshot(self) -> dict[str, Any]:
        """Return what survives a restart, JSON-able."""
        cooldowns = (list(self._rules.values()), list(self._guests.values()))
        kept = Snapshot(dict(self._in_flight), *cooldowns, self._budgets.dump())
        document: dict[str, Any] = msgspec.to_builtins(kept)
        return document

    def restore(self, document: object) -> None:
        """Take up where an earlier run ended; raises StateError for what is no snapshot, and keeps what is."""
        try:
            kept = msgspec.convert(document, Snapshot)
        except msgspec.ValidationError as error:
            raise StateError(f"saved guards are not readable: {error}") from error
        self._in_flight = dict(kept.in_flight)
        self._rules = {(each.rule, each.guest): each for each in kept.rules}
        self._guests = {each.guest: each for each in kept.guests}
        self._budgets.load(kept.budgets)


def _s(span_ns: int) -> str:
    return f"{span_ns / SECOND:.0f} s"
