"""Firing and cleared signals to Alertmanager (its v2 API) and to webhooks; a dead target blocks nobody.

    signal → who is told (the rule's `notify`) → one courier per target: queue → thread → HTTP

A webhook gets each signal's firing and clearing once, as the JSON of the `Signal`. Alertmanager gets the state: a
firing alert again and again, with an end a few repetitions ahead, so that it ends there too when this controller goes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import quote, urlsplit

import msgspec
import structlog
from msgspec import Meta

from virtpilot.clock import SECOND, Clock, seconds
from virtpilot.errors import ConfigError, Problem
from virtpilot.model import Kind, Signal, SignalState
from virtpilot.pipeline.courier import Courier, Parcel
from virtpilot.pipeline.keeping import Entries
from virtpilot.pipeline.settings import read_secret
from virtpilot.tracked import Tracked

log = structlog.get_logger(__name__)

_REPEATS_UNTIL_END: Final = 4
_NO_TOKEN: Final = re.compile(r"[^!-~]")
_WAS_FIRING: Final = (SignalState.FIRING, SignalState.CLEARING)


class AlertTarget(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Somebody to be told."""

    name: Annotated[str, Meta(description="The name that rules use in `notify`.", min_length=1, examples=["oncall"])]
    kind: Annotated[Literal["alertmanager", "webhook"], Meta(description="How it is told.")]
    url: Annotated[
        str,
        Meta(
            description="Its address, http or https; for Alertmanager without /api/v2.",
            pattern="^https?://",
            examples=["http://127.0.0.1:9093"],
        ),
    ]
    token_file: Annotated[
        str, Meta(description="A file that holds the token alone that the target asks for (Authorization: Bearer).")
    ] = ""
    timeout_s: Annotated[float, Meta(description="An attempt ends after this.", gt=0, le=60)] = 5.0

    def __post_init__(self) -> None:
        """Refuse an address that can never be reached, or that holds a password."""
        url = urlsplit(self.url)
        _ = url.port  # raises ValueError where it is no number
        if not url.hostname:
            raise ValueError("the url names no host")
        if url.username is not None or url.password is not None:
            raise ValueError("the url holds a user name or password: secrets belong in a file, see token_file")
        if any(char.isspace() or ord(char) < 0x20 for char in self.url) or not self.url.isascii():
            raise ValueError("the url has blanks or characters that must be escaped")


class AlertOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who is told of signals."""

    targets: Annotated[
        list[AlertTarget], Meta(description="All of them; rules choose by `notify`, else all are told.")
    ] = []
    repeat_s: Annotated[
        float, Meta(description="A firing alert is told to Alertmanager again so often, lest it resolve it.", ge=1)
    ] = 60.0
    queue: Annotated[
        int, Meta(description="What waits for one target at most; the oldest is dropped beyond it.", ge=1, le=1_000_000)
    ] = 10_000
    link: Annotated[
        str, Meta(description="Address shown with an alert; {rule} and {subject} in it are filled in; empty: none.")
    ] = ""

    def __post_init__(self) -> None:
        """Refuse two targets of one name: a rule could not choose between them."""
        names = [target.name for target in self.targets]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two targets have the same name: {', '.join(twice)}")


class Alerts:
    """Sends each signal's firing and clearing to the targets that its rule names."""

    def __init__(self, options: AlertOptions, clock: Clock, cluster: str) -> None:
        self._options = options
        self._clock = clock
        self._cluster = cluster
        self._repeat_ns = seconds(options.repeat_s)
        self._firing: Tracked[tuple[str, Kind, str], Signal] = Tracked()
        self.part = Entries(self._firing, "/".join)
        """What fires, for a restart."""
        self._next_ns = 0
        self._unknown: set[str] = set()
        self.targets = [_courier(target, options.queue, clock) for target in options.targets]

    def signal(self, signal: Signal) -> None:
        """Tell of a signal that begins to fire or has cleared; its other transitions are nobody's business."""
        key = _key(signal)
        if signal.state is SignalState.FIRING:
            if key not in self._firing:
                self._firing[key] = signal
                self._send(signal, None)
        elif signal.state is SignalState.INACTIVE:
            fired = self._firing.pop(key, None)
            if fired is not None or signal.previous in _WAS_FIRING:
                self._send(fired or signal, signal)

    def resume(self, signals: Iterable[Signal]) -> None:
        """Take up what fired before a restart: Alertmanager hears of it with the next tick."""
        for signal in signals:
            self._firing.setdefault(_key(signal), signal)
        self._next_ns = 0

    def firing(self) -> list[Signal]:
        """Return what fires."""
        return list(self._firing.values())

    def tick(self, now_ns: int) -> None:
        """Repeat what fires to Alertmanager, when it is time."""
        # The wall clock may be set back: a repetition more than one interval ahead was planned before that.
        if self._next_ns - self._repeat_ns <= now_ns < self._next_ns:
            return
        self._next_ns = now_ns + self._repeat_ns
        for signal in self._firing.values():
            self._send(signal, None, repeated=True)

    def waiting(self) -> dict[str, int]:
        """Return how many messages wait, by target."""
        return {courier.name: courier.waiting for courier in self.targets}

    def sent(self) -> dict[str, int]:
        """Return how many messages were taken, by target."""
        return {courier.name: courier.sent for courier in self.targets}

    def failures(self) -> dict[str, int]:
        """Return how many attempts failed, by target."""
        return {courier.name: courier.failures for courier in self.targets}

    def dropped(self) -> dict[str, int]:
        """Return how many messages were given up: refused, or pushed out by newer ones; by target."""
        return {courier.name: courier.dropped for courier in self.targets}

    def close(self, timeout_s: float) -> None:
        """Give what waits `timeout_s` seconds, for all targets together, to go out."""
        for courier in self.targets:
            courier.finish()
        deadline_ns = self._clock.monotonic_ns() + seconds(timeout_s)
        for courier in self.targets:
            left_s = (deadline_ns - self._clock.monotonic_ns()) / SECOND
            courier.join(max(left_s, 0.0))

    def _send(self, fired: Signal, cleared: Signal | None, *, repeated: bool = False) -> None:
        self._know(fired.notify)
        for courier, target in zip(self.targets, self._options.targets, strict=True):
            if fired.notify and target.name not in fired.notify:
                continue
            if target.kind == "alertmanager":
                # Alertmanager is told a state: of one alert, only the newest word need wait.
                courier.put(Parcel("/".join(_key(fired)), msgspec.json.encode(self._alert(fired, cleared))))
            elif not repeated:
                told = cleared or fired
                courier.put(Parcel(told.id, msgspec.json.encode(told)))

    def _know(self, notify: list[str]) -> None:
        """Say once that a rule wants to tell somebody who is not in the config."""
        unknown = set(notify) - {target.name for target in self._options.targets} - self._unknown
        self._unknown |= unknown
        for name in sorted(unknown):
            log.error("a rule notifies a target that is not in the config", target=name)

    def _alert(self, fired: Signal, cleared: Signal | None) -> dict[str, Any]:
        # Labels are an alert's identity: they stay those of the firing, also when the guest has moved since.
        end_ns = cleared.at_ns if cleared else self._clock.now_ns() + _REPEATS_UNTIL_END * self._repeat_ns
        inputs = (cleared or fired).inputs
        alert: dict[str, Any] = {
            "labels": {name: value for name, value in self._labels(fired).items() if value},
            "annotations": {
                "summary": fired.about or f"{fired.rule} on {fired.subject.name or fired.subject.id}",
                "inputs": ", ".join(f"{name}={value:g}" for name, value in sorted(inputs.items())),
                "signal": fired.id,
            }
            | fired.annotations,
            "endsAt": _rfc3339(end_ns),
            "generatorURL": self._link(fired),
        }
        if fired is not cleared:
            # Alertmanager refuses an end before the start: sample times that went back must not keep an alert alive.
            alert["startsAt"] = _rfc3339(min(fired.at_ns, end_ns))
        return alert

    def _labels(self, fired: Signal) -> dict[str, str]:
        subject = fired.subject
        return {
            "alertname": fired.rule,
            "rule": fired.rule,
            "severity": fired.severity,
            "cluster": self._cluster,
            "kind": subject.kind.value,
            "host": subject.id if subject.kind is Kind.HOST else subject.host,
            "vm": subject.id if subject.kind is Kind.VM else "",
            "name": subject.name,
        }

    def _link(self, fired: Signal) -> str:
        filled = self._options.link.replace("{rule}", quote(fired.rule, safe=""))
        return filled.replace("{subject}", quote(fired.subject.id, safe=""))


def _key(signal: Signal) -> tuple[str, Kind, str]:
    return (signal.rule, *signal.subject.key)


def _courier(target: AlertTarget, limit: int, clock: Clock) -> Courier:
    is_alertmanager = target.kind == "alertmanager"
    url = target.url.rstrip("/") + "/api/v2/alerts" if is_alertmanager else target.url
    return Courier(
        target.name,
        url,
        timeout_s=target.timeout_s,
        limit=limit,
        as_list=is_alertmanager,
        clock=clock,
        token=_token(target),
    )


def _token(target: AlertTarget) -> str | None:
    token = read_secret(Path(target.token_file) if target.token_file else None, None, name="token_file")
    if token is not None and _NO_TOKEN.search(token):
        problem = Problem(target.token_file, 0, 0, "token_file: blanks or characters that no token has")
        raise ConfigError([problem])
    return token


def _rfc3339(at_ns: int) -> str:
    whole, rest = divmod(at_ns, SECOND)
    return f"{datetime.fromtimestamp(whole, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"
