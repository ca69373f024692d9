"""What waits for a person: proposed once, shown as a retained message, settled by a signed verdict, time, or the rules.

proposed ──accepted, its turn has come, all guards let it through──▶ accepted (its command goes out)
         ├─accepted, a guard refuses by now──▶ stale
         ├─rejected──▶ rejected: not proposed again while its signal fires
         ├─its time is up──▶ expired: proposed anew, as things are then
         └─not wanted any more──▶ withdrawn
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Annotated, Any, Final

import msgspec
import structlog

from virtpilot.action import Decided
from virtpilot.actuators.order import Operators, Signed
from virtpilot.clock import seconds
from virtpilot.errors import CommandRefused, StateError
from virtpilot.model import Bus, Message, record_id
from virtpilot.orders import Approvals, Pending, Settled, Verdict
from virtpilot.rules.decisions.want import Want
from virtpilot.topics import Topics
from virtpilot.tracked import Tracked

log = structlog.get_logger(__name__)

_SETTLED: Final = 50
_SKEW_NS: Final = seconds(5)


class ApprovalOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long an action waits for approval."""

    ttl_s: Annotated[
        float, msgspec.Meta(description="An action that nobody has approved of by then has expired.", ge=1, le=604800)
    ] = 3600.0


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """A pending action with the reason of who has accepted it."""

    pending: Pending
    reason: str = ""

    @property
    def words(self) -> str:
        """The reason for it, once it is accepted."""
        return f"accepted by {self.pending.accepted_by}: {self.pending.reason}"


class Saved(msgspec.Struct, frozen=True):
    """What survives a restart."""

    waiting: dict[str, Waiting] = {}
    rejected: dict[str, str] = {}
    settled: list[Settled] = []


