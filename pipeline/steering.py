"""Adaptive sampling, as the controller asks for it: guests near a threshold more often, calm ones less.

near a threshold, a signal under way, an effect being measured → fast; long none of these → calm → bus sampling/<host>
What is asked for is repeated while it holds and ends by itself, so that agents without a controller keep their tick.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Annotated

import msgspec

from virtpilot.clock import seconds
from virtpilot.model import Kind, Sampling
from virtpilot.rules.language.records import Rule
from virtpilot.rules.signals.evaluator import Evaluator
from virtpilot.rules.signals.nearness import near


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


class Steering:
    """Remembers who was near and when, and what each host was asked for."""

    def __init__(self, options: SteeringOptions) -> None:
        self._options = options
        self._next_ns = 0
        self._near_ns: dict[str, int] = {}
        self._begun_ns: dict[str, int] = {}
        self._asked: dict[str, tuple[_Order, int]] = {}

    def counts(self) -> dict[str, int]:
        """Return how many guests are asked to be sampled faster and less often; any thread may ask."""
        orders = [order for order, _at in tuple(self._asked.values())]
        return {"fast": sum(len(one.fast) for one in orders), "calm": sum(len(one.calm) for one in orders)}

    def look(
        self,
        evaluator: Evaluator,
        rules: Iterable[Rule],
        measuring: Collection[str],
        hosts: Collection[str],
        now_ns: int,
    ) -> list[Sampling]:
        """Return what the hosts are to be asked for now; nothing while it is not time for a look.

        `measuring` are the guests on which an effect is awaited, `hosts` those whose agents are there.
        """
        if not self._options.every_s or not self._is_time(now_ns):
            return []
        urgent = evaluator.active(Kind.VM) | set(measuring)
        self._note(evaluator, urgent | near(evaluator.world, rules, self._options.margin_ratio), now_ns)
        wanted = self._wanted(evaluator, urgent, hosts, now_ns)
        return [
            self._ask(host, wanted.get(host, _Order()), now_ns)
            for host in sorted(wanted.keys() | self._asked.keys())
            if self._is_news(host, wanted.get(host, _Order()), now_ns)
        ]

    def _is_time(self, now_ns: int) -> bool:
        every_ns = seconds(self._options.every_s)
        if 0 < self._next_ns - now_ns <= every_ns:
            return False
        self._next_ns = now_ns + every_ns
        return True

    def _note(self, evaluator: Evaluator, close: set[str], now_ns: int) -> None:
        """Remember when each guest was last near, and since when it has been known."""
        known = evaluator.world.tables[Kind.VM].row_of
        self._begun_ns = {guest: min(self._begun_ns.get(guest, now_ns), now_ns) for guest in known}
        self._near_ns = {guest: at for guest, at in self._near_ns.items() if guest in known and at <= now_ns}
        self._near_ns |= {guest: now_ns for guest in close if guest in known}

    def _wanted(self, evaluator: Evaluator, urgent: set[str], hosts: Collection[str], now_ns: int) -> dict[str, _Order]:
        hold_ns, calm_ns = seconds(self._options.hold_s), seconds(self._options.calm_after_s)
        fast: dict[str, list[tuple[bool, str]]] = {}
        calm: dict[str, list[str]] = {}
        table = evaluator.world.tables[Kind.VM]
        for guest, row in table.row_of.items():
            subject = table.subjects[row]
            if subject is None or subject.host not in hosts:
                continue
            near_ns = self._near_ns.get(guest)
            if near_ns is not None and now_ns - near_ns <= hold_ns:
                fast.setdefault(subject.host, []).append((guest not in urgent, guest))
            elif now_ns - (self._begun_ns[guest] if near_ns is None else near_ns) > calm_ns:
                calm.setdefault(subject.host, []).append(guest)
        limit = self._options.fast_guests
        return {
            host: _Order(
                tuple(sorted(guest for _less, guest in sorted(fast.get(host, ()))[:limit])),
                tuple(sorted(calm.get(host, ()))),
            )
            for host in fast.keys() | calm.keys()
        }

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
