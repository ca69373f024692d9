"""What is said of knobs to whoever writes a rule."""

from __future__ import annotations

import difflib
from typing import Final

from ruamel.yaml.nodes import MappingNode, Node

from virtpilot.fields import Unit
from virtpilot.knobs import DEVICE_KNOBS, KNOBS, Knob, find
from virtpilot.model import Kind

_OF: Final = {
    kind: [name for name, knob in KNOBS.items() if knob.of_host is (kind is Kind.HOST)] for kind in (Kind.VM, Kind.HOST)
}


def known(name: str) -> Knob:
    """Return the knob of a name that `knob_names` gave."""
    knob = find(name)
    if knob is None:
        raise ValueError(f"no knob {name!r}")
    return knob


def knob_names(node: Node, on: Kind = Kind.VM) -> list[str]:
    """Return the knobs of guests, or of hosts, and those of devices that a mapping names."""
    if on is Kind.HOST:
        return _OF[on]
    keys = [key.value for key, _value in node.value] if isinstance(node, MappingNode) else []
    keys = [str(key) for key in keys]
    return [*_OF[on], *(key for key in keys if find(key) is not None and key not in KNOBS)]


def unknown_knob(name: str, on: Kind) -> str:
    """Return what is wrong with a name that is no knob of a guest, or of a host."""
    if find(name) is not None:
        mine, other = ("a guest", "a host") if on is Kind.VM else ("a host", "a guest")
        return f"`{name}` is a knob of {other}, and this rule is on {mine}"
    device, point, _ = name.partition(".")
    rest = name.rpartition(".")[2]
    if rest in DEVICE_KNOBS:
        whose = {"disk": "vda.", "nic": "nic0.", "memory": "virtiomem0."}[DEVICE_KNOBS[rest].device]
        return f"`{name[:80]}` is not a knob: before `{rest}` stands a device, such as `{whose}{rest}`"
    there = [f"{device}.{one}" for one in DEVICE_KNOBS] if point else _OF[on]
    near = difflib.get_close_matches(name[:80], there, 1)
    hint = f"; did you mean `{near[0]}`?" if near else f"; there are {', '.join(_OF[on])}"
    return f"`{name[:80]}` is not a knob{hint}"


def counted(knob: Knob) -> str:
    """Return what a knob's numbers count."""
    if knob.own_unit is Unit.COUNT and knob.unit is Unit.COUNT:
        return "a plain number"
    if knob.own_unit is Unit.COUNT:
        return f"a plain number, or {knob.unit}"
    return f"in {knob.unit}"


def bounds(knob: Knob) -> str:
    """Return what a knob's values lie between."""
    lifted = ", or 0 for no limit" if knob.limit else ""
    return f"between {knob.low} and {knob.high}{lifted}"
