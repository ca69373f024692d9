"""What a guest's statistics do not tell, asked seldom and remembered: its limits, its knobs and its tags.

Source: virDomainGetXMLDesc, virDomainGetSchedulerParametersFlags, virDomainGetMetadata.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from hashlib import blake2b
from typing import Any, Final, NamedTuple

import msgspec

from virtpilot.clock import seconds
from virtpilot.hypervisor import GuestDetails
from virtpilot.libvirt_knobs import read_schedule
from virtpilot.libvirt_limits import Configured, read_configured
from virtpilot.libvirt_link import Lane, LibvirtLink
from virtpilot.libvirt_stats import Reading
from virtpilot.libvirt_tags import TAGS_NAMESPACE, read_tags
from virtpilot.libvirt_walk import Walk

# Events tell of most changes at once. These are for the others: a NIC's bandwidth shows in the XML, what somebody
# writes into a control group only in the schedule, for which libvirtd reads the groups of all of a guest's threads.
KNOB_REFRESH_NS: Final = seconds(60)
SCHEDULE_REFRESH_NS: Final = seconds(600)
TAG_REFRESH_NS: Final = seconds(600)
_GUEST_PATIENCE_S: Final = 0.5
# A tick waits so long for details; guests that are left over come next time.
_BUDGET_S: Final = 0.5
_RUNNING: Final = 1
_NOTHING: Final = Configured({}, GuestDetails(), agent=False)


# A hash of a guest's XML, for descriptions are long, with its scheduler parameters.
_Told = tuple[bytes, Mapping[str, Any]]


class _Known(msgspec.Struct):
    """What is remembered of one guest, and when it was asked for; `run` is the start that it belongs to.

    Before `due_ns` there is nothing to ask for.
    """

    run: int
    due_ns: int = 0
    configured: Configured = _NOTHING
    knobs_ns: int | None = None
    told: _Told = (b"", {})
    schedule_ns: int | None = None
    tags: Mapping[str, str] = {}
    tags_ns: int | None = None


class _Due(NamedTuple):
    """What to ask a guest for."""

    knobs: bool
    schedule: bool
    tags: bool


class _Answer(msgspec.Struct, frozen=True):
    """What is news of a guest, and its tags; None for what was not asked or is as before."""

    told: _Told | None = None
    configured: Configured | None = None
    tags: dict[str, str] | None = None


class Details:
    """Limits, knobs and tags of the guests of one libvirt; one that does not answer keeps what was known of it."""

    def __init__(self, link: LibvirtLink, *, tag_names: frozenset[str]) -> None:
        self._link = link
        self._walk = Walk(link, Lane.DETAILS, patience_s=_GUEST_PATIENCE_S, budget_s=_BUDGET_S)
        self._tag_names = tag_names
        self._known: dict[str, _Known] = {}
        self._losses = 0
        self.changes = 0

    def refresh(self, guests: Collection[Reading], now_ns: int) -> None:
        """Ask for what is due and forget the guests that have gone; raises HypervisorError, never for one guest.

        `changes` counts the guests of which something was news.
        """
        if self._losses != self._link.losses:
            self._losses = self._link.losses
            self._known.clear()
        self._known = {guest.uuid: self._of(guest) for guest in guests}
        waiting = [guest for guest in guests if self._known[guest.uuid].due_ns <= now_ns]
        due = {guest.uuid: parts for guest in waiting if any(parts := self._due(guest, now_ns))}
        if not due:
            return
        self._walk.keep(self._known)
        told = {guest.uuid: guest for guest in waiting}
        # Those that were never asked, or whose knobs somebody has set, come first.
        longest_ago = sorted(due, key=lambda uuid: self._known[uuid].knobs_ns or 0)
        before = {uuid: self._known[uuid].told for uuid in due}

        def ask(connection: Any, uuid: str) -> _Answer:
            return self._ask(connection, told[uuid], due[uuid], before[uuid])

        walked = self._walk.over(longest_ago, ask)
        for uuid, answer in walked.found.items():
            self._take(self._known[uuid], answer)
        for uuid in walked.found.keys() | walked.gone:
            self._note_asked(self._known[uuid], due[uuid], now_ns)

    def knows(self, guest: Reading) -> bool:
        """Return whether a guest was there, in this run, at the last refresh."""
        known = self._known.get(guest.uuid)
        return known is not None and known.run == guest.run

    def told(self, guest: Reading) -> tuple[Configured, Mapping[str, str]]:
        """Return what is configured for a running guest, nothing for any other, and its tags that may be told."""
        known = self._known[guest.uuid]
        return known.configured if _runs(guest) else _NOTHING, known.tags

    def forget(self, uuid: str) -> None:
        """Have a guest, or with no UUID every guest, asked for all of this at the next refresh: it has changed."""
        for known in [known for one, known in self._known.items() if uuid in {one, ""}]:
            known.knobs_ns = known.schedule_ns = known.tags_ns = None
            known.due_ns = 0

    def _of(self, guest: Reading) -> _Known:
        known = self._known.get(guest.uuid)
        return known if known is not None and known.run == guest.run else _Known(guest.run)

    def _due(self, guest: Reading, now_ns: int) -> _Due:
        known = self._known[guest.uuid]
        knobs = _runs(guest) and _old(known.knobs_ns, KNOB_REFRESH_NS, now_ns)
        return _Due(
            knobs,
            knobs and _old(known.schedule_ns, SCHEDULE_REFRESH_NS, now_ns),
            bool(self._tag_names) and _old(known.tags_ns, TAG_REFRESH_NS, now_ns),
        )

    def _take(self, known: _Known, answer: _Answer) -> None:
        if answer.told is not None and answer.configured is not None:
            known.told, known.configured = answer.told, answer.configured
            self.changes += 1
        if answer.tags is not None:
            known.tags = answer.tags

    def _note_asked(self, known: _Known, due: _Due, now_ns: int) -> None:
        if due.knobs:
            known.knobs_ns = now_ns
        if due.schedule:
            known.schedule_ns = now_ns
        if due.tags:
            known.tags_ns = now_ns
        if known.knobs_ns is not None:
            tags_ns = known.tags_ns if known.tags_ns is not None else now_ns
            known.due_ns = min(known.knobs_ns + KNOB_REFRESH_NS, tags_ns + TAG_REFRESH_NS)

    def _ask(self, connection: Any, guest: Reading, due: _Due, before: _Told) -> _Answer:
        domain = guest.domain_on(connection)
        tags = self._read_tags(connection, domain) if due.tags else None
        if not due.knobs:
            return _Answer(tags=tags)
        description = domain.XMLDesc()
        digest = blake2b(description.encode(errors="replace"), digest_size=16).digest()
        if digest == before[0] and not due.schedule:
            return _Answer(tags=tags)
        schedule = read_schedule(self._link.binding, connection, domain)
        if (digest, schedule) == before:  # reading XML is dear, and it seldom changes
            return _Answer(tags=tags)
        return _Answer((digest, schedule), read_configured(description, schedule), tags)

    def _read_tags(self, connection: Any, domain: Any) -> dict[str, str]:
        binding = self._link.binding
        try:
            text = domain.metadata(binding.VIR_DOMAIN_METADATA_ELEMENT, TAGS_NAMESPACE)
        except binding.libvirtError:
            if connection.isAlive() != 1:
                raise
            return {}  # no such metadata: no tags
        return read_tags(text, self._tag_names)


def _runs(guest: Reading) -> bool:
    return guest.stats.get("state.state") == _RUNNING


def _old(asked_ns: int | None, refresh_ns: int, now_ns: int) -> bool:
    return asked_ns is None or now_ns - asked_ns >= refresh_ns
