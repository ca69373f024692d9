"""What can be killed in the middle of its work, and what it asks of a hypervisor."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import Future
from typing import Any

from virtpilot.action import Way
from virtpilot.hypervisor import Move
from virtpilot.model import Message
from virtpilot.pipeline.bus.memory import MemoryBus
from virtpilot.simulator.hypervisor import FleetHypervisor


class Killed(BaseException):
    """The end of a process, as far as one can have it within another."""


class Fuse:
    """Kills whoever it burns down under."""

    def __init__(self) -> None:
        self.left: int | None = None

    def burn(self) -> None:
        """Take one step; raises Killed at the last one."""
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                self.left = None
                raise Killed


class MortalBus:
    """A session on the bus at each of whose messages its owner can be killed, before it leaves or after."""

    def __init__(self, bus: MemoryBus, fuse: Fuse) -> None:
        self._bus, self._fuse = bus, fuse

    def publish(self, message: Message) -> Future[None]:
        self._fuse.burn()
        future = self._bus.publish(message)
        self._fuse.burn()
        return future

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)


class WatchedHypervisor(FleetHypervisor):
    """A connection of an agent, which notes what it asks for."""

    asked: Counter[tuple[str, object]]

    def set_knob(self, guest: str, knob: str, value: int) -> None:
        super().set_knob(guest, knob, value)
        self.asked[guest, value] += 1

    def migrate(self, guest: str, uri: str, way: Way = Way()) -> Move:  # noqa: B008 - frozen
        job = super().migrate(guest, uri, way)
        self.asked[guest, "migrate"] += 1
        return job
