"""What the controller knows of the fleet: hosts and guests as the planner and the guards see them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Final

import structlog

from virtpilot.model import HostStatus, Kind
from virtpilot.planner.affinity import Company, company, wishes
from virtpilot.planner.moving import MoveLoad
from virtpilot.planner.placement import GuestLoad, HostLoad
from virtpilot.rules.signals.evaluator import Evaluator
from virtpilot.rules.signals.table import Row
from virtpilot.tracked import Tracked

log = structlog.get_logger(__name__)

# What planner, guards and evaluator read, whether or not a rule names it.
ALSO: Final[Mapping[str, frozenset[str]]] = {
    "host": frozenset(
        {
            "cpu_usage_ratio",
            "cpus_count",
            "memory_total_bytes",
            "memory_available_bytes",
            "nics_link_speed_bytes_per_second",
        }
    ),
    "vm": frozenset(
        {
            "state_code",
            "sample_interval_seconds",
            "cpu_usage_ratio",
            "cpu_steal_ratio",
            "vcpus_count",
            "memory_balloon_bytes",
            "memory_rss_bytes",
            "memory_dirty_bytes_per_second",
            "memory_dirty_age_seconds",
        }
    ),
}
# A guest may do something else by then.
_DIRTY_AGE_S: Final = 900.0


class MeasuredFleet:
    """The agents' retained statuses joined with the newest samples."""

    def __init__(self, evaluator: Evaluator, fresh_ns: int) -> None:
        self.evaluator = evaluator
        self.closed: Mapping[str, str] = {}  # hosts that take no guests, each with why
        self.statuses: Tracked[str, HostStatus] = Tracked()
        self._fresh_ns = fresh_ns

    def on_status(self, status: HostStatus) -> None:
        """Take a host's newest word; an agent that restarted may be heard after its own last will."""
        if self.statuses.get(status.host) != status:
            self.statuses[status.host] = status

    def guest(self, guest_id: str) -> Row | None:
        """Return a guest's newest row, None where it is not known."""
        return self.evaluator.row(Kind.VM, guest_id)

    def host_of(self, guest: str) -> tuple[str, str] | None:
        """Return the UUID and the host of a guest, by its UUID or its only bearer's name; None where there is none."""
        row = self.guest(guest)
        if row is not None:
            return row.subject.id, row.subject.host
        named = [row for row in self.evaluator.latest(Kind.VM).values() if row.subject.name == guest]
        return (named[0].subject.id, named[0].subject.host) if len(named) == 1 else None

    def host(self, name: str) -> Row | None:
        """Return a host's newest row, None where it is not known."""
        return self.evaluator.row(Kind.HOST, name)

    def guest_load(self, row: Row) -> GuestLoad:
        """Return what a guest uses and lacks now, in cores and bytes."""
        vcpus = row.values.get("vcpus_count", 1.0)
        used = row.values.get("cpu_usage_ratio", 0.0) * vcpus
        return GuestLoad(
            id=row.subject.id,
            name=row.subject.name,
            host=row.subject.host,
            cpu_cores=used,
            cpu_wanted_cores=used + row.values.get("cpu_steal_ratio", 0.0) * vcpus,
            memory_bytes=int(row.values.get("memory_balloon_bytes", 0.0)),
            vcpus=int(vcpus),
            tags=dict(row.subject.tags),
        )

    def move_load(self, row: Row, target: str, in_flight: Mapping[str, int]) -> MoveLoad:
        """Return what is to be moved to `target` and over what; a dirty rate measured long ago is none."""
        values = row.values
        memory = values.get("memory_balloon_bytes", 0.0)
        dirty = values.get("memory_dirty_bytes_per_second")
        known = values.get("memory_dirty_age_seconds", 0.0) <= _DIRTY_AGE_S
        return MoveLoad(
            memory_bytes=min(memory, values.get("memory_rss_bytes", memory)),
            dirty_bytes_s=dirty if known else None,
            source_link_bytes_s=self._link(row.subject.host),
            target_link_bytes_s=self._link(target),
            sharing=max(in_flight.get(row.subject.host, 0), in_flight.get(target, 0)),
        )

    def _link(self, host: str) -> float | None:
        row = self.host(host)
        return None if row is None else row.values.get("nics_link_speed_bytes_per_second")

    def company(self, guest: GuestLoad, incoming: Iterable[tuple[str, str]]) -> dict[str, Company]:
        """Return who of a guest's groups is on each host, or on the way there; empty for one of no group."""
        targets = dict(incoming)
        others = (
            (targets.get(subject.id, subject.host), subject.tags)
            for subject in self.evaluator.world.tables[Kind.VM].subjects
            if subject is not None and subject.id != guest.id
        )
        return company(wishes(guest.tags), others)

    def host_loads(
        self, now_ns: int, in_flight: Mapping[str, int], incoming: Iterable[tuple[str, str]]
    ) -> list[HostLoad]:
        """Return every host that has measured anything.

        `in_flight` counts migrations to or from each; `incoming` are the (guest, target) under way: promised load.
        """
        loads = []
        coming: dict[str, list[GuestLoad]] = {}
        for guest_id, target in incoming:
            row = self.guest(guest_id)
            if row is not None and row.subject.host != target:
                coming.setdefault(target, []).append(self.guest_load(row))
        for name, row in sorted(self.evaluator.latest(Kind.HOST).items()):
            values = row.values
            if not {"cpus_count", "memory_total_bytes"} <= values.keys():
                continue
            status = self.statuses.get(name)
            measured = {"cpu_usage_ratio", "memory_available_bytes"} <= values.keys()
            loads.append(
                HostLoad(
                    name=name,
                    cpus=int(values["cpus_count"]),
                    cpu_used_cores=values.get("cpu_usage_ratio", 1.0) * values["cpus_count"],
                    memory_total_bytes=int(values["memory_total_bytes"]),
                    memory_available_bytes=int(values.get("memory_available_bytes", 0)),
                    online=status is not None and status.online and bool(status.migration_uri),
                    closed=self.closed.get(name, ""),
                    migrations_in_flight=in_flight.get(name, 0),
                    incoming_cores=sum(guest.cpu_wanted_cores for guest in coming.get(name, ())),
                    incoming_memory_bytes=sum(guest.memory_bytes for guest in coming.get(name, ())),
                    fresh=measured and now_ns - row.time_ns <= self._fresh_ns,
                )
            )
        return loads

    def next_stale_ns(self, now_ns: int) -> float:
        """Return when a host's measurements are stale that are fresh now, infinite for never."""
        table = self.evaluator.world.tables[Kind.HOST]
        times = table.time[table.taken()]
        fresh = times[now_ns - times <= self._fresh_ns]
        return int(fresh.min()) + self._fresh_ns + 1 if len(fresh) else math.inf

    def migration_uri(self, host: str) -> str:
        """Return where a host takes guests; empty when it has not said."""
        status = self.statuses.get(host)
        return status.migration_uri if status is not None else ""
