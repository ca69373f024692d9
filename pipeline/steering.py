"""Adaptive sampling, as the controller asks for it: guests near a threshold more often, calm ones less.

near a threshold, a signal under way, an effect being measured → fast; long none of these → calm → bus sampling/<host>
What is asked for is repeated while it holds and ends by itself, so that agents without a controller keep their tick.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Annotated, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from virtpilot.clock import SECOND, seconds
from virtpilot.model import Bus, Kind, Message, Sampling
from virtpilot.rules.language.records import Rule
from virtpilot.rules.signals.evaluator import Evaluator
from virtpilot.rules.signals.nearness import Nearness
from virtpilot.rules.signals.table import Table
from virtpilot.topics import Topics

# So many guests, or hosts, are looked at in one go.
_GUESTS_AT_ONCE: Final = 2500
_HOSTS_AT_ONCE: Final = 50


class SteeringOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which guests agents are asked to sample faster or less often; each agent's own bounds hold."""

    every_s: Annotated[
        float, msgspec.Meta(description="Seconds between looks at who is near a threshold; 0: never.", ge=0, le=60)
    ] = 5.0
    margin_ratio: Annotated[
        float,
        msgspec.Meta(description="Near is what a threshold relaxed by this share of itself would catch.", ge=0, le=1),
    ] = 0.2
    fast_s: Annotated[float, msgspec.Meta(description="Seconds between samples of a guest that is near.", ge=1)] = 1.0
    fast_guests: Annotated[
        int, msgspec.Meta(description="At most so many guests of a host are sampled faster.", ge=0, le=1000)
    ] = 20
    hold_s: Annotated[
        float, msgspec.Meta(description="So long after it was last near a guest is still sampled faster.", ge=0)
    ] = 30.0
    calm_after_s: Annotated[
        float, msgspec.Meta(description="A guest that was not near for so long is sampled less often.", ge=0)
    ] = 300.0
    calm_s: Annotated[float, msgspec.Meta(description="Seconds between samples of a calm guest.", gt=0, le=30)] = 30.0
    lease_s: Annotated[
        float,
        msgspec.Meta(
            description="An agent that hears nothing for so long samples at its own tick again.", ge=3, le=120
        ),
    ] = 20.0


class _Order(msgspec.Struct, frozen=True):
    """What one host is asked for."""

    fast: tuple[str, ...] = ()
    calm: tuple[str, ...] = ()


