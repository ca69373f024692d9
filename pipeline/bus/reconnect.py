"""How long to wait before a new connection: longer each time it fails, or ends soon after it began.

Two clients of one name throw each other out. MQTT 5 has a reason for that (session taken over), which not every broker
gives: mosquitto 2.0 closes without a word. So connections that end soon after they began are counted, and do not make
the next wait short again.
"""

from __future__ import annotations

from typing import Final

from virtpilot.clock import Clock, seconds
from virtpilot.pipeline.backoff import Backoff
from virtpilot.pipeline.bus.mqtt_options import MqttOptions

_SUSPICIOUS: Final = 3


class Reconnect:
    """One client's waits; told of each connection and its end, `takeovers` counts those by another client."""

    def __init__(self, options: MqttOptions, clock: Clock) -> None:
        self.takeovers = 0
        self._clock = clock
        self._backoff = Backoff(options.reconnect_min_s, options.reconnect_max_s)
        self._truce_s = options.takeover_wait_s
        # Longer than any wait: who is thrown out as often as it throws out must not count as settled.
        self._settled_ns = seconds(2 * options.reconnect_max_s)
        self._since_ns: int | None = None
        self._short = 0
        self._told = False

    def connected(self) -> None:
        """Note that the broker has accepted us."""
        self._since_ns = self._clock.monotonic_ns()
        if not self._short:
            self._backoff.reset()

    def lost(self, *, taken_over: bool) -> bool:
        """Note that a connection has ended; return whether it looks as if another client had our name."""
        if self._since_ns is None:
            return False
        settled = self._clock.monotonic_ns() - self._since_ns >= self._settled_ns
        self._since_ns = None
        self._short = 0 if settled else self._short + 1
        self._told = taken_over
        suspicious = taken_over or self._short >= _SUSPICIOUS
        self.takeovers += suspicious
        return suspicious

    def pause_s(self) -> float:
        """Return how long to wait before the next try; where the broker has told of a takeover, longer."""
        told, self._told = self._told, False
        return self._backoff.next_s() + (self._truce_s if told else 0.0)
