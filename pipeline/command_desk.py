"""Where an agent takes commands: verified, held back on a new connection, refused after a stop.

A broker keeps commands in the session and gives them at once on a connection, what is retained only to who subscribes;
so commands wait for a moment, lest one is obeyed that a stop behind it forbids.
"""

from __future__ import annotations

import structlog

from virtpilot.actuators.command import Verifier
from virtpilot.clock import Clock
from virtpilot.errors import CommandRefused
from virtpilot.model import Delivery, Message, Outcome
from virtpilot.pipeline.attention import Attention
from virtpilot.pipeline.audit.commands import CommandAudit
from virtpilot.pipeline.switch import Switch

log = structlog.get_logger(__name__)


class CommandDesk:
    """Hands commands to the executor; one that was kept is acknowledged when it has been dealt with."""

    def __init__(
        self,
        attention: Attention,
        verifier: Verifier,
        switch: Switch,
        audit: CommandAudit,
        clock: Clock,
        settle_ns: int,
    ) -> None:
        self.refused = 0
        """Commands that were not verified."""
        self.attention = attention
        self._executor = attention.executor
        self._verifier = verifier
        self._switch = switch
        self.audit = audit
        self._clock = clock
        self._settle_ns = settle_ns
        self._generation = 0
        self._connected_ns = 0
        self._kept: list[Delivery] = []
        self._executor.stopped = switch.why

    @property
    def stopped(self) -> str:
        """Who has stopped everything and why, "" where nobody has."""
        return self._switch.why

    def said(self, payload: bytes) -> bool:
        """Take what was said on the switch's topic; True where that changes something."""
        now_ns = self._clock.now_ns()
        if not self._switch.take(payload, now_ns):
            return False
        self._executor.stopped = self._switch.why
        if self._switch.stop is not None and self._switch.stop.abort_migrations:
            self._executor.abort_migrations(now_ns)
        return True

    def take(self, delivery: Delivery, generation: int) -> list[Outcome]:
        """Execute a command, or keep it for `due`; `generation` is the bus's just now."""
        if not self._settled(generation):
            self._kept.append(delivery)
            return []
        outcomes = self._obey(delivery.message)
        delivery.ack()
        return outcomes

    def due(self, generation: int) -> list[Outcome]:
        """Execute what was kept, once it is time; what a lost connection left comes again and is known by its id."""
        if not self._settled(generation):
            return []
        kept, self._kept = self._kept, []
        return [outcome for delivery in kept for outcome in self.take(delivery, generation)]

    def _settled(self, generation: int) -> bool:
        now_ns = self._clock.monotonic_ns()
        if generation != self._generation:
            self._generation, self._connected_ns = generation, now_ns
        return bool(generation) and now_ns - self._connected_ns >= self._settle_ns

    def _obey(self, message: Message) -> list[Outcome]:
        """Verify and execute; the journal holds whatever happens before the message is acknowledged."""
        now_ns = self._clock.now_ns()
        try:
            command = self._verifier.open(message.payload, now_ns)
        except CommandRefused as refused:
            # No outcome: who sent it is not known, and an answer would let a forger write into the audit.
            self.refused += 1
            log.warning("command refused", guard=refused.guard, reason=refused.reason)
            self.audit.refused(message.payload, refused, now_ns)
            return []
        if command.epoch >= self._executor.epoch:
            self.attention.controller.heard()
        again = self._executor.knows(command.id)
        self.audit.taken(command, now_ns, again=again)
        made = self._executor.submit(command, now_ns)
        if not again:
            self.audit.outcomes(made)
        return made
