"""The arbiter: one owner a knob of a guest, and one operation a guest at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

import msgspec

from virtpilot.model import Mode
from virtpilot.rules.decisions.want import PLACEMENT, POWER, Want

_RISKS: Final = {PLACEMENT: 1, POWER: 2}


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """A knob that a rule's command changed, until `until_ns`."""

    rule: str
    priority: int
    command: str
    until_ns: int
    division: str = ""
    """The command of the division that it is a part of."""


def arbitrate(
    wants: Iterable[Want],
    leases: Mapping[tuple[str, str], Lease],
    change: Callable[[Want], float],
    order: Mapping[str, int],
) -> tuple[tuple[Want, ...], list[tuple[Want, str]]]:
    """Return the winners and each loser with the reason.

    The higher priority wins; of equal ones the safer: a set before a move before another state, then the smaller
    `change` (relative to the knob's value now); then the earlier rule by `order`. A knob's lease keeps it for its owner
    against equal and lower priorities. A rule that may not act competes with nobody: it wins, and the guard `mode` will
    say so. One that a guard has refused before keeps its knob from others, not the whole guest.
    """

    def rank(want: Want) -> tuple[int, int, float, int]:
        return (-want.priority, _RISKS.get(want.knob, 0), change(want), order.get(want.rule, len(order)))

    winners: list[Want] = []
    losers: list[tuple[Want, str]] = []
    knobs: dict[tuple[str, str], Want] = {}
    guests: dict[str, Want] = {}
    for want in sorted(wants, key=rank):
        key = (want.subject.id, want.knob)
        lease, rival = leases.get(key), knobs.get(key) or guests.get(want.subject.id)
        if want.mode is not Mode.ACT:
            winners.append(want)
        elif lease is not None and lease.rule != want.rule and lease.priority >= want.priority:
            losers.append((want, f"{lease.rule} (priority {lease.priority}) holds {want.knob}"))
        elif rival is not None:
            losers.append((want, _reason(rival, want)))
        else:
            winners.append(want)
            knobs[key] = want
            if not want.blocked:
                guests[want.subject.id] = want
    return tuple(winners), losers


def _reason(winner: Want, loser: Want) -> str:
    what = winner.knob if winner.knob == loser.knob else f"the guest ({winner.knob})"
    why = "has the higher priority" if winner.priority > loser.priority else "is safer or comes earlier"
    return f"{winner.rule} (priority {winner.priority}) takes {what}: it {why}"
