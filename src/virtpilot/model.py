"""The vocabulary: the frozen records that travel and the Protocols at the seams; times are integer ns since the epoch.

Each record after a sample carries `cause`, the id of the record that led to it, so that a trail can be walked both
ways: sample → signal → decision → command → outcome.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from enum import StrEnum
from hashlib import blake2b
from typing import Protocol

import msgspec

from virtpilot.action import Action, Decided


class Kind(StrEnum):
    """What a subject is."""

    HOST = "host"
    VM = "vm"
    CLUSTER = "cluster"


class SignalState(StrEnum):
    """Where a rule's condition on a subject stands."""

    INACTIVE = "inactive"
    PENDING = "pending"
    FIRING = "firing"
    CLEARING = "clearing"


class Mode(StrEnum):
    """How far a rule may go by itself."""

    OBSERVE = "observe"
    APPROVE = "approve"
    ACT = "act"


class Result(StrEnum):
    """What became of a command: at the agent (the first four), in its measured effect (the last two)."""

    DONE = "done"
    REFUSED = "refused"
    FAILED = "failed"
    REVERTED = "reverted"
    EFFECTIVE = "effective"
    INEFFECTIVE = "ineffective"


class Subject(msgspec.Struct, frozen=True):
    """A host (id is its name), a guest (id is its UUID, stable across migrations) or the cluster."""

    kind: Kind
    id: str
    name: str = ""
    host: str = ""
    tags: dict[str, str] = {}

    @property
    def key(self) -> tuple[Kind, str]:
        """What identifies the subject, whatever its name, host and tags are just now."""
        return (self.kind, self.id)


class Sample(msgspec.Struct, frozen=True, gc=False):
    """One line of line protocol: a measurement's tags and numeric fields at a time."""

    measurement: str
    tags: dict[str, str]
    fields: dict[str, int | float]
    time_ns: int


class Signal(msgspec.Struct, frozen=True, kw_only=True):
    """One transition of a rule's condition on a subject."""

    id: str
    cause: str
    rule: str
    subject: Subject
    previous: SignalState
    state: SignalState
    at_ns: int
    severity: str = "info"
    about: str = ""
    inputs: dict[str, float] = {}
    notify: list[str] = []
    annotations: dict[str, str] = {}


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """An action that a rule wants, accepted or refused by the guard named, with the reason."""

    id: str
    cause: str
    rule: str
    subject: Subject
    rung: int
    priority: int
    at_ns: int
    accepted: bool
    action: Decided | None = None
    guard: str = ""
    reason: str = ""


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """An accepted decision on its way to one host; travels signed (actuators/command.py)."""

    id: str
    cause: str
    host: str
    action: Action
    rule: str
    issued_ns: int
    not_after_ns: int
    epoch: int


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a command; before and after hold knob values, or the measured fields of an effect."""

    id: str
    cause: str
    command: str
    host: str
    guest: str
    result: Result
    at_ns: int
    action: str = ""
    rule: str = ""
    guard: str = ""
    reason: str = ""
    before: dict[str, float] = {}
    after: dict[str, float] = {}


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How often a host's guests are to be sampled until `until_ns`: some faster, some less often, the rest as usual."""

    host: str
    at_ns: int
    until_ns: int
    fast: list[str] = []
    fast_s: float = 1.0
    calm: list[str] = []
    calm_s: float = 30.0


class HostStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The retained message of an agent: whether it is there and what its host can do."""

    host: str
    online: bool
    at_ns: int
    boot: str = ""
    cpus: int = 0
    memory_bytes: int = 0
    migration_uri: str = ""
    driver: str = ""
    versions: dict[str, str] = {}
    stopped: str = ""
    """Who has stopped everything and why, as this host knows it; "" where nobody has."""


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """A writer's report: the sequences of one boot of one host that the store holds safely (inclusive ranges)."""

    host: str
    boot: str
    ranges: list[tuple[int, int]]


def record_id(prefix: str, *parts: object) -> str:
    """Return an id made of what the record is about: the same inputs give the same id on every run."""
    digest = blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8)
    return f"{prefix}-{digest.hexdigest()}"


class Message(msgspec.Struct, frozen=True):
    """One message on the bus; `properties` are MQTT 5 user properties, `expiry_s` the message expiry."""

    topic: str
    payload: bytes
    properties: dict[str, str] = {}
    retain: bool = False
    expiry_s: int | None = None


class Delivery(Protocol):
    """A received message; not acknowledged, it comes again after a reconnect."""

    @property
    def message(self) -> Message:
        """The message."""

    def ack(self) -> None:
        """Acknowledge: the work that the message asked for is safe. Calling it twice is harmless."""


class Bus(Protocol):
    """One client's session on the bus. QoS 1 throughout, persistent session, acknowledged by hand."""

    @property
    def generation(self) -> int:
        """How often a connection was made, 0 while there is none; a new number: the broker may have forgotten."""

    def publish(self, message: Message) -> Future[None]:
        """Send; the future is done when the broker has it, or fails with BusError."""

    def together(self) -> AbstractContextManager[None]:
        """Let what is said in between leave at the end, at less cost than one by one; nobody waits for it before."""

    def subscribe(self, pattern: str, group: str | None = None) -> None:
        """Receive what matches (`+` and `#` wildcards); a group shares the load among its members."""

    def receive(self, timeout_s: float) -> Delivery | None:
        """Return the next message, or None after `timeout_s` seconds without one."""

    def close(self) -> None:
        """Leave in order: no last will, and what was published goes out first."""


class Store(Protocol):
    """Where samples end. Writing the same lines twice leaves them once."""

    def write(self, message_id: str, lines: bytes) -> None:
        """Take line protocol, whole or not at all; raises StoreUnavailable or StoreRefused."""

    def durable(self, now_ns: int) -> Sequence[str]:
        """Return the ids of messages known to be on disk since the last call, each once."""

    def close(self) -> None:
        """Flush and let go."""
