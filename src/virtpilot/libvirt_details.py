"""What a guest's statistics do not tell, asked seldom and remembered: its knobs and its tags.

Source: virDomainGetSchedulerParametersFlags, virDomainGetMetadata.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

import msgspec
import structlog

from virtpilot.clock import seconds
from virtpilot.errors import HypervisorTimeout
from virtpilot.libvirt_link import Lane, LibvirtLink
from virtpilot.libvirt_stats import Reading
from virtpilot.libvirt_tags import TAGS_NAMESPACE, read_tags

log = structlog.get_logger(__name__)

KNOB_REFRESH_NS: Final = seconds(30)
TAG_REFRESH_NS: Final = seconds(60)
_RUNNING: Final = 1


class _Known(msgspec.Struct):
    """What is remembered of one guest, and when it was asked for; `run` is the start that it belongs to."""

    run: int
    knobs: Mapping[str, int] = {}
    knobs_ns: int | None = None
    tags: Mapping[str, str] = {}
    tags_ns: int | None = None


class _Ask(msgspec.Struct, frozen=True):
    uuid: str
    knobs: bool
    tags: bool


class _Answer(msgspec.Struct, frozen=True):
    uuid: str
    knobs: dict[str, int] | None
    tags: dict[str, str] | None


class Details:
    """Knobs and tags of the guests of one libvirt; a guest that does not answer keeps what was known of it."""

    def __init__(self, link: LibvirtLink, *, tag_names: frozenset[str]) -> None:
        self._link = link
        self._tag_names = tag_names
        self._known: dict[str, _Known] = {}
        self._losses = 0

    def refresh(self, guests: Collection[Reading], now_ns: int) -> None:
        """Ask for what is due and forget the guests that have gone; raises HypervisorError, never for one guest."""
        if self._losses != self._link.losses:
            self._losses = self._link.losses
            self._known.clear()
        self._known = {guest.uuid: self._of(guest) for guest in guests}
        asks = [ask for guest in guests if (ask := self._due(guest, now_ns)) is not None]
        if not asks:
            return
        answers: list[_Answer] = []
        try:
            self._link.call(Lane.DETAILS, lambda connection: self._ask(connection, asks, answers))
        except HypervisorTimeout as error:
            log.warning("some guests' knobs and tags are not known anew", error=str(error))
        for answer in tuple(answers):  # a copy: a call that was left behind may still add to it
            self._take(answer)

    def knobs(self, guest: Reading) -> Mapping[str, int]:
        """Return a running guest's knobs; none of any other."""
        return self._known[guest.uuid].knobs if _runs(guest) else {}

    def tags(self, guest: Reading) -> Mapping[str, str]:
        """Return a guest's tags that the config lets through."""
        return self._known[guest.uuid].tags

    def forget_knobs(self, uuid: str) -> None:
        """Have a guest's knobs asked for at the next refresh: somebody has changed them."""
        known = self._known.get(uuid)
        if known is not None:
            known.knobs_ns = None

    def _of(self, guest: Reading) -> _Known:
        known = self._known.get(guest.uuid)
        return known if known is not None and known.run == guest.run else _Known(guest.run)

    def _due(self, guest: Reading, now_ns: int) -> _Ask | None:
        """Return what to ask for, noted as asked: a guest that hangs the call is not the first one of the next."""
        known = self._known[guest.uuid]
        knobs = _runs(guest) and _old(known.knobs_ns, KNOB_REFRESH_NS, now_ns)
        tags = bool(self._tag_names) and _old(known.tags_ns, TAG_REFRESH_NS, now_ns)
        if knobs:
            known.knobs_ns = now_ns
        if tags:
            known.tags_ns = now_ns
        return _Ask(guest.uuid, knobs, tags) if knobs or tags else None

    def _take(self, answer: _Answer) -> None:
        known = self._known[answer.uuid]
        if answer.knobs is not None:
            known.knobs = answer.knobs
        if answer.tags is not None:
            known.tags = answer.tags

    def _ask(self, connection: Any, asks: list[_Ask], answers: list[_Answer]) -> None:
        binding = self._link.binding
        for ask in asks:
            try:
                domain = connection.lookupByUUIDString(ask.uuid)
            except binding.libvirtError as error:
                if connection.isAlive() != 1:
                    raise
                log.debug("guest gone before its details were read", guest=ask.uuid, error=str(error))
                continue
            knobs = self._read_knobs(connection, domain) if ask.knobs else None
            tags = self._read_tags(connection, domain) if ask.tags else None
            answers.append(_Answer(ask.uuid, knobs, tags))

    def _read_knobs(self, connection: Any, domain: Any) -> dict[str, int]:
        shares = read_shares(self._link.binding, connection, domain)
        return {} if shares is None else {"cpu_shares": shares}

    def _read_tags(self, connection: Any, domain: Any) -> dict[str, str]:
        binding = self._link.binding
        try:
            text = domain.metadata(binding.VIR_DOMAIN_METADATA_ELEMENT, TAGS_NAMESPACE)
        except binding.libvirtError:
            if connection.isAlive() != 1:
                raise
            return {}  # no such metadata: no tags
        return read_tags(text, self._tag_names)


def read_shares(binding: Any, connection: Any, domain: Any) -> int | None:
    """Return a guest's live CPU shares; None where its driver has none; raises where the connection is lost."""
    try:
        found = domain.schedulerParametersFlags(binding.VIR_DOMAIN_AFFECT_LIVE).get("cpu_shares")
    except binding.libvirtError:
        if connection.isAlive() != 1:
            raise
        return None
    return None if found is None else int(found)


def _runs(guest: Reading) -> bool:
    return guest.stats.get("state.state") == _RUNNING


def _old(asked_ns: int | None, refresh_ns: int, now_ns: int) -> bool:
    return asked_ns is None or now_ns - asked_ns >= refresh_ns
