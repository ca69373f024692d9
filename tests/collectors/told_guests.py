"""A hypervisor that tells what a test gives it."""

from __future__ import annotations

from collections.abc import Sequence

from virtpilot.action import Verb, Way
from virtpilot.errors import HypervisorError
from virtpilot.hypervisor import Footprint, GuestState, GuestStats, HostFacts, Job, Move


class ToldGuests:
    """The reading half of a Hypervisor: `told` is what `guests` returns, or raises."""

    def __init__(self, told: Sequence[GuestStats] | HypervisorError = (), skipped: int = 0) -> None:
        self.told = told
        self.skipped = skipped

    def guests(self) -> Sequence[GuestStats]:
        if isinstance(self.told, HypervisorError):
            raise self.told
        return self.told

    def facts(self) -> HostFacts:
        return HostFacts(cpus=1, memory_bytes=1, driver="told")

    def state(self, guest: str) -> GuestState:
        raise HypervisorError("only told of")

    def get_knob(self, guest: str, knob: str) -> int:
        raise HypervisorError("only told of")

    def set_knob(self, guest: str, knob: str, value: int) -> None:
        raise HypervisorError("only told of")

    def footprint(self, guest: str) -> Footprint:
        raise HypervisorError("only told of")

    def migrate(self, guest: str, uri: str, way: Way = Way()) -> Move:  # noqa: B008 - frozen
        raise HypervisorError("only told of")

    def abort_job(self, guest: str) -> None:
        raise HypervisorError("only told of")

    def power(self, guest: str, verb: Verb) -> Job:
        raise HypervisorError("only told of")

    def close(self) -> None:
        self.told = ()
