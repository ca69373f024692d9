"""A whole controller's main thread on the load of `rules_fleet`, in virtual time, without a broker.

    python -m bench.rules_controller [TICKS] [PROFILE]

Prints the CPU time of a host's message with all that comes of it, and what left the controller: of each family how
many, and a number that tells two versions' apart, whatever their order. With PROFILE a profile is written there.
"""

from __future__ import annotations

import cProfile
import hashlib
import sys
import tempfile
import threading
from collections import deque
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from time import thread_time
from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bench.rules_agents import GUESTS, HOSTS, TICK_S
from bench.rules_load import CLUSTER, fleet
from bench.rules_past import fill_windows
from virtpilot.actuators.command import Envelope, Signer
from virtpilot.clock import SECOND, VirtualClock
from virtpilot.model import Command, HostStatus, Message, Mode, Outcome, Result, record_id
from virtpilot.pipeline import assembly
from virtpilot.pipeline.controller_config import ControllerConfig
from virtpilot.pipeline.rulebook import LIBRARY, RuleOptions
from virtpilot.topics import BOOT_PROPERTY, SEQUENCE_PROPERTY, Topics

_GAP_S: Final = TICK_S / HOSTS
_ANSWER_S: Final = 0.003
_TOLD: Final = ("signals", "decisions", "commands", "outcomes", "sampling")


class _Held:
    """A message that nobody needs to acknowledge."""

    def __init__(self, message: Message) -> None:
        self.message = message

    def ack(self) -> None:
        """Do nothing."""


class _Bus:
    """Gives what was put into it, and keeps what is published."""

    generation, takeovers, refused = 1, 0, 0

    def __init__(self) -> None:
        self.waits: deque[_Held] = deque()
        self.sent: list[Message] = []
        self._never = threading.Event()

    def receive(self, timeout_s: float) -> _Held | None:
        """Return the next message, if there is one; who cannot wait for long waits for the disk."""
        if not self.waits and 0 < timeout_s < _ANSWER_S * 10:
            self._never.wait(timeout_s / 10)
        return self.waits.popleft() if self.waits else None

    def publish(self, message: Message) -> Future[None]:
        """Keep a message."""
        self.sent.append(message)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def together(self) -> AbstractContextManager[None]:
        """Do nothing."""
        return nullcontext()

    def subscribe(self, pattern: str, group: str | None = None) -> None:
        """Do nothing: what comes is said by who puts it in."""

    def close(self) -> None:
        """Do nothing."""


