"""A stand-in for all agents, for rule tests and replay: answers signed commands, keeps knobs, leases and places.

What a command does to the measurements is its caller's to say; here it is only known to be done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from virtpilot.action import Abort, Migrate, Power, ReleaseKnob, Run, SetKnob, Verb, action_name
from virtpilot.actuators.command import Verifier
from virtpilot.actuators.lifecycle import outcome
from virtpilot.clock import SECOND, seconds
from virtpilot.model import Bus, Command, Message, Outcome, Result
from virtpilot.topics import Topics

# The virDomainState in which a guest is afterwards.
STATE_CODES: Final[Mapping[Verb, int]] = {
    Verb.SUSPEND: 3,
    Verb.RESUME: 1,
    Verb.START: 1,
    Verb.SHUTDOWN: 5,
    Verb.REBOOT: 1,
    Verb.DESTROY: 5,
}


class Reply(msgspec.Struct, frozen=True):
    """What becomes of a command after so long; no result: nobody answers."""

    after_ns: int = SECOND
    result: Result | None = Result.DONE
    reason: str = ""


class _Lease(msgspec.Struct, frozen=True):
    command: Command
    baseline: int
    value: int
    until_ns: int


class StandIn:
    """Every host's agent; `knobs`, `places` and `states` are as the commands have left them."""

    def __init__(
        self,
        bus: Bus,
        topics: Topics,
        keys: Mapping[str, Ed25519PublicKey],
        reply: Callable[[Command], Reply],
    ) -> None:
        self.knobs: dict[tuple[str, str], int] = {}
        self.places: dict[str, str] = {}
        self.states: dict[str, int] = {}
        self.on_done: Callable[[Outcome, Command], None] = lambda _outcome, _command: None
        self._bus = bus
        self._topics = topics
        self._keys = dict(keys)
        self._reply = reply
        self._verifiers: dict[str, Verifier] = {}
        self._due: list[tuple[int, Command, Reply]] = []
        self._leases: dict[tuple[str, str], _Lease] = {}
        bus.subscribe(topics.commands("+"))

    def next_ns(self) -> int | None:
        """Return when something is due without another command, None where nothing is."""
        times = [at_ns for at_ns, _command, _reply in self._due] + [one.until_ns for one in self._leases.values()]
        return min(times, default=None)

    def step(self, now_ns: int) -> None:
        """Take the commands that are there, and do what is due."""
        while (delivery := self._bus.receive(0)) is not None:
            host = self._topics.host_of(delivery.message.topic)
            verifier = self._verifiers.setdefault(host, Verifier(self._keys, host))
            command = verifier.open(delivery.message.payload, now_ns)
            reply = self._reply(command)
            self._due.append((now_ns + reply.after_ns, command, reply))
            delivery.ack()
        due = [one for one in self._due if one[0] <= now_ns]
        self._due = [one for one in self._due if one[0] > now_ns]
        for _at, command, reply in due:
            self._answer(command, reply, now_ns)
        for key, lease in list(self._leases.items()):
            if lease.until_ns <= now_ns:
                self._give_back(key, lease, lease.command, "the lease has ended", now_ns)

    def _answer(self, command: Command, reply: Reply, now_ns: int) -> None:
        if reply.result is None:
            return
        if reply.result is not Result.DONE:
            self._tell(command, reply.result, now_ns, action_name(command.action), reason=reply.reason)
            return
        action = command.action
        match action:
            case SetKnob():
                self._set(command, action, now_ns)
            case ReleaseKnob():
                key = (action.guest, action.knob)
                lease = self._leases.get(key)
                if lease is not None:
                    self._give_back(key, lease, command, "", now_ns)
                else:
                    self._tell(command, Result.REVERTED, now_ns, action_name(command.action), reason="nothing leased")
            case Migrate():
                self.places[action.guest] = action.target
                self._tell(command, Result.DONE, now_ns, action_name(command.action), reason=reply.reason)
            case Abort():
                self._abort(action.guest, now_ns)
                self._tell(command, Result.DONE, now_ns, action_name(command.action), reason=reply.reason)
            case Run():
                self._tell(command, Result.DONE, now_ns, action_name(command.action), reason=reply.reason)
            case Power():
                self.states[action.guest] = STATE_CODES[action.verb]
                self._tell(command, Result.DONE, now_ns, action_name(command.action), reason=reply.reason)

    def _abort(self, guest: str, now_ns: int) -> None:
        """End a guest's migration, where it has one: it stays where it is."""
        moving = [one for one in self._due if isinstance(one[1].action, Migrate) and one[1].action.guest == guest]
        self._due = [one for one in self._due if one not in moving]
        for _at, command, _reply in moving:
            self._tell(command, Result.FAILED, now_ns, action_name(command.action), reason="aborted")

    def _set(self, command: Command, action: SetKnob, now_ns: int) -> None:
        key = (action.guest, action.knob)
        before = self.knobs.get(key, action.expected)
        known = self._leases.get(key)
        baseline = known.baseline if known is not None else before
        self.knobs[key] = action.value
        self._leases[key] = _Lease(command, baseline, action.value, now_ns + seconds(action.lease_s))
        self._tell(
            command,
            Result.DONE,
            now_ns,
            action_name(command.action),
            before={action.knob: before},
            after={action.knob: action.value},
        )

    def _give_back(self, key: tuple[str, str], lease: _Lease, cause: Command, reason: str, now_ns: int) -> None:
        del self._leases[key]
        self.knobs[key] = lease.baseline
        values = {"before": {key[1]: lease.value}, "after": {key[1]: lease.baseline}}
        self._tell(cause, Result.REVERTED, now_ns, f"release {key[1]}", reason=reason, **values)

    def _tell(
        self,
        command: Command,
        result: Result,
        now_ns: int,
        action: str,
        *,
        reason: str = "",
        before: Mapping[str, float] | None = None,
        after: Mapping[str, float] | None = None,
    ) -> None:
        told = outcome(
            command.id,
            result,
            now_ns,
            host=command.host,
            guest=command.action.guest,
            action=action,
            rule=command.rule,
            reason=reason,
            before=before,
            after=after,
        )
        self.on_done(told, command)
        self._bus.publish(Message(self._topics.outcomes(command.host), msgspec.json.encode(told)))
