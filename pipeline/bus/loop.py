"""Serves a paho client's connection by what paho has for foreign event loops.

paho's own loop is woken by a byte through a pair of sockets for each packet that another thread queues, and sends them
one by one: two threads take turns for each. Here whoever has queued some sends them together, and the loop is woken
only where that cannot be.
"""

from __future__ import annotations

import contextlib
import select
import socket
from typing import Any, Final

from paho.mqtt.enums import MQTTErrorCode

from virtpilot.clock import Clock, seconds
from virtpilot.pipeline.bus.sender import Sender

_MANY: Final = 4096
_PATIENCE_S: Final = 1.0


class Loop:
    """Waits for the broker, and for what is to be sent; `turn` is for one thread alone, `send` for all."""

    def __init__(self, client: Sender, clock: Clock) -> None:
        self._client, self._clock = client, clock
        self._woken, self._waker = socket.socketpair()
        for end in (self._woken, self._waker):
            end.setblocking(False)
        self._line: Any = None
        self._poll = select.poll()
        self._next_ns = 0
        self._sleeps = False
        # With it set, paho leaves writing to us.
        client.on_socket_register_write = _leave_it_to_us

    def send(self) -> None:
        """Send what is queued, or let the network thread do it."""
        # It looks for what is queued after it has said that it sleeps.
        if not self._client.send() and self._sleeps:
            self._sleeps = False
            # Full of bytes that were not read yet, it wakes as well; closed, there is nobody to wake.
            with contextlib.suppress(OSError):
                self._waker.send(b"\0")

    def turn(self) -> MQTTErrorCode:
        """Wait a second at most, then read and write what there is; returns whether the connection still stands."""
        line = self._client.socket()
        if line is None:
            return MQTTErrorCode.MQTT_ERR_NO_CONN
        found = self._wait(line)
        if found.pop(self._woken.fileno(), 0):
            self._woken.recv(_MANY)
        if any(event & ~select.POLLOUT for event in found.values()):
            result = self._client.loop_read()
            if result or self._client.socket() is None:
                return result
        if self._client.want_write():
            result = self._client.loop_write()
            if result or self._client.socket() is None:
                return result
        return self._look_after()

    def _wait(self, line: Any) -> dict[int, int]:
        """Return what happened to which descriptor."""
        if line is not self._line:
            self._line, self._poll, self._next_ns = line, select.poll(), 0
            self._poll.register(self._woken, select.POLLIN)
        # What TLS has decrypted already nobody tells of.
        if hasattr(line, "pending") and line.pending():
            return {line.fileno(): select.POLLIN}
        self._sleeps = True
        writes = select.POLLOUT if self._client.want_write() else 0
        self._poll.register(line, select.POLLIN | writes)
        found = self._poll.poll(_PATIENCE_S * 1000)
        self._sleeps = False
        return dict(found)

    def _look_after(self) -> MQTTErrorCode:
        """Ask whether the broker is silent for too long, once a second."""
        now_ns = self._clock.monotonic_ns()
        if now_ns < self._next_ns:
            return MQTTErrorCode.MQTT_ERR_SUCCESS
        self._next_ns = now_ns + seconds(_PATIENCE_S)
        return self._client.loop_misc()

    def close(self) -> None:
        """Let go of what wakes it."""
        for end in (self._woken, self._waker):
            end.close()


def _leave_it_to_us(_client: Any, _data: Any, _socket: Any) -> None:
    pass
