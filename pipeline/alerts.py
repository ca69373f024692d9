"""Firing and cleared signals to Alertmanager (its v2 API) and to webhooks; a dead target blocks nobody."""

from __future__ import annotations

import http.client
import random
import threading
from collections import deque
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

import msgspec
import structlog
from msgspec import Meta

from virtpilot.clock import Clock, seconds
from virtpilot.errors import ConfigError, Problem
from virtpilot.model import Signal, SignalState

log = structlog.get_logger(__name__)

_QUEUE: Final = 1_000
_BACKOFF_S: Final = (0.5, 30.0)
_MAX_RESPONSE: Final = 4096


class AlertTarget(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Somebody to be told."""

    name: Annotated[str, Meta(description="The name that rules use in `notify`.", min_length=1)]
    kind: Annotated[Literal["alertmanager", "webhook"], Meta(description="How it is told.")]
    url: Annotated[str, Meta(description="Its address; for Alertmanager without /api/v2.", pattern="^https?://")]
    timeout_s: Annotated[float, Meta(description="An attempt ends after this.", gt=0, le=60)] = 5.0


class AlertOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who is told of signals."""

    targets: Annotated[
        list[AlertTarget], Meta(description="All of them; rules choose by `notify`, else all are told.")
    ] = []
    repeat_s: Annotated[
        float, Meta(description="A firing alert is told to Alertmanager again so often, lest it resolve it.", ge=1)
    ] = 60.0


class Alerts:
    """Sends each signal's firing and clearing to the targets that its rule names."""

    def __init__(self, options: AlertOptions, clock: Clock, cluster: str) -> None:
        self._cluster = cluster
        self._clock = clock
        self._repeat_ns = seconds(options.repeat_s)
        self._firing: dict[tuple[str, str], Signal] = {}
        self._next_ns = 0
        self.targets = [_Target(target) for target in options.targets]
        names = [target.options.name for target in self.targets]
        if len(set(names)) < len(names):
            raise ConfigError([Problem("[alerts]", 0, 0, "two targets have the same name")])

    def signal(self, signal: Signal) -> None:
        """Tell of a signal that begins to fire or has cleared; its other transitions are nobody's business."""
        key = (signal.rule, signal.subject.id)
        if signal.state is SignalState.FIRING and key not in self._firing:
            self._firing[key] = signal
            self._send(signal, None)
        elif signal.state is SignalState.INACTIVE and key in self._firing:
            self._send(self._firing.pop(key), signal)

    def resume(self, signals: Iterable[Signal]) -> None:
        """Take up what fired before a restart: Alertmanager hears of it with the next repetition."""
        for signal in signals:
            self._firing.setdefault((signal.rule, signal.subject.id), signal)

    def firing(self) -> list[Signal]:
        """Return what fires, for a restart."""
        return list(self._firing.values())

    def tick(self, now_ns: int) -> None:
        """Repeat what fires to Alertmanager."""
        if now_ns < self._next_ns:
            return
        self._next_ns = now_ns + self._repeat_ns
        for signal in self._firing.values():
            self._send(signal, None, repeated=True)

    def _send(self, fired: Signal, cleared: Signal | None, *, repeated: bool = False) -> None:
        for target in self.targets:
            options = target.options
            if fired.notify and options.name not in fired.notify:
                continue
            if options.kind == "alertmanager":
                target.put(msgspec.json.encode([self._alert(fired, cleared)]))
            elif not repeated:
                target.put(msgspec.json.encode(cleared or fired))

    def _alert(self, fired: Signal, cleared: Signal | None) -> dict[str, Any]:
        subject = fired.subject
        # Labels are an alert's identity: they stay those of the firing, also when the guest has moved since.
        labels = {
            "alertname": fired.rule,
            "rule": fired.rule,
            "severity": fired.severity,
            "cluster": self._cluster,
            "kind": subject.kind.value,
            "host": subject.host,
            "name": subject.name,
        }
        if subject.kind == "vm":
            labels["vm"] = subject.id
        alert: dict[str, Any] = {
            "labels": {name: value for name, value in labels.items() if value},
            "annotations": {
                "summary": fired.about or f"{fired.rule} on {subject.name}",
                "inputs": ", ".join(f"{name}={value:g}" for name, value in sorted(fired.inputs.items())),
                "signal": fired.id,
            },
            "startsAt": _rfc3339(fired.at_ns),
        }
        end_ns = cleared.at_ns if cleared is not None else self._clock.now_ns() + 4 * self._repeat_ns
        alert["endsAt"] = _rfc3339(end_ns)
        return alert

    def close(self, timeout_s: float) -> None:
        """Give what waits `timeout_s` seconds to go out."""
        for target in self.targets:
            target.close(timeout_s)


def _rfc3339(at_ns: int) -> str:
    return datetime.fromtimestamp(at_ns / 1e9, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _Target:
    """One target's queue and thread: oldest out when it is full, tried again until taken."""

    def __init__(self, options: AlertTarget) -> None:
        self.options = options
        self.sent = self.dropped = self.failures = 0
        self._queue: deque[bytes] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=f"alerts-{options.name}", daemon=True)
        self._thread.start()

    def put(self, body: bytes) -> None:
        with self._wake:
            if len(self._queue) >= _QUEUE:
                self._queue.popleft()
                self.dropped += 1
            self._queue.append(body)
            self._wake.notify()

    def _run(self) -> None:
        wait_s = _BACKOFF_S[0]
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._queue or self._closing)
                if not self._queue:
                    return
                body = self._queue[0]
            problem = self._post(body)
            with self._wake:
                if problem is None:
                    self.sent += 1
                    wait_s = _BACKOFF_S[0]
                    self._take(body)
                    continue
                self.failures += 1
                if problem.startswith("4"):
                    # It will never take this one; the next may be fine.
                    self.dropped += 1
                    self._take(body)
                log.warning("alert target does not take it", target=self.options.name, problem=problem)
                if self._wake.wait_for(lambda: self._closing, wait_s * random.uniform(0.5, 1.0)):  # noqa: S311 - jitter
                    return
                wait_s = min(wait_s * 2, _BACKOFF_S[1])

    def _take(self, body: bytes) -> None:
        """Remove what was sent, unless a full queue has pushed it out meanwhile."""
        if self._queue and self._queue[0] is body:
            self._queue.popleft()

    def _post(self, body: bytes) -> str | None:
        """Post once; return what went wrong. Redirects are not followed: the config names who is told."""
        url = urlsplit(self.options.url)
        path = url.path.rstrip("/") + ("/api/v2/alerts" if self.options.kind == "alertmanager" else "")
        target = (path or "/") + (f"?{url.query}" if url.query else "")
        secure = url.scheme == "https"
        made = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        try:
            connection = made(url.hostname or "", url.port, timeout=self.options.timeout_s)
            try:
                connection.request("POST", target, body, {"Content-Type": "application/json"})
                response = connection.getresponse()
                response.read(_MAX_RESPONSE)
                return None if 200 <= response.status < 300 else f"{response.status} {response.reason}"
            finally:
                connection.close()
        except (OSError, http.client.HTTPException, ValueError) as error:
            return f"no answer: {error}"

    def close(self, timeout_s: float) -> None:
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(timeout_s)
