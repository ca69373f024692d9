"""A fleet in virtual time: to collectors and actuators it looks like real hosts.

Demand changes once a virtual second; between that, scripted faults, the rounds of migrations and what callers set, all
rates stand and are integrated exactly. So the length of the callers' steps does not matter, and the same scenario
with the same calls at the same times gives the same bytes. No threads, no real time.
"""

from __future__ import annotations

import math
from typing import Final

from virtpilot.clock import SECOND, seconds
from virtpilot.errors import InputError, Problem
from virtpilot.hypervisor import HostFacts
from virtpilot.simulator.fault import Faults
from virtpilot.simulator.files import HostFiles, Moment
from virtpilot.simulator.hypervisor import FleetHypervisor, host_facts
from virtpilot.simulator.knobs import KnobBook
from virtpilot.simulator.migration import Migrations
from virtpilot.simulator.scenario import Scenario, mistakes
from virtpilot.simulator.view import FleetView, fleet_view
from virtpilot.simulator.world import NOWHERE, World

DEFAULT_START_NS: Final = 1_700_000_000 * SECOND


class Fleet:
    """A scenario that runs from `start_ns` on; raises InputError when the scenario contradicts itself."""

    def __init__(self, scenario: Scenario, start_ns: int = DEFAULT_START_NS) -> None:
        wrong = [Problem(scenario.name, 0, 0, f"{path}: {message}") for path, message in mistakes(scenario)]
        if wrong:
            raise InputError(wrong)
        self._world = World(scenario)
        self._knobs = KnobBook(self._world)
        self._migrations = Migrations(self._world)
        self._faults = Faults(self._world, self._migrations)
        self._start_ns = start_ns
        self._world.chronicle.now_ns = start_ns
        self._elapsed_ns = 0
        self._second = -1
        self._settle()

    @property
    def now_ns(self) -> int:
        """The virtual time, ns since the epoch."""
        return self._start_ns + self._elapsed_ns

    @property
    def hosts(self) -> tuple[str, ...]:
        """The names of all hosts, dead ones too."""
        return self._world.host_names

    def advance(self, step_s: float) -> int:
        """Let `step_s` seconds of virtual time pass and return the new time in ns; raises ValueError below 0."""
        if step_s < 0:
            raise ValueError(f"virtual time cannot go back: {step_s}")
        target = self._elapsed_ns + seconds(step_s)
        while self._elapsed_ns < target:
            self._refresh()
            span = self._span_ns(target)
            self._migrations.run(span / SECOND)
            self._world.integrate(span / SECOND)
            self._elapsed_ns += span
            self._world.chronicle.now_ns = self.now_ns
            self._settle()
        return self.now_ns

    def hypervisor(self, host: str, *, deadline_s: float = 5.0) -> FleetHypervisor:
        """Return a new connection to a host's libvirt; raises KeyError for an unknown host."""
        return FleetHypervisor(
            self._world, self._knobs, self._migrations, self._faults, self._index(host), deadline_s=deadline_s
        )

    def tree(self, host: str) -> HostFiles:
        """Return the files of a host, which raise FileNotFoundError; KeyError for an unknown host."""

        def moment() -> Moment:
            self._refresh()
            return Moment(self.now_ns, self._elapsed_ns / SECOND)

        return HostFiles(self._world, self._index(host), moment)

    def facts(self, host: str) -> HostFacts:
        """Return what a host is, dead or alive; raises KeyError for an unknown host."""
        spec = self._world.scenario.hosts[self._index(host)]
        return host_facts(spec.cpus, int(self._world.memory_bytes[self._index(host)]))

    def online(self, host: str) -> bool:
        """Tell whether a host has power: an agent on a dead one is dead as well."""
        return bool(self._world.powered[self._index(host)])

    def migration_uri(self, host: str) -> str:
        """Return the libvirt URI under which the fleet's hosts reach a host."""
        return f"qemu+tcp://{self._world.host_names[self._index(host)]}/system"

    def guest_host(self, uuid: str) -> str | None:
        """Return the host on which a guest is now, None when it is gone or was never there."""
        index = self._world.guest_index.get(uuid)
        if index is None or self._world.host[index] == NOWHERE:
            return None
        return self._world.host_names[int(self._world.host[index])]

    def view(self) -> FleetView:
        """Return all of it as an observer sees it at this moment."""
        self._refresh()
        return fleet_view(self._world, self._migrations, self._faults, self.now_ns)

    def _index(self, host: str) -> int:
        return self._world.host_index[host]

    def _span_ns(self, target: int) -> int:
        """Return how long the present rates stand, up to the target."""
        whole_second = (self._elapsed_ns // SECOND + 1) * SECOND
        end = min(target, whole_second, self._faults.next_ns())
        turn_s = self._migrations.next_s()
        if turn_s < (end - self._elapsed_ns) / SECOND:
            end = min(end, self._elapsed_ns + max(math.ceil(turn_s * SECOND), 1))
        return end - self._elapsed_ns

    def _settle(self) -> None:
        """Apply all that is due at this moment: faults, rounds of migrations, and what the guests want now."""
        second = self._elapsed_ns // SECOND
        if second > self._second:
            self._second = second
            self._world.want(float(second))
        self._refresh()
        while self._faults.apply(self._elapsed_ns) | self._migrations.turn():
            self._refresh()

    def _refresh(self) -> None:
        """Take over what callers and faults have changed: who gets what, and how fast migrations go."""
        if self._world.stale:
            self._world.refresh()
            self._migrations.set_rates()
