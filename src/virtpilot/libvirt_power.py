"""Guests suspended, resumed, started, shut down, rebooted and destroyed, and how it is seen that they are.

Source: virDomainSuspend, -Resume, -Create, -Shutdown, -Reboot, -Destroy; VIR_DOMAIN_EVENT_ID_REBOOT, which alone tells
of a reboot: the state is `running` all the time, and so is the QEMU process.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, Final

import structlog

from virtpilot.action import Verb
from virtpilot.errors import GuestNotFound, HypervisorError, Unsupported
from virtpilot.hypervisor import GOALS, GuestState, JobState, JobStatus
from virtpilot.libvirt_link import Lane, LibvirtLink, Meaning

log = structlog.get_logger(__name__)

_CALLS: Final[Mapping[Verb, str]] = {
    Verb.SUSPEND: "suspend",
    Verb.RESUME: "resume",
    Verb.START: "create",
    Verb.SHUTDOWN: "shutdown",
    Verb.DESTROY: "destroy",
}
# A reboot that nobody asks about any more is not listened for longer than this.
_LONGEST_S: Final = 3600.0


def unsupported(binding: Any) -> Meaning:
    """Return the codes by which libvirt says that a driver or a guest cannot do a thing at all."""
    names = ("NO_SUPPORT", "OPERATION_UNSUPPORTED", "ARGUMENT_UNSUPPORTED", "CONFIG_UNSUPPORTED")
    return {getattr(binding, f"VIR_ERR_{name}"): Unsupported for name in names}


class Switch:
    """A change of state that was asked for: over when the guest is seen in the state that it is to have."""

    def __init__(self, link: LibvirtLink, guest: str, verb: Verb, state: Callable[[str], GuestState]) -> None:
        self._guest = guest
        self._goal = GOALS[verb]
        self._state = state
        meaning = unsupported(link.binding)
        call = _CALLS[verb]
        link.call(Lane.COMMAND, lambda opened: getattr(opened.lookupByUUIDString(guest), call)(), meaning)

    def poll(self) -> JobStatus:
        """Return whether the guest is where it should be; raises HypervisorError."""
        try:
            there = self._state(self._guest) in self._goal
        except GuestNotFound:  # a transient guest that is off is no more
            there = GuestState.SHUTOFF in self._goal
        return JobStatus(JobState.DONE if there else JobState.RUNNING)

    def abort(self) -> None:
        """Do nothing: a guest that was asked cannot be asked not to."""


class Reboot:
    """A reboot that was asked for: over when libvirt tells of it, over a connection of its own."""

    def __init__(self, link: LibvirtLink, guest: str) -> None:
        self._link = link
        self._guest = guest
        self._told = threading.Event()
        self._given_up = threading.Event()
        self._error: HypervisorError | None = None
        self._asked = threading.Event()
        threading.Thread(target=self._run, name=f"reboot-{guest[:8]}", daemon=True).start()

    def poll(self) -> JobStatus:
        """Return whether the guest has begun anew."""
        if self._told.is_set():
            return JobStatus(JobState.DONE)
        if self._error is not None:
            return JobStatus(JobState.FAILED, str(self._error))
        return JobStatus(JobState.RUNNING)

    def abort(self) -> None:
        """Listen no longer."""
        self._given_up.set()

    def asked(self, deadline_s: float) -> None:
        """Wait until libvirt has taken the request; raises HypervisorError where it does not want it."""
        self._asked.wait(deadline_s)
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        binding = self._link.binding
        try:
            connection = self._link.open_alone()
            try:
                self._ask(connection)
            finally:
                connection.close()
        except binding.libvirtError as failure:
            kind = unsupported(binding).get(failure.get_error_code(), HypervisorError)
            self._error = kind(str(failure))
        finally:
            self._asked.set()

    def _ask(self, connection: Any) -> None:
        domain = connection.lookupByUUIDString(self._guest)
        event = self._link.binding.VIR_DOMAIN_EVENT_ID_REBOOT
        number = connection.domainEventRegisterAny(domain, event, self._rebooted, None)
        try:
            domain.reboot(0)
            self._asked.set()
            self._given_up.wait(_LONGEST_S)
        finally:
            connection.domainEventDeregisterAny(number)

    def _rebooted(self, _connection: Any, _domain: Any, _opaque: object) -> None:
        self._told.set()
        self._given_up.set()
