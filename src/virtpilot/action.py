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


class Stuck(StrEnum):
    """What becomes of a migration that does not converge, or takes too long."""

    ABORT = "abort"
    POST_COPY = "post-copy"


class Way(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a guest is moved; 0 leaves a number to the hypervisor.

    Peer to peer: the source's daemon speaks to the target's; else the agent manages both. `stall_s`: so long without
    progress it counts as stuck; `within_s`: so long it may take in all, beside the host's own limit. What is predicted
    is for people, and for the queue.
    """

    peer_to_peer: bool = True
    auto_converge: bool = True
    when_stuck: Stuck = Stuck.ABORT
    copy_disks: bool = True
    bandwidth_bytes_s: int = 0
    connections: int = 0
    downtime_s: float = 0.0
    stall_s: float = 60.0
    within_s: float = 0.0
    predicted_s: float = 0.0
    predicted_pause_s: float = 0.0


class Migrate(msgspec.Struct, frozen=True, tag="migrate", kw_only=True):
    """Live-migrate a guest to the host `target`, reached at the libvirt URI `uri`."""

    guest: str
    target: str
    uri: str
    way: Way = Way()


class Abort(msgspec.Struct, frozen=True, tag="abort", kw_only=True):
    """Abort the migration of a guest that is on its way: it stays where it is."""

    guest: str


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


class Run(msgspec.Struct, frozen=True, tag="run", kw_only=True):
    """Run the program or webhook `hook` from the host's own list; `fields` is what is known of the guest."""

    guest: str
    hook: str
    fields: dict[str, str] = {}


class AllocationPolicy(StrEnum):
    """What a guest's part of its host is measured by (planner/allocation.py)."""

    DEMAND = "demand"
    UTILISATION = "utilisation"
    CAPACITY = "capacity"
    MAX_MIN = "max-min"


class Resource(StrEnum):
    """What of a host is divided among its guests."""

    CPU = "cpu"
    MEMORY = "memory"


class Divide(msgspec.Struct, frozen=True, tag="divide", kw_only=True):
    """Divide a host's resource among its guests: one decision, a command and a lease for each guest."""

    host: str
    resource: Resource
    policy: AllocationPolicy
    sets: tuple[SetKnob, ...]

    @property
    def guest(self) -> str:
        """No single one."""
        return ""


Action = SetKnob | ReleaseKnob | Migrate | Abort | Power | Run
"""What a command can ask of an agent."""
Decided = Action | Divide
"""What a decision can be about."""


def action_name(action: Decided) -> str:
    """Return an action as outcomes name it."""
    match action:
        case SetKnob(knob=knob):
            name = f"set {knob}"
        case ReleaseKnob(knob=knob):
            name = f"release {knob}"
        case Migrate():
            name = "migrate"
        case Abort():
            name = "abort migration"
        case Run(hook=hook):
            name = f"run {hook}"
        case Divide():
            name = f"divide {action.resource} by {action.policy}"
        case Power(verb=verb):
            name = str(verb)
    return name
