"""Work that others announce: backups and steps of maintenance, which must not coincide with migrations of a guest."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final, Protocol

import msgspec
from msgspec import Meta

from virtpilot.clock import SECOND, seconds
from virtpilot.planner.scheduling import Operation, Stopping

_DAY_S: Final = 86400
Text = Annotated[str, Meta(max_length=200)]


class Work(StrEnum):
    """What kind of work it is."""

    BACKUP = "backup"
    MAINTENANCE = "maintenance"
    OTHER = "other"


class Standing(StrEnum):
    """Whether it may be done now."""

    WAITING = "waiting"
    RUNNING = "running"
    PAUSED = "paused"


class Announcement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What somebody wants to do on a guest (its UUID or name) or a host, and how long it will take."""

    id: Annotated[str, Meta(pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    takes_s: Annotated[float, Meta(gt=0, le=7 * _DAY_S)]
    kind: Work = Work.OTHER
    host: Text = ""
    guest: Text = ""
    about: Text = ""
    priority: Annotated[int, Meta(ge=0, le=100)] = 50
    within_s: Annotated[float, Meta(gt=0, le=30 * _DAY_S)] | None = None
    pausable: bool = False


class Announced(msgspec.Struct, frozen=True, kw_only=True):
    """An announcement and where it stands; `guest` is a UUID here, `done_ns` of its time had gone by `since_ns`."""

    work: Announcement
    host: str
    guest: str
    standing: Standing
    announced_ns: int
    since_ns: int
    heard_ns: int
    done_ns: int = 0

    def done_s(self, now_ns: int) -> float:
        """Return the time that it has run so far."""
        running_ns = now_ns - self.since_ns if self.standing is Standing.RUNNING else 0
        return (self.done_ns + max(running_ns, 0)) / SECOND

    @property
    def silent_ns(self) -> int:
        """Since when one might ask why nobody asks: it was heard of last, and what runs has had its time."""
        if self.standing is not Standing.RUNNING:
            return self.heard_ns
        # Whose clock was set back has not begun in the future.
        begun_ns = min(self.since_ns, self.heard_ns)
        return max(self.heard_ns, begun_ns + max(seconds(self.work.takes_s) - self.done_ns, 0))

    def moved(self, by_ns: int) -> Announced:
        """Return it at another time: the clocks were set."""
        return msgspec.structs.replace(
            self,
            announced_ns=self.announced_ns + by_ns,
            since_ns=self.since_ns + by_ns,
            heard_ns=self.heard_ns + by_ns,
        )

    def became(self, standing: Standing, now_ns: int) -> Announced:
        """Return it in another standing."""
        return msgspec.structs.replace(
            self, standing=standing, since_ns=now_ns, done_ns=seconds(self.done_s(now_ns)), heard_ns=now_ns
        )

    def operation(self, now_ns: int) -> Operation:
        """Return it as the schedule sees it."""
        work, arrived_s = self.work, self.announced_ns / SECOND
        places = {f"work {self.host}"} | ({f"guest {self.guest}"} if self.guest else set())
        return Operation(
            id=f"work {work.id}",
            arrived_s=arrived_s,
            takes_s=work.takes_s,
            done_s=self.done_s(now_ns),
            priority=work.priority,
            deadline_s=None if work.within_s is None else arrived_s + work.within_s,
            places=frozenset(places),
            stopping=Stopping.PAUSE if work.pausable else Stopping.NEVER,
        )


class Fleet(Protocol):
    """Who is where."""

    def host_of(self, guest: str) -> tuple[str, str] | None:
        """Return the UUID and the host of a guest, by its UUID or its only bearer's name; None where there is none."""

    def host(self, name: str) -> object | None:
        """Return a host as measured, None where it is not known."""


def located(work: Announcement, fleet: Fleet) -> tuple[str, str]:
    """Return the host and the guest's UUID ("" for a whole host); raises LookupError with the reason."""
    if work.guest:
        found = fleet.host_of(work.guest)
        if found is None:
            raise LookupError(f"no guest, or more than one, is measured as {work.guest}")
        guest, host = found
        return host, guest
    if fleet.host(work.host) is None:
        raise LookupError(f"no host is measured as {work.host}" if work.host else "it needs a guest or a host")
    return work.host, ""
