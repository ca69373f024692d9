"""Hosts in maintenance: signed orders of operators, the moves that empty a host, and how far that is.

bus maintenance/<host> → order → no guests go there, those that run there are wanted elsewhere (largest first)
                               → the queue, the guards, the planner → bus emptying/<host>
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import msgspec
import structlog

from virtpilot.actuators.guards.request import ALIVE
from virtpilot.actuators.order import Operators, Signed
from virtpilot.clock import seconds
from virtpilot.errors import CommandRefused
from virtpilot.model import Bus, Decision, Kind, Message, Mode, record_id
from virtpilot.orders import Emptying, Maintenance
from virtpilot.pipeline.measured_fleet import MeasuredFleet
from virtpilot.rules.decisions.want import PLACEMENT, Want
from virtpilot.rules.language.records import Cooldown, MigrateRemedy
from virtpilot.rules.signals.table import Row
from virtpilot.topics import Topics
from virtpilot.tracked import Tracked

log = structlog.get_logger(__name__)

# In the place of a rule's name, and none that a rule can have.
RULE: Final = "(maintenance)"
PRIORITY: Final = 90
# An order from further ahead would keep all that come after it from being heard.
_SKEW_NS: Final = seconds(300)
# By so much the larger of two guests came earlier, for the queue.
_STEP_NS: Final = 1_000_000
_NUMBER: Final = re.compile(r"\d+(\.\d+)?")


class MaintenanceDesk:
    """Which hosts are in maintenance, and what is still to leave them."""

    def __init__(self, operators: Operators, cluster: str) -> None:
        self.orders: Tracked[str, Maintenance] = Tracked()  # the newest of each host, ends too: they may come again
        self._operators = operators
        self._cluster = cluster
        self._refused: dict[str, tuple[str, str]] = {}  # guest → what was said last, numbers aside, and in full
        self._told: dict[str, Emptying] = {}
        self._generation = 0

    def take(self, host: str, payload: bytes, now_ns: int) -> bool:
        """Take what is retained for a host; True where it is news. What is not signed, or older, changes nothing."""
        try:
            order = self._operators.open(msgspec.json.decode(payload, type=Signed), Maintenance)
            self._check(order, host, now_ns)
        except (msgspec.MsgspecError, UnicodeError, RecursionError, CommandRefused) as error:
            log.warning("order of maintenance refused", host=host, error=str(error)[:200])
            return False
        known = self.orders.get(host)
        if known is not None and order.at_ns <= known.at_ns:
            return False
        self.orders[host] = order
        self._refused.clear()
        log.info("maintenance", host=host, on=order.on, by=order.by, reason=order.reason)
        return True

    def _check(self, order: Maintenance, host: str, now_ns: int) -> None:
        if (order.cluster, order.host) != (self._cluster, host):
            raise CommandRefused("host", f"it is for {order.host[:128]!r} of {order.cluster[:128]!r}")
        if order.at_ns > now_ns + _SKEW_NS:
            raise CommandRefused("future", "it was given in the future: the operator's clock is wrong")

    def restore(self, document: object) -> None:
        """Take up the orders of an earlier run; raises msgspec's ValidationError for what are none."""
        for host, order in msgspec.convert(document, dict[str, Maintenance]).items():
            self.orders[host] = order

    def closed(self) -> dict[str, str]:
        """Return the hosts that take no guests, each with why."""
        return {host: f"in maintenance by {order.by}" for host, order in self.orders.items() if order.on}

    def wants(self, fleet: MeasuredFleet) -> Iterator[Want]:
        """Give what is to leave, of each host the guest with the most memory first: it is the hardest to place."""
        for host, order in self.orders.items():
            for place, row in enumerate(self._left(host, fleet) if order.on else ()):
                yield Want(
                    cause=record_id("mt", host, order.at_ns),
                    rule=RULE,
                    subject=row.subject,
                    rung=0,
                    attempt=0,
                    remedy=MigrateRemedy(None),
                    priority=PRIORITY,
                    knob=PLACEMENT,
                    severity="info",
                    mode=Mode.ACT,
                    cooldown=Cooldown(),
                    since_ns=order.at_ns + place * _STEP_NS,
                )

    @staticmethod
    def _left(host: str, fleet: MeasuredFleet) -> list[Row]:
        """Return the guests that run on a host; those that are off stay."""
        rows = (row for row in fleet.evaluator.latest(Kind.VM).values() if row.subject.host == host)
        there = [row for row in rows if int(row.values.get("state_code", 1)) in ALIVE]
        return sorted(there, key=lambda row: (-row.values.get("memory_balloon_bytes", 0.0), row.subject.id))

    def refused(self, decision: Decision) -> bool:
        """Take note of why a guest cannot leave; True where that has not been said, numbers aside."""
        if decision.rule != RULE:
            return False
        said = _NUMBER.sub("#", f"{decision.guard}: {decision.reason}")
        news = self._refused.get(decision.subject.id, ("", ""))[0] != said
        self._refused[decision.subject.id] = said, f"{decision.guard}: {decision.reason}"
        return news

    def tell(self, bus: Bus, topics: Topics, fleet: MeasuredFleet) -> None:
        """Say how far each host is, where that is news, and on a new connection all: the broker may have lost it."""
        if bus.generation not in {0, self._generation}:
            self._generation = bus.generation
            self._told.clear()
        for report in self.reports(fleet):
            bus.publish(Message(topics.emptying(report.host), msgspec.json.encode(report), retain=True))

    def reports(self, fleet: MeasuredFleet) -> Iterator[Emptying]:
        """Give how far each host is, where that has changed since the last call."""
        for host, order in self.orders.items():
            left = self._left(host, fleet) if order.on else []
            said = {row.subject.name: self._refused.get(row.subject.id, ("", ""))[1] for row in left}
            report = Emptying(
                host=host,
                on=order.on,
                by=order.by,
                reason=order.reason,
                since_ns=order.at_ns,
                left=[row.subject.name for row in left],
                refused={name: why for name, why in said.items() if why},
            )
            if self._told.get(host) != report:
                self._told[host] = report
                yield report
