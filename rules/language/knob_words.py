"""What is said of knobs to whoever writes a rule."""

from __future__ import annotations

import difflib
from typing import Final

from ruamel.yaml.nodes import MappingNode, Node

from virtpilot.fields import Unit
from virtpilot.knobs import DEVICE_KNOBS, KNOBS, Knob, find

_OF_GUESTS: Final = [name for name, knob in KNOBS.items() if not knob.of_host]


def known(name: str) -> Knob:
    """Return the knob of a name that `knob_names` gave."""
    knob = find(name)
    if knob is None:
        raise ValueError(f"no knob {name!r}")
    return knob


def knob_names(node: Node) -> list[str]:
    """Return the knobs of guests, and those of devices that a mapping names."""
    keys = [key.value for key, _value in node.value] if isinstance(node, MappingNode) else []
    keys = [str(key) for key in keys]
    return [*_OF_GUESTS, *(key for key in keys if find(key) is not None and key not in KNOBS)]


def unknown_knob(name: str) -> str:
    """Return what is wrong with a name that is no knob of a guest."""
    knob = find(name)
    if knob is not None:
        return f"`{name}` is a knob of hosts, and a rule on a vm sets knobs of its guest"
    device, point, _ = name.partition(".")
    rest = name.rpartition(".")[2]
    if rest in DEVICE_KNOBS:
        whose = {"disk": "vda.", "nic": "nic0.", "memory": "virtiomem0."}[DEVICE_KNOBS[rest].device]
        return f"`{name[:80]}` is not a knob: before `{rest}` stands a device, such as `{whose}{rest}`"
    there = [f"{device}.{one}" for one in DEVICE_KNOBS] if point else _OF_GUESTS
    near = difflib.get_close_matches(name[:80], there, 1)
    hint = f"; did you mean `{near[0]}`?" if near else f"; there are {', '.join(_OF_GUESTS)}, and those of devices"
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
