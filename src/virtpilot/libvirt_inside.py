"""What a guest's own agent tells: its file systems, and its load where libvirt passes that on.

Asked in the background: an agent that is dead costs libvirt seconds, and no tick waits for it. Whatever it tells is
the guest's word. Source: virDomainGetGuestInfo.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from typing import Any, Final, NamedTuple

import structlog

from virtpilot.clock import seconds
from virtpilot.errors import HypervisorError
from virtpilot.libvirt_link import Lane, LibvirtLink
from virtpilot.libvirt_walk import Walk

log = structlog.get_logger(__name__)

Numbers = Mapping[str, int | float]

_MAX_FILESYSTEMS: Final = 32
_MAX_MOUNTPOINT: Final = 200
_MAX_NUMBER: Final = 2**63
_LOADS: Final = {"load.1m": "guest_load1_count", "load.5m": "guest_load5_count", "load.15m": "guest_load15_count"}


class Inside(NamedTuple):
    """One guest as its agent tells it: file systems by mount point, and numbers of the guest itself."""

    filesystems: Mapping[str, Numbers]
    guest: Numbers


NOTHING: Final = Inside({}, {})


class GuestAgents:
    """The agents of the guests of one libvirt, each asked every `every_s` seconds; 0: never."""

    def __init__(self, link: LibvirtLink, *, every_s: float) -> None:
        self._link = link
        self._every_ns = seconds(every_s)
        self._walk = Walk(link, Lane.INSIDE)
        self._lock = threading.Lock()
        self._asking: threading.Thread | None = None
        self._asked_ns: int | None = None
        self._told: dict[str, tuple[int, Inside]] = {}
        self._loads = getattr(link.binding, "VIR_DOMAIN_GUEST_INFO_LOAD", 0)  # libvirt 11.2

    def refresh(self, guests: Collection[str], now_ns: int) -> None:
        """Begin to ask these guests' agents where it is time; returns at once."""
        due = self._asked_ns is None or now_ns - self._asked_ns >= self._every_ns
        if not self._every_ns or not guests or not due or (self._asking is not None and self._asking.is_alive()):
            return
        self._asked_ns = now_ns
        name = "guest-agents"
        self._asking = threading.Thread(target=self._ask_all, args=(tuple(guests), now_ns), name=name, daemon=True)
        try:
            self._asking.start()
        except RuntimeError as error:  # this machine has no thread to give
            self._asking = None
            log.warning("guest agents cannot be asked", error=str(error))

    def told(self, uuid: str, now_ns: int) -> Inside:
        """Return what a guest's agent told last; nothing where that was too long ago."""
        with self._lock:
            at_ns, inside = self._told.get(uuid, (now_ns, NOTHING))
        return inside if now_ns - at_ns <= 3 * self._every_ns else NOTHING

    def _ask_all(self, guests: tuple[str, ...], now_ns: int) -> None:
        self._walk.keep(guests)
        try:
            found = self._walk.over(guests, self._ask).found
        except HypervisorError as error:
            log.debug("guest agents not asked", error=str(error))
            return
        with self._lock:
            kept = {uuid: self._told[uuid] for uuid in guests if uuid in self._told}
            self._told = kept | {uuid: (now_ns, inside) for uuid, inside in found.items()}

    def _ask(self, connection: Any, uuid: str) -> Inside:
        domain = connection.lookupByUUIDString(uuid)
        binding = self._link.binding
        wanted = binding.VIR_DOMAIN_GUEST_INFO_FILESYSTEM
        if not self._loads:
            return read_inside(domain.guestInfo(wanted, 0))
        try:
            return read_inside(domain.guestInfo(wanted | self._loads, 0))
        except binding.libvirtError as error:
            if connection.isAlive() != 1:
                raise
            log.debug("an agent does not tell all", guest=uuid, error=str(error))
            return read_inside(domain.guestInfo(wanted, 0))


def read_inside(told: Mapping[str, Any]) -> Inside:
    """Return the file systems and the load in what an agent told; what is odd is left out."""
    filesystems: dict[str, Numbers] = {}
    for index in range(min(_whole(told.get("fs.count")) or 0, _MAX_FILESYSTEMS)):
        mountpoint = _mountpoint(told.get(f"fs.{index}.mountpoint"))
        total, used = _whole(told.get(f"fs.{index}.total-bytes")), _whole(told.get(f"fs.{index}.used-bytes"))
        if mountpoint and total and used is not None and used <= total:
            filesystems[mountpoint] = {"total_bytes": total, "used_bytes": used, "used_ratio": used / total}
    loads = {ours: load for theirs, ours in _LOADS.items() if (load := _load(told.get(theirs))) is not None}
    return Inside(filesystems, loads)


def _mountpoint(value: object) -> str:
    return value if isinstance(value, str) and value.isprintable() and len(value) <= _MAX_MOUNTPOINT else ""


def _whole(value: object) -> int | None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _MAX_NUMBER:
        return None
    return value


def _load(value: object) -> float | None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < _MAX_NUMBER:
        return None
    return value
