"""What the executor has to know for its leases' sake: whose guests to look at, and whether a controller lives.

A guest that came, went or started anew is looked at, and one whose knobs read otherwise. Events tell at once; what they
missed, the next measurement shows.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import structlog

from virtpilot.actuators.executor import Executor
from virtpilot.events import EventKind
from virtpilot.hypervisor import GuestEvent
from virtpilot.model import Message, Sample
from virtpilot.pipeline.presence import ControllerWatch

log = structlog.get_logger(__name__)

_TURNS: Final = frozenset({EventKind.STARTED, EventKind.RESUMED, EventKind.STOPPED, EventKind.UNDEFINED})
_SET: Final = frozenset({EventKind.KNOB_CHANGED, EventKind.BALLOON_CHANGED})
_MIGRATED: Final = "migrated"


class Attention:
    """Passes on to the executor what concerns leases."""

    def __init__(self, executor: Executor, controller: ControllerWatch) -> None:
        self.executor = executor
        self.controller = controller
        self._here: frozenset[str] = frozenset()

    def tick(self) -> None:
        """End all leases while the controller is lost."""
        lost = self.controller.lost()
        if lost and not self.executor.forsaken and self.executor.leases():
            log.warning("leases end now", why=lost, count=len(self.executor.leases()))
        self.executor.forsaken = lost

    def on_controller(self, message: Message) -> None:
        """Take what a controller says of itself."""
        self.controller.take(message, self.executor.epoch)

    def told(self, event: GuestEvent) -> None:
        """Take what the hypervisor tells by itself."""
        if event.kind in _TURNS:
            left = event.kind is EventKind.STOPPED and event.detail == _MIGRATED
            self.executor.look_at(event.guest, left=left)
        elif event.kind in _SET:
            for knob, value in event.numbers.items():
                self.executor.see(event.guest, knob, value)
            if " no-" in event.detail and any(lease.guest == event.guest for lease in self.executor.leases()):
                self.executor.look_at(event.guest)  # a limit is gone

    def see(self, samples: Iterable[Sample], *, whole: bool) -> None:
        """Take what was measured; `whole`: of all guests, so that who is not among them is not here."""
        here = set()
        for sample in samples:
            if sample.measurement == "vm":
                here.add(sample.tags["vm"])
            elif sample.measurement == "knob" and "value_count" in sample.fields:
                self.executor.see(sample.tags["vm"], sample.tags["knob"], sample.fields["value_count"])
        if not whole:
            return
        gone = {lease.guest for lease in self.executor.leases()} - here
        for guest in sorted((here - self._here) | gone):
            self.executor.look_at(guest)
        self._here = frozenset(here)
