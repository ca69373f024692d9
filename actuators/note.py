"""The note that a running guest carries: its leases, in its live libvirt metadata, so that they go where it goes.

<leases guest="UUID"><lease knob="cpu_shares" baseline="1024" value="2048" end_ns="…" command="cm-…" rule="…"/></leases>

While virtpilot moves it, `<move command="cm-…" to="host-2"/>` stands there too: the target knows whose doing it is.

What stands in a guest's metadata may have been written by anybody: what is not well formed is no lease.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NamedTuple
from xml.etree.ElementTree import Element, ParseError, SubElement, tostring

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from virtpilot.actuators.ledger import Lease, LeaseState

_KNOB: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
_WORD: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_NUMBER: Final = re.compile(r"-?[0-9]{1,19}")
_LARGEST: Final = 2**63 - 1
_MAX_TEXT: Final = 65_536
_MAX_LEASES: Final = 64


class Journey(NamedTuple):
    """A move of a guest by virtpilot: the command, and the host that it goes to."""

    command: str
    to: str


def write_note(guest: str, leases: Iterable[Lease], journey: Journey | None = None) -> str:
    """Return what a guest is to carry, "" where nothing of it is leased and it is not on its way."""
    root = Element("leases", {"guest": guest})
    if journey is not None:
        SubElement(root, "move", journey._asdict())
    for lease in leases:
        told = {
            "knob": lease.knob,
            "baseline": str(lease.baseline),
            "value": str(lease.value),
            "end_ns": str(lease.end_ns),
            "command": lease.command,
            "rule": lease.rule,
        }
        # Until the change is verified, the guest may have either value.
        SubElement(root, "lease", told | ({"prior": str(lease.prior.value)} if lease.prior is not None else {}))
    return tostring(root, encoding="unicode") if len(root) else ""


def read_note(guest: str, text: str) -> dict[str, Lease]:
    """Return the leases that a guest carries, by knob; whatever is not well formed, or another guest's, is none.

    A copy of a guest that was made with its metadata has another UUID: nothing is leased on it.
    """
    found = [_lease(guest, element) for element in _parts(guest, text)]
    return {lease.knob: lease for lease in found if lease is not None}


def read_journey(guest: str, text: str) -> Journey | None:
    """Return the move by virtpilot that a guest is on, None where it carries none that is well formed."""
    for element in _parts(guest, text):
        if element.tag.rpartition("}")[2] == "move":
            journey = Journey(element.get("command", ""), element.get("to", ""))
            return journey if all(map(_WORD.fullmatch, journey)) else None
    return None


def _parts(guest: str, text: str) -> list[Element]:
    """Return what stands in a guest's note, nothing where it is none."""
    if not text or len(text) > _MAX_TEXT:
        return []
    try:
        root = fromstring(text, forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError):
        return []
    if root.tag.rpartition("}")[2] != "leases" or root.get("guest") != guest:
        return []
    return list(root)[: _MAX_LEASES + 1]


def _lease(guest: str, element: Element) -> Lease | None:
    knob, command, rule = (element.get(name, "") for name in ("knob", "command", "rule"))
    baseline, value, end_ns = (_whole(element.get(name, "")) for name in ("baseline", "value", "end_ns"))
    if not _KNOB.fullmatch(knob) or not _WORD.fullmatch(command) or not (not rule or _WORD.fullmatch(rule)):
        return None
    if baseline is None or value is None or end_ns is None:
        return None
    lease = Lease(
        guest=guest,
        knob=knob,
        baseline=baseline,
        value=value,
        rule=rule,
        command=command,
        end_ns=end_ns,
        state=LeaseState.HELD,
    )
    prior = _whole(element.get("prior", ""))
    if prior is None:
        return lease
    before = Lease(
        guest=guest, knob=knob, baseline=baseline, value=prior, rule=rule, command=command, end_ns=0,
        state=LeaseState.HELD,
    )  # fmt: skip
    return Lease(
        guest=guest, knob=knob, baseline=baseline, value=value, rule=rule, command=command, end_ns=end_ns,
        state=LeaseState.HELD, prior=before,
    )  # fmt: skip


def _whole(text: str) -> int | None:
    number = int(text) if _NUMBER.fullmatch(text) else None
    return number if number is not None and -_LARGEST <= number <= _LARGEST else None
