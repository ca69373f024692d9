"""What the names in an expression stand for where it stands, and what to say of those that mean nothing there."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from virtpilot.fields import FIELDS, names
from virtpilot.model import Kind
from virtpilot.rules.language import devices, functions
from virtpilot.rules.language.devices import Device, Of
from virtpilot.rules.language.nearest import hint

SUBJECTS: Final = {"vms": Kind.VM, "hosts": Kind.HOST}
_PRESENCE: Final = {Kind.VM: ("vm", "state_code"), Kind.HOST: ("host", "cpus_count")}


def samples_of(kind: Of) -> set[tuple[str, str]]:
    """Return fields to read so that samples of a kind come at all."""
    if isinstance(kind, Device):
        return {(kind.value, field) for field in devices.DECLARED[kind].always}
    return {_PRESENCE[kind]} if kind in _PRESENCE else set()


def members(word: str, on: Of) -> Of:
    """Return whom a word for members means on a kind; raises ValueError where it means nobody."""
    if word in SUBJECTS:
        return SUBJECTS[word]
    declared = devices.MANY.get((Kind(on), word)) if on in set(Kind) else None
    if declared is not None:
        return declared.device
    if on is Kind.CLUSTER:
        raise ValueError(f"`{word}` are a guest's or a host's: write `count(vms where any({word} where …)) > 0`")
    if isinstance(on, Device):
        raise ValueError(f"`{word}` within `{devices.DECLARED[on].word}` means nothing")
    owners = " or ".join(f"a {owner}" for owner, known in devices.MANY if known == word)
    raise ValueError(f"`{word}` are of {owners}, this rule is about a {on}")


def over_whom(name: str, word: str, *, chosen: bool) -> str:
    """Return what is wrong with a function of members themselves, "" where nothing is."""
    if name == functions.ANY:
        return "" if chosen else f"`any({word})` of what? write `any({word} where <condition>)`"
    if name == "count":
        return ""
    instead = f"write `{name}({word}.<field>)`" if functions.over_members(name) else "write `count(…)`"
    return f"of `{word}` themselves there is a count only; {instead}"


def call(name: str, of: str, owners: Collection[str], span: str) -> str:
    """Return what is wrong with a function over members or a span, "" where nothing is."""
    wrong = functions.unknown(name)
    if wrong:
        return wrong
    if span:
        if not owners:
            return "" if functions.window(name) else f"`{name}` is over vms or hosts; over time there is `avg`"
        two = f"over time and over {' and '.join(sorted(owners))} are two functions"
        return f"{two}, such as `max({name}({of}, {span}))`"
    if not owners:
        return f"`{name}` over what? `{name}({of}, 5m)` over time, `{name}(vms.…)` over guests"
    if not functions.over_members(name):
        return f"`{name}` is over time, such as `{name}(<field>, 5m)`"
    return f"`{name}` is over {' or over '.join(sorted(owners))}, not over both" if len(owners) > 1 else ""


def unknown_field(name: str, on: Of, *, current: bool) -> str:
    """Return what to say of a field that a measurement has not."""
    text = f"`{name[:80]}` is not a field of {on}"
    owners = sorted(owner for owner, field in FIELDS if field == name)
    if on == Kind.VM and "host" in owners:
        return f"{text}; the host's is `host.{name}`"
    if on == Kind.HOST and "vm" in owners:
        return f"{text}; its guests' are aggregated, such as `max(vms.{name})`"
    hints = [one for owner in owners if (one := devices.hint(name, owner, on))]
    if hints:
        return f"{text}; write `{'` or `'.join(hints)}`"
    if on in {one.device for one in devices.MANY.values() if one.owner is Kind.HOST}:
        guests = [one for owner in owners if (one := devices.hint(name, owner, Kind.VM))]
        if guests:
            return f"{text}; guests have it: `count(vms where {guests[0]} …)`"
    if owners:
        return f"{text}: {', '.join(owners)} has it, out of reach here"
    known = [*names(on.value), *(["current"] if current else [])]
    return f"{text}{hint(name, known)}"
