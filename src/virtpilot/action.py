"""The actions: what a rule may want done and a command may ask for."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class SetKnob(msgspec.Struct, frozen=True, tag="set_knob", kw_only=True):
    """Set a knob of a guest for `lease_s` seconds; `expected` is the value the decision was based on."""

    guest: str
    knob: str
    value: int
    expected: int
    lease_s: float


class ReleaseKnob(msgspec.Struct, frozen=True, tag="release_knob", kw_only=True):
    """Give a leased knob back now: restore its baseline."""

    guest: str
    knob: str


class Migrate(msgspec.Struct, frozen=True, tag="migrate", kw_only=True):
    """Live-migrate a guest to the host `target`, reached at the libvirt URI `uri`."""

    guest: str
    target: str
    uri: str


class Verb(StrEnum):
    """What is done to a guest as a whole."""

    SUSPEND = "suspend"
    RESUME = "resume"
    START = "start"
    SHUTDOWN = "shutdown"
    REBOOT = "reboot"
    DESTROY = "destroy"


class Power(msgspec.Struct, frozen=True, tag="power", kw_only=True):
    """Bring a guest into another state, which must be seen within `within_s` seconds."""

    guest: str
    verb: Verb
    within_s: float


Action = SetKnob | ReleaseKnob | Migrate | Power
