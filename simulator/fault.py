"""Scripted faults: when each begins and ends, and what it does to hosts and guests."""

from __future__ import annotations

from typing import Final

import numpy as np

from virtpilot.clock import seconds
from virtpilot.events import EventKind
from virtpilot.simulator.migration import Migrations
from virtpilot.simulator.scenario import (
    Event,
    GuestStop,
    GuestVanish,
    HypervisorDown,
    HypervisorSlow,
    LinkDown,
    SharesSet,
    guest_uuid,
)
from virtpilot.simulator.world import NOWHERE, World

_NEVER: Final = 1 << 62
# virDomainShutoffReason
_SHUT_DOWN, _DESTROYED = 1, 2


class Faults:
    """The scenario's events in order; those whose time has come are applied to the world."""

    def __init__(self, world: World, migrations: Migrations) -> None:
        count = len(world.host_names)
        self.answer_s = np.zeros(count)
        # several faults of one kind may overlap: the thing works again after the last of them
        self._down = np.zeros(count, dtype=np.intp)
        self._link_down = np.zeros(count, dtype=np.intp)
        self._dead = np.zeros(count, dtype=np.intp)
        self._world, self._migrations = world, migrations
        self._due = _timeline(world.scenario.events)
        self._place = 0

    def hypervisor_up(self, host: int) -> bool:
        """Tell whether the host's libvirt answers."""
        return bool(self._world.powered[host]) and not self._down[host]

    def link_up(self, host: int) -> bool:
        """Tell whether migrations can leave and reach the host."""
        return bool(self._world.powered[host]) and not self._link_down[host]

    def next_ns(self) -> int:
        """Return when the next one begins or ends, ns after the start."""
        return self._due[self._place][0] if self._place < len(self._due) else _NEVER

    def apply(self, elapsed_ns: int) -> bool:
        """Apply all that are due at `elapsed_ns` after the start; tells whether there were any."""
        before = self._place
        while self.next_ns() <= elapsed_ns:
            at_ns, _, begins, event = self._due[self._place]
            self._place += 1
            self._change(event, begins, at_ns / 1e9)
        return self._place > before

    def _change(self, event: Event, begins: bool, at_s: float) -> None:
        self._world.stale = True
        if isinstance(event, SharesSet):
            self._set_shares(event)
            return
        if isinstance(event, GuestVanish | GuestStop):
            self._change_guest(event, begins)
            return
        host, step = self._world.host_index[event.host], 1 if begins else -1
        if isinstance(event, HypervisorSlow):
            self.answer_s[host] = event.answer_s if begins else 0.0
        elif isinstance(event, HypervisorDown):
            self._down[host] += step
            self._cut(host, "the connection to its libvirt daemon was lost", begins)
        elif isinstance(event, LinkDown):
            self._link_down[host] += step
            self._cut(host, "unable to write to the migration socket: connection timed out", begins)
        else:
            self._dead[host] += step
            self._power(host, at_s, begins)

    def _power(self, host: int, at_s: float, begins: bool) -> None:
        if begins and self._world.powered[host]:
            self._cut(host, "the host lost power", begins)
            self._world.power_off(host)
        elif not self._dead[host] and not self._world.powered[host]:
            self._world.power_on(host, at_s)

    def _cut(self, host: int, why: str, begins: bool) -> None:
        """End the migrations from and to a host."""
        if not begins:
            return
        name = self._world.host_names[host]
        for migration in list(self._migrations.active):
            if host in (migration.source, migration.target):
                self._migrations.abort(migration, f"operation failed: migration job: {name}: {why}")

    def _set_shares(self, event: SharesSet) -> None:
        guest = self._world.guest_index[guest_uuid(event.guest)]
        if self._world.running[guest]:
            self._world.set_shares(guest, event.cpu_shares)

    def _change_guest(self, event: GuestVanish | GuestStop, begins: bool) -> None:
        guest = self._world.guest_index[guest_uuid(event.guest)]
        if self._world.host[guest] == NOWHERE:
            return
        if not begins:
            if not self._world.running[guest] and self._world.powered[self._world.host[guest]]:
                self._world.start(guest)
            return
        migration = self._migrations.of(guest)
        if migration:
            self._migrations.abort(migration, "operation failed: domain is not running")
        vanishes = isinstance(event, GuestVanish)
        self._world.stop(guest, reason=_DESTROYED if vanishes else _SHUT_DOWN)
        if vanishes:
            self._world.tell(guest, EventKind.UNDEFINED, "removed")
            self._world.host[guest] = NOWHERE


def _timeline(events: list[Event]) -> list[tuple[int, int, bool, Event]]:
    """Return (ns after the start, order in the file, begins or ends, event), by time."""
    due: list[tuple[int, int, bool, Event]] = []
    for number, event in enumerate(events):
        due.append((seconds(event.at_s), number, True, event))
        if not isinstance(event, GuestVanish | SharesSet) and event.for_s:
            due.append((seconds(event.at_s + event.for_s), number, False, event))
    return sorted(due, key=lambda entry: entry[:2])
