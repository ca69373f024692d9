"""Reading every guest's statistics by one bulk call: virConnectGetAllDomainStats."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from virtpilot.clock import seconds

Stats = dict[str, int | float | str | bool]

# What is on shows in a guest's XML: this is for what does not.
PROBE_NS: Final = seconds(300)
HELD_UP_PROBE_NS: Final = seconds(10)  # where who did not answer may have had them
# The groups that not every version, host or guest has, by how their names begin.
_OPTIONAL: Final = {
    "perf.": "VIR_DOMAIN_STATS_PERF",
    "iothread.": "VIR_DOMAIN_STATS_IOTHREAD",
}
_DIRTY_RATE: Final = "VIR_DOMAIN_STATS_DIRTYRATE"


class Reading(NamedTuple):
    """One guest as read: `run` is its id while it is active, another one after each start, -1 while it is off.

    It is not `whole` where what QEMU itself has to answer is missing. `domain` was read over `connection`.
    """

    uuid: str
    name: str
    run: int
    stats: Stats
    whole: bool = True
    connection: Any = None
    domain: Any = None

    def domain_on(self, connection: Any) -> Any:
        """Return the guest on this connection: found already, or looked up; raises libvirt's error."""
        return self.domain if self.connection is connection else connection.lookupByUUIDString(self.uuid)


class Readings(NamedTuple):
    """All guests of one round, and how many could not be read."""

    guests: list[Reading]
    skipped: int


class Groups:
    """Which groups of statistics to ask for: those that nobody has are asked for again once in a while only."""

    def __init__(self, binding: Any) -> None:
        self._known = {prefix: getattr(binding, name, 0) for prefix, name in _OPTIONAL.items()}
        self._dirty_rate = getattr(binding, _DIRTY_RATE, 0)
        self.outline = (
            binding.VIR_DOMAIN_STATS_STATE | binding.VIR_DOMAIN_STATS_CPU_TOTAL | binding.VIR_DOMAIN_STATS_INTERFACE
        )
        self.core = (
            self.outline
            | binding.VIR_DOMAIN_STATS_BALLOON
            | binding.VIR_DOMAIN_STATS_VCPU
            | binding.VIR_DOMAIN_STATS_BLOCK
        )
        self._had: set[str] = set()
        self._probed_ns: int | None = None
        self._probe_every_ns = PROBE_NS
        self._probing = False

    def wanted(self, now_ns: int, *, dirty_rate: bool) -> int:
        """Return the groups to ask for now."""
        groups: int = self.core | (self._dirty_rate if dirty_rate else 0)
        probe = self._probing = self._probed_ns is None or now_ns - self._probed_ns >= self._probe_every_ns
        if probe:
            self._probed_ns, self._probe_every_ns = now_ns, PROBE_NS
        for prefix, bit in self._known.items():
            if probe or prefix in self._had:
                groups |= bit
        return groups

    def known(self) -> int:
        """Return the groups of which it is known that somebody has them."""
        groups: int = self.core
        for prefix, bit in self._known.items():
            if prefix in self._had:
                groups |= bit
        return groups

    def note(self, wanted: int, guests: list[Reading]) -> None:
        """Remember which of the groups asked for some guest has; who was not told in whole may have any."""
        whole = all(guest.whole for guest in guests)
        for prefix, bit in self._known.items():
            if wanted & bit:
                if any(name.startswith(prefix) for guest in guests for name in guest.stats):
                    self._had.add(prefix)
                elif whole:
                    self._had.discard(prefix)
        if self._probing and not whole:
            self._probe_every_ns = HELD_UP_PROBE_NS

    def look_again(self) -> None:
        """Ask for all groups the next time: something has changed since the last, unless that asked for all as well."""
        if not self._probing:
            self._probed_ns = None

    def refused(self) -> None:
        """Ask for the core alone from now on: this libvirt does not know the rest."""
        self._known = {}
        self._dirty_rate = 0


def read_bulk(binding: Any, connection: Any, wanted: int) -> list[Reading]:
    """Return all guests, shut-off ones too; raises libvirt's error."""
    asks_guests = connection.getType() == "QEMU" and bool(wanted & binding.VIR_DOMAIN_STATS_BALLOON)
    found = connection.getAllDomainStats(wanted, binding.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT)
    return [reading_of(connection, domain, stats, asks_guests=asks_guests) for domain, stats in found]


def read_alone(binding: Any, connection: Any, uuid: str, wanted: int) -> Reading:
    """Return one guest; raises libvirt's error, also where the guest has just gone."""
    domain = connection.lookupByUUIDString(uuid)
    nowait = binding.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT
    for _domain, stats in connection.domainListGetStats([domain], wanted, nowait):
        return reading_of(connection, domain, stats, asks_guests=connection.getType() == "QEMU")
    raise binding.libvirtError(f"guest {uuid} is gone")


def reading_of(connection: Any, domain: Any, stats: Stats, *, asks_guests: bool) -> Reading:
    """Return a guest's reading; QEMU is asked for its resident set last, so that is there where all is."""
    run = domain.ID()
    if run < 0:
        # Seen with libvirt 9.0: a guest that is off is told with the CPU time of libvirtd itself.
        stats = {name: value for name, value in stats.items() if not name.startswith("cpu.")}
    whole = run < 0 or not asks_guests or "balloon.rss" in stats
    return Reading(domain.UUIDString(), domain.name(), run, stats, whole, connection, domain)