class Fleet:
    """The fleet's messages one after the other, its agents' answers, and what the controller said."""

    def __init__(self, folder: Path, profile: cProfile.Profile | None) -> None:
        self.took_s = 0.0
        self.told: dict[str, list[bytes]] = {}
        self._profile = profile
        self._measures = False
        self._bus, self._clock, self._topics = _Bus(), VirtualClock(1_700_000_000 * SECOND), Topics(CLUSTER)
        self._hosts = fleet(HOSTS, GUESTS, hot_guests=4)
        rules = RuleOptions(paths=[str(LIBRARY)], modes={"*": Mode.ACT})
        self.controller = assembly.controller(
            ControllerConfig(cluster=CLUSTER, state_folder=str(folder), rules=rules),
            bus=lambda _will: self._bus,
            clock=self._clock,
            signer=Signer(Ed25519PrivateKey.from_private_bytes(bytes(32))),
            folder=folder,
        )
        # What it has left to do, and how it spares garbage.
        self._upkeep, self._outbox = self.controller._upkeep, self.controller._outbox  # noqa: SLF001
        self.pauses = self.controller._pauses  # noqa: SLF001
        self.controller.start()
        for host in self._hosts:
            status = HostStatus(host=host.name, online=True, at_ns=self._clock.now_ns(), cpus=64)
            self._bus.waits.append(_Held(Message(self._topics.status(host.name), msgspec.json.encode(status))))

    def run(self, first: int, last: int) -> None:
        """Let messages come, by their numbers."""
        for number in range(first, last):
            tick, place = divmod(number, HOSTS)
            host = self._hosts[place]
            for part, payload in enumerate(host.face(tick, hot=(tick + place) % 10 < 5).at(self._clock.now_ns())):
                properties = {BOOT_PROPERTY: "bench", SEQUENCE_PROPERTY: str(tick * 10 + part + 1)}
                self._bus.waits.append(_Held(Message(self._topics.metrics(host.name), payload, properties)))
            self._clock.advance(_ANSWER_S)
            self._drain()
            self._clock.advance(_GAP_S - _ANSWER_S)

    def measure(self, first: int, last: int) -> None:
        """Do as `run` does, and count from here on."""
        self.controller.step(0)
        self._bus.sent.clear()
        self.took_s, self.told, self._measures = 0.0, {}, True
        self.run(first, last)
        self._step(0)
        self._told()

    def _drain(self) -> None:
        """Step until nothing is left to do, answering commands."""
        while True:
            self._step(0.2)
            sent = self._told()
            if not sent and not self._bus.waits and not self._upkeep.waits() and not self._outbox.waits():
                return

    def _told(self) -> list[Message]:
        sent, self._bus.sent = self._bus.sent, []
        for message in sent:
            self._hear(message)
        return sent

    def _step(self, timeout_s: float) -> None:
        profile = self._profile if self._measures else None
        begun = thread_time()
        if profile is not None:
            profile.enable()
        self.controller.step(timeout_s)
        self.pauses.tick(self._clock.monotonic_ns())
        if profile is not None:
            profile.disable()
        self.took_s += thread_time() - begun

    def _hear(self, message: Message) -> None:
        family, payload = self._topics.family_of(message.topic), message.payload
        if family == "commands":
            command = msgspec.json.decode(msgspec.json.decode(payload, type=Envelope).command, type=Command)
            payload = msgspec.json.encode(msgspec.structs.replace(command, epoch=0))
            self._obey(command)
        self.told.setdefault(family, []).append(payload)

    def _obey(self, command: Command) -> None:
        outcome = Outcome(
            id=record_id("oc", command.id, "done"), cause=command.id, command=command.id, host=command.host,
            guest=command.action.guest, result=Result.DONE, at_ns=self._clock.now_ns(), action="set cpu_shares",
            rule=command.rule,
        )  # fmt: skip
        self._bus.waits.append(_Held(Message(self._topics.outcomes(command.host), msgspec.json.encode(outcome))))

    def fill(self) -> None:
        """Give all that has been measured a past of two hours."""
        fill_windows(self.controller.rulebook.evaluator.world)


def main() -> None:
    """Measure some ticks of the fleet, after one that learns it and two that do not count."""
    ticks = int(sys.argv[1]) if len(sys.argv) > 1 else 4
    profile = cProfile.Profile(timer=thread_time) if len(sys.argv) > 2 else None
    with tempfile.TemporaryDirectory() as folder:
        load = Fleet(Path(folder), profile)
        with load.pauses.short():
            load.run(0, HOSTS)
            load.fill()
            load.run(HOSTS, 3 * HOSTS)
            load.measure(3 * HOSTS, (3 + ticks) * HOSTS)
        load.controller.close()
    digests = {name: hashlib.sha256(b"\n".join(sorted(load.told.get(name, ())))).hexdigest()[:8] for name in _TOLD}
    told = ", ".join(f"{len(load.told.get(name, ()))} {name} {digest}" for name, digest in digests.items())
    sys.stdout.write(
        f"{load.took_s * 1e3 / ticks / HOSTS:.2f} ms a message, {load.took_s / ticks / TICK_S:.3f} cores; {told}\n"
    )
    if profile is not None:
        profile.dump_stats(sys.argv[2])


if __name__ == "__main__":
    main()
