"""What operators do over the bus: stop and resume everything, and say yes or no to what waits for approval."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from virtpilot.actuators.command import load_private
from virtpilot.actuators.order import sign
from virtpilot.clock import Clock, seconds
from virtpilot.errors import BusError
from virtpilot.model import Bus, HostStatus, Message
from virtpilot.orders import Approvals, Emptying, Maintenance, Pending, Resume, Settled, Stop, Verdict
from virtpilot.pipeline.bus.mqtt import MqttBus
from virtpilot.pipeline.operator_config import OperatorConfig
from virtpilot.pipeline.switch import Said
from virtpilot.topics import Topics

CONNECT_S: Final = 10.0
ANSWER_S: Final = 5.0
# What is retained comes with the subscription; so long nothing more is taken for the end of it.
_QUIET_S: Final = 0.3
_VERDICT_S: Final = 30
_POLL_S: Final = 0.05


class Operating:
    """One operator at one cluster's bus."""

    def __init__(self, bus: Bus, config: OperatorConfig, clock: Clock) -> None:
        self._bus = bus
        self._config = config
        self._topics = Topics(config.cluster)
        self._clock = clock
        self.hosts: dict[str, HostStatus] = {}
        self.approvals: Approvals | None = None
        self.emptying: Emptying | None = None

    def connect(self) -> None:
        """Wait for the broker, and for what is retained there; raises BusError."""
        for topic in (self._topics.status("+"), self._topics.approvals):
            self._bus.subscribe(topic)
        if not self._until(lambda: bool(self._bus.generation), CONNECT_S):
            raise BusError(f"no broker at {self._config.bus.host}:{self._config.bus.port}")
        while self._take(_QUIET_S):
            pass

    def stop(self, reason: str, *, abort_migrations: bool) -> Mapping[str, str]:
        """Stop everything, and return of each host what it says: it has stopped, is offline, or does not answer."""
        stop = Stop(
            id=secrets.token_hex(8),
            by=self._config.name,
            reason=reason,
            at_ns=self._clock.now_ns(),
            abort_migrations=abort_migrations,
        )
        self._say(self._topics.switch, msgspec.json.encode(Said(stop=stop)), retain=True)
        self._until(lambda: all(host.stopped for host in self._online()), ANSWER_S)
        return self._told(lambda host: bool(host.stopped), "stopped")

    def resume(self, reason: str) -> Mapping[str, str]:
        """End every stop, and return of each host what it says; raises ConfigError where there is no key."""
        order = Resume(cluster=self._config.cluster, by=self._config.name, at_ns=self._clock.now_ns(), reason=reason)
        signed = sign(order, load_private(Path(self._config.private_key_file)))
        self._say(self._topics.switch, msgspec.json.encode(Said(resume=signed)), retain=True)
        self._until(lambda: not any(host.stopped for host in self._online()), ANSWER_S)
        return self._told(lambda host: not host.stopped, "resumed")

    def maintain(self, host: str, reason: str, *, on: bool) -> Emptying | None:
        """Have a host emptied or opened again, and return what the controller says, None where it does not answer."""
        now_ns = self._clock.now_ns()
        self._bus.subscribe(self._topics.emptying(host))
        order = Maintenance(
            cluster=self._config.cluster, host=host, on=on, by=self._config.name, at_ns=now_ns, reason=reason
        )
        signed = sign(order, load_private(Path(self._config.private_key_file)))
        self._say(self._topics.maintenance(host), msgspec.json.encode(signed), retain=True)
        self._until(lambda: self.emptying is not None and self.emptying.since_ns == now_ns, ANSWER_S)
        return self.emptying if self.emptying is not None and self.emptying.since_ns == now_ns else None

    def decide(self, approval: str, reason: str, *, accepted: bool) -> Settled | Pending | None:
        """Say yes or no, and return what came of it, None where nobody answers; raises ConfigError without a key.

        What is accepted and waits for its turn is pending still.
        """
        now_ns = self._clock.now_ns()
        verdict = Verdict(
            cluster=self._config.cluster,
            approval=approval,
            accepted=accepted,
            by=self._config.name,
            at_ns=now_ns,
            not_after_ns=now_ns + seconds(_VERDICT_S),
            reason=reason,
        )
        signed = sign(verdict, load_private(Path(self._config.private_key_file)))
        self._say(self._topics.verdicts, msgspec.json.encode(signed), expiry_s=_VERDICT_S)
        self._until(lambda: self._settled(approval) is not None, ANSWER_S)
        return self._settled(approval) or (self._accepted(approval) if accepted else None)

    def _accepted(self, approval: str) -> Pending | None:
        pending = self.approvals.pending if self.approvals is not None else []
        return next((one for one in pending if one.id == approval and one.accepted_by), None)

    def _settled(self, approval: str) -> Settled | None:
        settled = self.approvals.settled if self.approvals is not None else []
        return next((one for one in settled if one.id == approval), None)

    def _say(self, topic: str, payload: bytes, *, retain: bool = False, expiry_s: int | None = None) -> None:
        self._bus.publish(Message(topic, payload, retain=retain, expiry_s=expiry_s)).result(CONNECT_S)

    def _online(self) -> list[HostStatus]:
        return [host for host in self.hosts.values() if host.online]

    def _told(self, obeys: Callable[[HostStatus], bool], done: str) -> Mapping[str, str]:
        def says(host: HostStatus) -> str:
            if not host.online:
                return "offline: it will hear of it when it comes back"
            return done if obeys(host) else "DOES NOT ANSWER"

        return {name: says(host) for name, host in sorted(self.hosts.items())}

    def _until(self, come: Callable[[], bool], within_s: float) -> bool:
        end_ns = self._clock.monotonic_ns() + seconds(within_s)
        while not come():
            if self._clock.monotonic_ns() >= end_ns:
                return False
            self._take(_POLL_S)
        return True

    def _take(self, timeout_s: float) -> bool:
        delivery = self._bus.receive(timeout_s)
        if delivery is None:
            return False
        topic, payload = delivery.message.topic, delivery.message.payload
        try:
            if topic == self._topics.approvals:
                self.approvals = msgspec.json.decode(payload, type=Approvals)
            elif self._topics.family_of(topic) == "emptying":
                self.emptying = msgspec.json.decode(payload, type=Emptying)
            else:
                status = msgspec.json.decode(payload, type=HostStatus)
                self.hosts[status.host] = status
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            pass  # not ours: a status or list that nobody can read says nothing
        delivery.ack()
        return True


@contextmanager
def operating(config: OperatorConfig, clock: Clock) -> Iterator[Operating]:
    """Come in as an operator, for the length of one command; raises BusError and ConfigError."""
    options = msgspec.structs.replace(config.bus, session_expiry_s=0)
    bus = MqttBus(options, f"virtpilot-{config.cluster}-operator-{secrets.token_hex(4)}")
    try:
        made = Operating(bus, config, clock)
        made.connect()
        yield made
    finally:
        bus.close()
