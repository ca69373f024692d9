"""Guests brought into other states: what libvirt does at once, and a guest that listens to its power button or not."""

from __future__ import annotations

from typing import Final

from virtpilot.action import Verb
from virtpilot.events import EventKind
from virtpilot.hypervisor import GOALS, JobState, JobStatus
from virtpilot.simulator.world import World

# virDomainPausedReason, virDomainRunningReason and virDomainShutoffReason
_BY_USER: Final = 1
_UNPAUSED: Final = 5
_SHUT_DOWN: Final = 1
_DESTROYED: Final = 2
_BOOTED: Final = 1


class PowerJob:
    """A change of state that was asked for."""

    def __init__(self, world: World, guest: int, verb: Verb, *, done: bool) -> None:
        self._world, self._guest, self._verb, self._done = world, guest, verb, done

    def poll(self) -> JobStatus:
        """Return whether the guest is as it should be."""
        there = self._done and self._world.state_of(self._guest) in GOALS[self._verb]
        return JobStatus(JobState.DONE if there else JobState.RUNNING)

    def abort(self) -> None:
        """Do nothing: it cannot be asked not to."""


def switch(world: World, guest: int, verb: Verb) -> bool:
    """Bring a guest into another state; returns False for one that ignores what it is asked."""
    if verb in {Verb.SHUTDOWN, Verb.REBOOT} and not world.scenario.guests[guest].listens:
        return False
    match verb:
        case Verb.SUSPEND:
            world.pause(guest, _BY_USER)
        case Verb.RESUME:
            world.resume(guest, _UNPAUSED)
        case Verb.START:
            world.start(guest)
        case Verb.SHUTDOWN:
            world.stop(guest, _SHUT_DOWN)
        case Verb.REBOOT:
            world.reason[guest] = _BOOTED
            world.tell(guest, EventKind.REBOOTED)
        case Verb.DESTROY:
            world.stop(guest, _DESTROYED)
    return True
