"""Reading all guests once per tick, whoever is stuck.

bulk call, as patient as it usually takes → left behind: another one, which passes over the guest that holds the
first → ... → left behind for long: what no guest can hold up
no bulk call in this driver, or one guest that fails it: guest by guest, each for a while
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from typing import Any, Final

import structlog

from virtpilot.clock import SECOND
from virtpilot.errors import HypervisorTimeout
from virtpilot.libvirt_link import Lane, LibvirtLink
from virtpilot.libvirt_single import read_single
from virtpilot.libvirt_stats import Groups, Reading, Readings, read_alone, read_bulk
from virtpilot.libvirt_walk import Walk

log = structlog.get_logger(__name__)

# Before it is known what is usual: a libvirtd that has just started can take seconds for its first answer.
_FIRST_PATIENCE_S: Final = 5.0
_LEAST_PATIENCE_S: Final = 0.25
_PATIENCE_FACTOR: Final = 4
_REMEMBERED: Final = 7
_GUEST_PATIENCE_S: Final = 0.5
_GLANCE_BUDGET_S: Final = 0.5


class Patience:
    """How long to wait for a bulk call: some times what such calls have taken lately."""

    def __init__(self, deadline_s: float) -> None:
        self._deadline_s = deadline_s
        self._took_s: deque[float] = deque(maxlen=_REMEMBERED)

    def seconds(self) -> float:
        """Return how long the next call may take."""
        usual_s = _PATIENCE_FACTOR * _median(self._took_s) if self._took_s else _FIRST_PATIENCE_S
        return min(max(usual_s, _LEAST_PATIENCE_S), self._deadline_s)

    def note(self, took_s: float) -> None:
        """Learn from a call that has ended, also from one that was left behind: the host may be slow."""
        if took_s <= self._deadline_s:
            self._took_s.append(took_s)


class Reader:
    """The guests of one libvirt, tick by tick."""

    def __init__(self, link: LibvirtLink, *, deadline_s: float) -> None:
        self._link = link
        self._deadline_s = deadline_s
        self._patience = Patience(deadline_s)
        self._groups = Groups(link.binding)
        self._walk = Walk(link, Lane.STATS, patience_s=_GUEST_PATIENCE_S, budget_s=deadline_s)
        self._glance = Walk(link, Lane.STATS, patience_s=_GUEST_PATIENCE_S, budget_s=_GLANCE_BUDGET_S)
        self._losses = 0
        self._bulk = True
        self._held_up = False

    def read(self, *, dirty_rate: bool = False) -> Readings:
        """Return every guest, shut-off ones too; raises HypervisorError, never for one guest."""
        if self._losses != self._link.losses:  # another libvirtd may be there, a newer one
            self._losses = self._link.losses
            self._bulk = True
            self._groups = Groups(self._link.binding)
            self._patience = Patience(self._deadline_s)
        wanted = self._groups.wanted(self._link.clock.monotonic_ns(), dirty_rate=dirty_rate)
        guests = self._all(wanted) if self._bulk else None
        if guests is None:
            return self._one_by_one(wanted)
        self._groups.note(wanted, guests)
        return Readings(guests, 0)

    def look_again(self) -> None:
        """Ask for what not every guest has the next time: something has changed."""
        self._groups.look_again()

    def some(self, wanted: Collection[str]) -> list[Reading]:
        """Return a few guests, each asked by itself; one that is gone or does not answer is left out."""
        groups, binding, bulk = self._groups.known(), self._link.binding, self._bulk

        def ask(connection: Any, uuid: str) -> Reading:
            return read_alone(binding, connection, uuid, groups) if bulk else read_single(binding, connection, uuid)

        return list(self._glance.over(wanted, ask).found.values())

    def _all(self, wanted: int) -> list[Reading] | None:
        """Return the guests by one bulk call, None where they have to be asked one by one."""
        clock = self._link.clock
        began_ns = clock.monotonic_ns()
        while True:
            try:
                guests = self._link.call(
                    Lane.STATS,
                    lambda connection: self._bulk_call(connection, wanted),
                    patience_s=self._patience.seconds(),
                )
            except HypervisorTimeout as error:
                self._held_up_by(error)
                if (clock.monotonic_ns() - began_ns) / SECOND > self._deadline_s or self._link.crowded(Lane.STATS):
                    return self._link.call(Lane.OUTLINE, self._outline)
                continue
            if self._held_up and guests is not None and all(guest.whole for guest in guests):
                self._held_up = False
                log.info("libvirt's statistics come whole again")
            return guests

    def _bulk_call(self, connection: Any, wanted: int) -> list[Reading] | None:
        binding = self._link.binding
        clock = self._link.clock
        began_ns = clock.monotonic_ns()
        try:
            return read_bulk(binding, connection, wanted)
        except binding.libvirtError as error:
            if connection.isAlive() != 1:
                raise
            code = error.get_error_code()
            if code == binding.VIR_ERR_NO_SUPPORT:
                self._bulk = False
            elif code == binding.VIR_ERR_INVALID_ARG and wanted != self._groups.core:
                self._groups.refused()
                return read_bulk(binding, connection, self._groups.core)
            # One guest that cannot be read fails libvirt's whole bulk call.
            log.debug("no bulk statistics", error=str(error))
            return None
        finally:
            self._patience.note((clock.monotonic_ns() - began_ns) / SECOND)

    def _outline(self, connection: Any) -> list[Reading]:
        """Return what no stuck guest can hold up; no running guest is whole then."""
        found = read_bulk(self._link.binding, connection, self._groups.outline)
        return [guest._replace(whole=guest.run < 0) for guest in found]

    def _one_by_one(self, wanted: int) -> Readings:
        listed = self._link.call(Lane.STATS, _listed, patience_s=self._deadline_s)
        binding = self._link.binding
        self._walk.keep(listed)

        def ask(connection: Any, uuid: str) -> Reading:
            if self._bulk:
                return read_alone(binding, connection, uuid, wanted)
            return read_single(binding, connection, uuid)

        walked = self._walk.over(listed, ask)
        unread = [
            Reading(uuid, name, run, {}, whole=False) for uuid, (name, run) in listed.items() if uuid in walked.hung
        ]
        return Readings([*walked.found.values(), *unread], len(listed) - len(walked.found))

    def _held_up_by(self, error: HypervisorTimeout) -> None:
        if not self._held_up:
            log.warning("a guest holds up libvirt's statistics", error=str(error))
        self._held_up = True


def _median(times_s: Iterable[float]) -> float:
    ordered = sorted(times_s)
    return ordered[len(ordered) // 2]


def _listed(connection: Any) -> dict[str, tuple[str, int]]:
    return {domain.UUIDString(): (domain.name(), domain.ID()) for domain in connection.listAllDomains()}