class ApprovalDesk:
    """Keeps what waits, and what was settled last."""

    def __init__(self, options: ApprovalOptions, operators: Operators, cluster: str) -> None:
        self._news: list[Pending | Settled] = []
        self._generation = 0
        self._ttl_ns = seconds(options.ttl_s)
        self._operators = operators
        self._cluster = cluster
        # By rule and subject.
        self._waiting: Tracked[str, Waiting] = Tracked()
        # The cause and rung that somebody has said no to, and who.
        self._rejected: Tracked[str, str] = Tracked()
        self._settled: list[Settled] = []
        self._told: list[Settled] = []

    @property
    def waits(self) -> bool:
        """Whether something waits for a person."""
        return bool(self._waiting)

    @property
    def counts(self) -> Mapping[str, int]:
        """How many wait, and how many of those last settled came to which end; any thread may ask."""
        found = {"pending": len(self._waiting)}
        for one in list(self._settled):
            found[one.result] = found.get(one.result, 0) + 1
        return found

    def agreed(self, want: Want) -> Waiting | None:
        """Return what somebody has accepted for a want, None where nobody has."""
        waiting = self._waiting.get(_key(want))
        same = waiting is not None and (waiting.pending.cause, waiting.pending.rung) == (want.cause, want.rung)
        return waiting if same and waiting is not None and waiting.pending.accepted_by else None

    def agreements(self) -> set[tuple[str, str, str, int]]:
        """Return the rule, subject, cause and rung of all that somebody has accepted."""
        found = (one.pending for one in self._waiting.values())
        return {(one.rule, one.subject.id, one.cause, one.rung) for one in found if one.accepted_by}

    def propose(self, want: Want, action: Decided, reason: str, now_ns: int) -> str:
        """Lay an action before people, once; return why it is not done yet."""
        key = _key(want)
        if who := self._rejected.get(f"{key} {want.cause} {want.rung}"):
            return f"rejected by {who}"
        waiting = self._waiting.get(key)
        if waiting is None or (waiting.pending.cause, waiting.pending.rung) != (want.cause, want.rung):
            if waiting is not None:
                self._settle(key, "withdrawn", "", "the rule wants something else by now", now_ns)
            waiting = Waiting(
                pending=Pending(
                    id=record_id("ap", want.rule, want.subject.id, want.cause, want.rung, now_ns),
                    cause=want.cause,
                    rule=want.rule,
                    subject=want.subject,
                    rung=want.rung,
                    action=action,
                    reason=reason,
                    at_ns=now_ns,
                    until_ns=now_ns + self._ttl_ns,
                )
            )
            self._waiting[key] = waiting
            self._news.append(waiting.pending)
            log.info("waits for approval", approval=waiting.pending.id, rule=want.rule, subject=want.subject.name)
        return f"waits for approval: {waiting.pending.id}"

    def begun(self, want: Want, now_ns: int) -> None:
        """Note that what was accepted is on its way, or that nobody need be asked any more."""
        waiting = self._waiting.get(_key(want))
        if waiting is None:
            return
        if waiting.pending.accepted_by:
            self._settle(_key(want), "accepted", waiting.pending.accepted_by, waiting.reason, now_ns)
        else:
            self._settle(_key(want), "withdrawn", "", "the rule acts without asking by now", now_ns)

    def stale(self, want: Want, why: str, now_ns: int) -> None:
        """Note that a guard refuses by now what was accepted."""
        waiting = self._waiting.get(_key(want))
        if waiting is not None and waiting.pending.accepted_by:
            self._settle(_key(want), "stale", waiting.pending.accepted_by, why, now_ns)

    def tick(self, wants: Collection[Want], busy: Collection[str], now_ns: int) -> None:
        """Let time pass, with all that is wanted now; of the subjects that are busy it is not known."""
        wanted = {(_key(want), want.cause, want.rung) for want in wants}
        for key, waiting in list(self._waiting.items()):
            pending = waiting.pending
            if pending.subject.id not in busy and (key, pending.cause, pending.rung) not in wanted:
                self._settle(key, "withdrawn", "", "the rule does not want it any more", now_ns)
            # An end further away than it can be: the clock was set back.
            elif not 0 < pending.until_ns - now_ns <= self._ttl_ns:
                self._settle(key, "expired", "", "", now_ns)
        standing = {f"{key} {cause} {rung}" for key, cause, rung in wanted}
        for rejected in [one for one in self._rejected if one not in standing and one.split(" ")[1] not in busy]:
            del self._rejected[rejected]

    def take(self, payload: bytes, now_ns: int) -> str:
        """Take a verdict; return the subject about which is to be decided at once, "" where nothing is accepted."""
        try:
            verdict = self._operators.open(msgspec.json.decode(payload, type=Signed), Verdict)
            key, waiting = self._meant(verdict, now_ns)
        except CommandRefused as refused:
            log.error("verdict refused", guard=refused.guard, reason=refused.reason)
            return ""
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            log.error("verdict is not readable", error=str(error))
            return ""
        pending = waiting.pending
        if not verdict.accepted:
            self._rejected[f"{key} {pending.cause} {pending.rung}"] = verdict.by
            self._settle(key, "rejected", verdict.by, verdict.reason, now_ns)
            return ""
        accepted = msgspec.structs.replace(pending, accepted_by=verdict.by or "?")
        self._waiting[key] = Waiting(pending=accepted, reason=verdict.reason)
        self._news.append(accepted)
        return pending.subject.id

    def _meant(self, verdict: Verdict, now_ns: int) -> tuple[str, Waiting]:
        if verdict.cluster != self._cluster:
            raise CommandRefused("cluster", f"it is for {verdict.cluster[:128]!r}")
        if not verdict.at_ns - _SKEW_NS <= now_ns <= verdict.not_after_ns:
            raise CommandRefused("time", "it has expired, or is from the future: is a clock wrong?")
        for key, waiting in self._waiting.items():
            if waiting.pending.id == verdict.approval and now_ns < waiting.pending.until_ns:
                return key, waiting
        raise CommandRefused("approval", f"nothing waits as {verdict.approval[:64]!r}")

    def _settle(self, key: str, result: str, who: str, reason: str, now_ns: int) -> None:
        pending = self._waiting.pop(key).pending
        ended = Settled(id=pending.id, result=result, by=who, reason=reason, at_ns=now_ns)
        self._settled = [*self._settled, ended][-_SETTLED:]
        self._news.append(ended)
        log.info("approval settled", approval=pending.id, result=result, by=who, reason=reason)

    def tell(self, bus: Bus, topics: Topics, now_ns: int) -> list[Pending | Settled]:
        """Lay before people what waits, and return what was proposed, accepted and settled since the last call.

        It is published where that is news, and on each new connection: its broker may have lost what it had retained.
        """
        news, self._news = self._news, []
        if news or bus.generation not in {0, self._generation}:
            self._generation = bus.generation
            bus.publish(Message(topics.approvals, msgspec.json.encode(self.page(now_ns)), retain=True))
        return news

    def page(self, now_ns: int) -> Approvals:
        """Return the retained message."""
        return Approvals(at_ns=now_ns, pending=[one.pending for one in self._waiting.values()], settled=self._settled)

    def saved(self) -> dict[str, Any]:
        """Return what survives a restart, as msgspec writes it; `changes` counts from here."""
        self._waiting.changes()
        self._rejected.changes()
        self._told = self._settled
        return {"waiting": dict(self._waiting), "rejected": dict(self._rejected), "settled": self._settled}

    def changes(self) -> Iterator[tuple[tuple[str, ...], object]]:
        """Return what has changed since the last call, by its place in what `saved` gives."""
        for key, waiting in self._waiting.changes().items():
            yield ("waiting", key), waiting
        for key, who in self._rejected.changes().items():
            yield ("rejected", key), who
        if self._told is not self._settled:
            self._told = self._settled
            yield ("settled",), self._settled

    def restore(self, document: object) -> None:
        """Take up where an earlier run ended; raises StateError for what was not saved here."""
        try:
            kept = msgspec.convert(document, Saved)
        except msgspec.ValidationError as error:
            raise StateError(f"saved approvals are not readable: {error}") from error
        self._waiting.update(kept.waiting)
        self._rejected.update(kept.rejected)
        self._settled, self._generation = kept.settled, 0


def _key(want: Want) -> str:
    return f"{want.rule} {want.subject.id}"