class _Groups:
    """Who is to be sampled faster and who less often, by host; of the fast ones first those that others depend on."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._fast: dict[str, list[tuple[bool, str]]] = {}
        self._calm: dict[str, list[str]] = {}

    def fast(self, host: str, guest: str, *, urgent: bool) -> None:
        """Add a guest that is near."""
        self._fast.setdefault(host, []).append((not urgent, guest))

    def calm(self, host: str, guest: str) -> None:
        """Add a guest that was not near for long."""
        self._calm.setdefault(host, []).append(guest)

    def hosts(self) -> set[str]:
        """Return the hosts of all of them."""
        return self._fast.keys() | self._calm.keys()

    def order(self, host: str) -> _Order:
        """Return what a host is to be asked for."""
        fast = sorted(self._fast.get(host, ()))[: self._limit]
        return _Order(tuple(sorted(guest for _less, guest in fast)), tuple(sorted(self._calm.get(host, ()))))


class Steering:
    """Remembers who was near and when, and what each host was asked for."""

    def __init__(self, options: SteeringOptions) -> None:
        self._options = options
        self._next_ns = 0
        self._begun_ns: int | None = None
        self._looked_ns = 0
        self._nearness: tuple[Sequence[Rule], Nearness] | None = None
        self._changes: tuple[Table, int] | None = None
        self._near_ns: dict[str, int] = {}
        self._asked: dict[str, tuple[_Order, int]] = {}

    def counts(self) -> dict[str, int]:
        """Return how many guests are asked to be sampled faster and less often; any thread may ask."""
        orders = [order for order, _at in tuple(self._asked.values())]
        return {"fast": sum(len(one.fast) for one in orders), "calm": sum(len(one.calm) for one in orders)}

    def look(
        self,
        evaluator: Evaluator,
        rules: Sequence[Rule],
        measuring: Collection[str],
        hosts: Collection[str],
        now_ns: int,
    ) -> Iterator[list[Sampling]]:
        """Yield step by step what the hosts are to be asked for now; nothing while it is not time for a look.

        `measuring` are the guests on which an effect is awaited, `hosts` those whose agents are there.
        """
        if not self._options.every_s or not self._is_time(now_ns):
            return
        self._begun_ns = now_ns if self._begun_ns is None else min(self._begun_ns, now_ns)
        if now_ns < self._looked_ns:
            # What lies in the future was noted before the clock was set back.
            self._near_ns = {guest: at for guest, at in self._near_ns.items() if at <= now_ns}
        self._looked_ns = now_ns
        urgent = evaluator.active(Kind.VM) | set(measuring)
        self._near_ns |= {guest: now_ns for guest in urgent if evaluator.knows(Kind.VM, guest)}
        groups = _Groups(self._options.fast_guests)
        nearness, table = self._near_by(rules), evaluator.world.tables[Kind.VM]
        were_near = self._were_near(table)
        for rows in _portions(table.taken()):
            near = nearness.near(evaluator.world, rows)
            self._near_ns |= dict.fromkeys(near, now_ns)
            were_near[[table.row_of[guest] for guest in near]] = True
            self._group(table, rows, were_near[rows], urgent, hosts, groups, now_ns)
            yield []
        self._forget_gone(table)
        yield from self._orders(groups, now_ns)

    def _is_time(self, now_ns: int) -> bool:
        every_ns = seconds(self._options.every_s)
        if 0 < self._next_ns - now_ns <= every_ns:
            return False
        self._next_ns = now_ns + every_ns
        return True

    def _near_by(self, rules: Sequence[Rule]) -> Nearness:
        """Return what tells who is near a threshold of the rules in force."""
        known = self._nearness
        if known is None or known[0] is not rules:
            known = self._nearness = rules, Nearness(rules, self._options.margin_ratio)
        return known[1]

    def _group(
        self,
        table: Table,
        rows: NDArray[np.int64],
        were_near: NDArray[np.bool_],
        urgent: set[str],
        hosts: Collection[str],
        groups: _Groups,
        now_ns: int,
    ) -> None:
        hold_ns, calm_ns = seconds(self._options.hold_s), seconds(self._options.calm_after_s)
        known = now_ns - np.maximum(table.since[rows], self._begun_ns or now_ns) > calm_ns
        # All others are nobody's concern.
        some = known | were_near
        for row, long_known in zip(rows[some].tolist(), known[some].tolist(), strict=True):
            subject = table.subjects[row]
            if subject is None or subject.host not in hosts:
                continue
            near_ns = self._near_ns.get(subject.id)
            if near_ns is None:
                if long_known:
                    groups.calm(subject.host, subject.id)
            elif now_ns - near_ns <= hold_ns:
                groups.fast(subject.host, subject.id, urgent=subject.id in urgent)
            elif now_ns - near_ns > calm_ns:
                groups.calm(subject.host, subject.id)

    def _were_near(self, table: Table) -> NDArray[np.bool_]:
        """Tell of each row whether its guest was near at some time."""
        found = np.zeros(table.capacity, np.bool_)
        found[[row for guest in self._near_ns if (row := table.row_of.get(guest)) is not None]] = True
        return found

    def _forget_gone(self, table: Table) -> None:
        """Forget the guests that are no more, where any has gone since this was last done."""
        if self._changes is None or self._changes[0] is not table or self._changes[1] != table.changes:
            self._near_ns = {guest: at for guest, at in self._near_ns.items() if guest in table.row_of}
            self._changes = table, table.changes

    def _orders(self, groups: _Groups, now_ns: int) -> Iterator[list[Sampling]]:
        hosts = sorted(groups.hosts() | self._asked.keys())
        for first in range(0, len(hosts), _HOSTS_AT_ONCE):
            orders = [(host, groups.order(host)) for host in hosts[first : first + _HOSTS_AT_ONCE]]
            yield [self._ask(host, order, now_ns) for host, order in orders if self._is_news(host, order, now_ns)]

    def _is_news(self, host: str, order: _Order, now_ns: int) -> bool:
        """Tell whether a host is to be asked: for something else than before, or again before it forgets."""
        former, asked_ns = self._asked.get(host, (_Order(), 0))
        if order != former:
            return True
        return order != _Order() and not 0 <= now_ns - asked_ns < seconds(self._options.lease_s / 3)

    def _ask(self, host: str, order: _Order, now_ns: int) -> Sampling:
        if order == _Order():
            self._asked.pop(host, None)
        else:
            self._asked[host] = (order, now_ns)
        options = self._options
        return Sampling(
            host=host,
            at_ns=now_ns,
            until_ns=now_ns + seconds(options.lease_s),
            fast=list(order.fast),
            fast_s=options.fast_s,
            calm=list(order.calm),
            calm_s=options.calm_s,
        )


def sent(asked: Iterator[list[Sampling]], bus: Bus, topics: Topics) -> Iterator[None]:
    """Ask agents to sample those near a threshold more often, and calm ones less; some of them at each step."""
    for orders in asked:
        with bus.together():
            for order in orders:
                lasts_s = max(1, (order.until_ns - order.at_ns) // SECOND)
                bus.publish(Message(topics.sampling(order.host), msgspec.json.encode(order), expiry_s=lasts_s))
        yield


def _portions(rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    for first in range(0, len(rows), _GUESTS_AT_ONCE):
        yield rows[first : first + _GUESTS_AT_ONCE]
