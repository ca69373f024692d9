"""Live migration: pre-copy in rounds, V(i+1) = V(i) · D / R, until the rest fits into the allowed downtime."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from enum import StrEnum
from typing import Final

import numpy as np

from virtpilot.action import Way
from virtpilot.events import EventKind
from virtpilot.hypervisor import GuestState, JobState, JobStatus
from virtpilot.simulator.scenario import MigrationSpec
from virtpilot.simulator.world import MIB, World

OPERATION: Final = "migration_out"
_CONVERGING: Final = 0.5
_PATIENCE_ROUNDS: Final = 2
_INSTANT_S: Final = 1e-9


class Phase(StrEnum):
    """Where a migration stands."""

    SETUP = "setup"
    COPY = "copy"
    SWITCH = "switch"
    DONE = "done"
    FAILED = "failed"


class Migration:
    """One guest on its way: bytes left in this round, bytes dirtied meanwhile, at the rates set from outside."""

    def __init__(
        self, spec: MigrationSpec, guest: int, source: int, target: int, memory_bytes: float, way: Way
    ) -> None:
        self.guest, self.source, self.target = guest, source, target
        self.phase = Phase.SETUP
        self.error = ""
        self.round = 0
        self.throttle = 0.0
        self.memory_bytes = memory_bytes
        self.sent_bytes = 0.0
        self.elapsed_s = 0.0
        self.downtime_s = 0.0
        self.bandwidth = 0.0
        self.dirty_rate = 0.0
        self.limit = float(way.bandwidth_bytes_s) or np.inf
        self._downtime_s = way.downtime_s or spec.downtime_s
        self._converges = spec.auto_converge and way.auto_converge
        self._spec = spec
        self._round_bytes = memory_bytes
        self._left_bytes = memory_bytes
        self._dirtied = 0.0
        self._left_s = spec.setup_s
        self._stalls = 0

    @property
    def active(self) -> bool:
        """Whether it still goes on."""
        return self.phase not in (Phase.DONE, Phase.FAILED)

    @property
    def copying(self) -> bool:
        """Whether it takes a part of the link."""
        return self.phase in (Phase.COPY, Phase.SWITCH)

    @property
    def speed(self) -> float:
        """How fast the guest runs meanwhile, as a share of its full speed."""
        if self.phase is Phase.SWITCH:
            return 0.0
        return self._spec.guest_speed_ratio * (1.0 - self.throttle)

    def next_s(self) -> float:
        """Return the seconds until something changes at the present rates."""
        if self.phase is Phase.COPY:
            return self._left_bytes / self.bandwidth if self.bandwidth > 0 else np.inf
        return self._left_s if self.active else np.inf

    def run(self, span_s: float) -> None:
        """Let `span_s` seconds pass, no more than `next_s`."""
        self.elapsed_s += span_s
        if self.phase is Phase.COPY:
            moved = min(self.bandwidth * span_s, self._left_bytes)
            self._left_bytes -= moved
            self.sent_bytes += moved
            self._dirtied = min(self._dirtied + self.dirty_rate * span_s, self.memory_bytes)
        elif self.active:
            self._left_s = max(self._left_s - span_s, 0.0)
            self.downtime_s += span_s if self.phase is Phase.SWITCH else 0.0

    def turn(self) -> bool:
        """Go over to the next round or phase when this one is finished; tells whether it did."""
        if not self.active or self.next_s() > _INSTANT_S:
            return False
        if self.phase is Phase.SETUP:
            self.phase = Phase.COPY
        elif self.phase is Phase.COPY:
            self._end_round()
        else:
            self.sent_bytes += self._round_bytes
            self._left_bytes = 0.0
            self.phase = Phase.DONE
        return True

    def switch(self) -> None:
        """Go over to post-copy: the guest runs on the target after the switch, its memory is taken to follow."""
        if self.phase is Phase.COPY:
            self.phase = Phase.SWITCH
            self._left_s = self._spec.switchover_s

    def _end_round(self) -> None:
        before, self._round_bytes = self._round_bytes, self._dirtied
        self._left_bytes, self._dirtied = self._round_bytes, 0.0
        self.round += 1
        pause_s = self._round_bytes / self.bandwidth
        if pause_s <= self._downtime_s:
            self.phase = Phase.SWITCH
            self._left_s = pause_s + self._spec.switchover_s
        elif self.round >= self._spec.max_rounds:
            rates = f"dirty rate {self.dirty_rate / MIB:.0f} MiB/s, bandwidth {self.bandwidth / MIB:.0f} MiB/s"
            self.fail(f"operation aborted: migration does not converge after {self.round} rounds: {rates}")
        elif self._converges and self._round_bytes > _CONVERGING * before:
            self._slow_down()

    def _slow_down(self) -> None:
        """Throttle the guest further, once two rounds have not halved the rest (as QEMU's auto-converge does)."""
        self._stalls += 1
        if self._stalls >= _PATIENCE_ROUNDS:
            self._stalls = 0
            step = self._spec.throttle_step_ratio if self.throttle else self._spec.throttle_initial_ratio
            self.throttle = min(self.throttle + step, self._spec.throttle_max_ratio)

    def fail(self, error: str) -> None:
        """End it without success; the guest stays where it is."""
        if self.active:
            self.phase = Phase.FAILED
            self.error = error

    def status(self) -> JobStatus:
        """Return what virDomainGetJobStats would tell, in bytes and seconds."""
        state = {Phase.DONE: JobState.DONE, Phase.FAILED: JobState.FAILED}.get(self.phase, JobState.RUNNING)
        progress = {
            "data_total_bytes": self.sent_bytes + self._left_bytes,
            "data_processed_bytes": self.sent_bytes,
            "data_remaining_bytes": self._left_bytes,
            "dirty_bytes_per_second": self.dirty_rate,
            "bandwidth_bytes_per_second": self.bandwidth,
            "iterations_count": float(self.round),
            "throttle_ratio": self.throttle,
            "elapsed_seconds": self.elapsed_s,
            "downtime_seconds": self.downtime_s,
        }
        there = GuestState.RUNNING if self.phase is Phase.DONE else GuestState.NOSTATE
        return JobStatus(state, self.error, progress, there)


class Migrations:
    """All migrations under way in the fleet; they share the hosts' links evenly, each direction by itself."""

    def __init__(self, world: World) -> None:
        self.active: list[Migration] = []
        self._world = world

    def of(self, guest: int) -> Migration | None:
        """Return the migration of a guest that is under way, if any."""
        return next((migration for migration in self.active if migration.guest == guest), None)

    def start(self, guest: int, target: int, way: Way) -> Migration:
        """Begin to move a guest; the caller has checked that it runs and that the target can be reached."""
        world = self._world
        migration = Migration(
            world.scenario.migration, guest, int(world.host[guest]), target, float(world.used_bytes[guest]), way
        )
        self.active.append(migration)
        self._slow(migration)
        self._tell(migration, EventKind.MIGRATION_ITERATION, "", {"iterations_count": 1.0})
        return migration

    def abort(self, migration: Migration, error: str) -> None:
        """End a migration without success: the guest goes on where it is, at full speed."""
        if not migration.active:
            return
        migration.fail(error)
        self._finish(migration)

    def switch(self, migration: Migration) -> None:
        """Go over to post-copy."""
        migration.switch()
        self._slow(migration)
        self._tell(migration, EventKind.SUSPENDED, "migrated")

    def set_rates(self) -> None:
        """Divide the links among those who copy, and take over how fast the guests dirty their memory."""
        sending = Counter(migration.source for migration in self.active if migration.copying)
        receiving = Counter(migration.target for migration in self.active if migration.copying)
        link = self._world.link
        for migration in self.active:
            source, target = migration.source, migration.target
            if migration.copying:
                fair = min(link[source] / sending[source], link[target] / receiving[target])
                migration.bandwidth = float(min(fair, migration.limit))
            migration.dirty_rate = float(self._world.dirty_rate[migration.guest])

    def next_s(self) -> float:
        """Return the seconds until the first of them changes at the present rates."""
        return min((migration.next_s() for migration in self.active), default=np.inf)

    def run(self, span_s: float) -> None:
        """Let `span_s` seconds pass."""
        self._world.incoming_bytes[:] = 0.0
        for migration in self.active:
            migration.run(span_s)
            self._world.incoming_bytes[migration.target] += min(migration.sent_bytes, migration.memory_bytes)

    def turn(self) -> bool:
        """Let those that are due change their round or phase; tells whether any did."""
        rounds = {id(migration): migration.round for migration in self.active}
        turned = [migration for migration in self.active if migration.turn()]
        for migration in turned:
            if migration.active:
                self._slow(migration)
                if migration.phase is Phase.SWITCH:
                    self._tell(migration, EventKind.SUSPENDED, "migrated")
                elif migration.round > rounds[id(migration)]:
                    count = {"iterations_count": migration.round + 1.0}
                    self._tell(migration, EventKind.MIGRATION_ITERATION, "", count)
            else:
                self._finish(migration)
        return bool(turned)

    def _slow(self, migration: Migration) -> None:
        self._world.stale = True
        self._world.speed[migration.guest] = migration.speed
        self._world.paused[migration.guest] = migration.phase is Phase.SWITCH
        if migration.phase is Phase.SWITCH:
            self._world.reason[migration.guest] = 2

    def _tell(
        self, migration: Migration, kind: EventKind, detail: str = "", numbers: Mapping[str, float] | None = None
    ) -> None:
        """Let the source's libvirt tell: it is the one that knows."""
        spec = self._world.scenario.guests[migration.guest]
        self._world.chronicle.tell(migration.source, kind, (spec.uuid, spec.name), detail, numbers)

    def _finish(self, migration: Migration) -> None:
        self.active.remove(migration)
        self._world.stale = True
        world, guest = self._world, migration.guest
        progress = migration.status().progress
        if migration.phase is Phase.DONE:
            self._tell(migration, EventKind.JOB_COMPLETED, OPERATION, progress)
            self._tell(migration, EventKind.STOPPED, "migrated")
            world.land(guest, migration.target)
        elif world.running[guest]:
            self._tell(migration, EventKind.JOB_ENDED, OPERATION, progress)
            world.paused[guest], world.speed[guest], world.reason[guest] = False, 1.0, 6
        world.incoming_bytes[migration.target] = sum(
            min(other.sent_bytes, other.memory_bytes) for other in self.active if other.target == migration.target
        )
