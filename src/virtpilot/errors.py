"""The error tree. Foreign errors (libvirt, paho, HTTP, OS) are mapped to it where they enter.

VirtpilotError
├── InputError                 what a person wrote is wrong: exit status 2
│   ├── ConfigError            a TOML config, with every problem in it
│   └── RuleError              rule files, with every problem in them
├── LineProtocolError          one malformed line; never stops its batch
├── BusError                   the broker refused, vanished, or a queue is full
├── StoreError
│   ├── StoreUnavailable       try again later
│   └── StoreRefused           these lines will never be taken
├── HypervisorError
│   ├── HypervisorUnavailable  the connection is gone; it is reopened
│   ├── HypervisorTimeout      no answer within the deadline
│   ├── GuestNotFound          the guest has gone
│   ├── KnobUnsupported        this driver or guest has no such knob
│   └── Unsupported            this driver or guest cannot do it at all
├── CannotDivide               claims to a host's resource that cannot be met together
├── CommandRefused             a command that must not be executed, with its reason
└── StateError                 a state file or journal cannot be read or written
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec


class Problem(msgspec.Struct, frozen=True, order=True):
    """One mistake in a file that a person wrote; line and column count from 1, 0 means unknown."""

    file: str
    line: int
    column: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}: {self.message}"


class VirtpilotError(Exception):
    """Whatever virtpilot raises on purpose."""


class InputError(VirtpilotError):
    """Input with mistakes; carries all of them, not the first."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(sorted(problems))
        super().__init__("\n".join(str(problem) for problem in self.problems))


class ConfigError(InputError):
    """A config file with mistakes."""


class RuleError(InputError):
    """Rule files with mistakes."""


class LineProtocolError(VirtpilotError):
    """A malformed line of line protocol."""


class BusError(VirtpilotError):
    """The bus did not take or give a message."""


class StoreError(VirtpilotError):
    """The store did not take the lines."""


class StoreUnavailable(StoreError):
    """The store cannot be reached, or asks to try again, after `retry_after_s` seconds at the earliest."""

    def __init__(self, reason: str, retry_after_s: float = 0.0) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(reason)


class StoreRefused(StoreError):
    """The store will never take these lines; `named` are those that it names itself, with the reason of each."""

    def __init__(self, reason: str, named: Mapping[bytes, str] | None = None) -> None:
        self.named = named or {}
        super().__init__(reason)


class HypervisorError(VirtpilotError):
    """The hypervisor did not do what was asked."""


class HypervisorUnavailable(HypervisorError):
    """The connection to the hypervisor is gone."""


class HypervisorTimeout(HypervisorError):
    """The hypervisor did not answer within the deadline."""


class GuestNotFound(HypervisorError):
    """The guest is not known on this host (any more)."""


class KnobUnsupported(HypervisorError):
    """The driver or the guest does not have this knob."""


class Unsupported(HypervisorError):
    """The driver or the guest cannot do what was asked for, now or later."""


class CannotDivide(VirtpilotError):
    """Claims to a host's resource cannot be met together, or are no numbers."""


class CommandRefused(VirtpilotError):
    """A command that must not be executed; the text is the reason, `guard` its short name."""

    def __init__(self, guard: str, reason: str) -> None:
        self.guard = guard
        self.reason = reason
        super().__init__(f"{guard}: {reason}")


class StateError(VirtpilotError):
    """State on disk cannot be read or written."""
