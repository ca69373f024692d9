"""What waits for the disk before it leaves: commands, and the acknowledgements of what they came of."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from concurrent.futures import Future

from virtpilot.actuators.command import Signer
from virtpilot.clock import SECOND
from virtpilot.model import Bus, Command, Delivery, Message
from virtpilot.pipeline.keeping import Entries, Keeper
from virtpilot.topics import Topics
from virtpilot.tracked import Tracked


class Outbox:
    """Keeps commands until the broker has them or their time is over; agents know duplicates by id."""

    def __init__(self, bus: Bus, topics: Topics, signer: Signer) -> None:
        self._bus = bus
        self._topics = topics
        self._signer = signer
        self._commands: Tracked[str, Command] = Tracked()
        self._marks: dict[str, int] = {}
        self._sending: dict[str, Future[None]] = {}
        self._unacknowledged: deque[tuple[int, Delivery]] = deque()
        self.part = Entries(self._commands, str)
        """The commands, for a restart."""

    def restore(self, commands: Mapping[str, Command]) -> None:
        """Take up commands of an earlier run."""
        self._commands.update(commands)

    def add(self, commands: Iterable[Command]) -> None:
        """Take commands that are about to be saved."""
        self._commands.update({command.id: command for command in commands})

    def acknowledge(self, delivery: Delivery, keeper: Keeper) -> None:
        """Acknowledge a message when what was saved so far is on disk."""
        mark = keeper.mark()
        if keeper.reached(mark):
            delivery.ack()
        else:
            self._unacknowledged.append((mark, delivery))

    def waits(self) -> bool:
        """Tell whether something waits for the disk."""
        return bool(self._unacknowledged) or len(self._commands) > len(self._sending)

    def send(self, keeper: Keeper, now_ns: int) -> None:
        """Let go what may leave by now."""
        if self._unacknowledged or self._commands or self._sending:
            with self._bus.together():
                self._send(keeper, now_ns)

    def _send(self, keeper: Keeper, now_ns: int) -> None:
        while self._unacknowledged and keeper.reached(self._unacknowledged[0][0]):
            self._unacknowledged.popleft()[1].ack()
        for command_id, future in list(self._sending.items()):
            if future.done():
                del self._sending[command_id]
                if future.exception() is None:
                    self._forget(command_id)
        for command in list(self._commands.values()):
            left_ns = command.not_after_ns - now_ns
            if left_ns <= 0:
                self._forget(command.id)
            elif command.id not in self._sending and self._may_leave(command, keeper) and self._bus.generation:
                payload, expiry_s = self._signer.seal(command), max(1, left_ns // SECOND)
                message = Message(self._topics.commands(command.host), payload, expiry_s=expiry_s)
                self._sending[command.id] = self._bus.publish(message)

    def _may_leave(self, command: Command, keeper: Keeper) -> bool:
        # Looked at first after the save that followed upon `add`.
        return keeper.reached(self._marks.setdefault(command.id, keeper.mark()))

    def _forget(self, command_id: str) -> None:
        self._commands.pop(command_id, None)
        self._marks.pop(command_id, None)
