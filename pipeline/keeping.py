"""What a restart must not lose, kept on disk: whole now and then, by its changes whenever something is to leave."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, Generic, Protocol, TypeVar

import msgspec
import structlog

from virtpilot.clock import Clock
from virtpilot.errors import StateError
from virtpilot.pipeline.state import Change, StateLog
from virtpilot.tracked import Tracked

log = structlog.get_logger(__name__)

K = TypeVar("K")
V = TypeVar("V")


class Part(Protocol):
    """Something with a state of its own."""

    def saved(self) -> object:
        """Return the whole state, as msgspec writes it; `changes` counts from here."""

    def changes(self) -> Iterable[Change]:
        """Return what has changed since the last call, by its place in the state."""


class Large:
    """A large part, made as JSON text piece by piece; its changes between whole saves are lost, or another part's."""

    def __init__(self, fragments: Callable[[], Iterator[bytes]]) -> None:
        self.fragments = fragments

    def saved(self) -> object:
        """Return the text."""
        return msgspec.Raw(b"".join(self.fragments()))

    def changes(self) -> tuple[()]:
        """Return nothing."""
        return ()


class Entries(Generic[K, V]):
    """A mapping as a part: its changed entries are saved, by their text."""

    def __init__(self, items: Tracked[K, V], text: Callable[[K], str]) -> None:
        self._items = items
        self._text = text

    def saved(self) -> object:
        """Return all entries."""
        self._items.changes()
        return {self._text(key): value for key, value in self._items.items()}

    def changes(self) -> Iterator[Change]:
        """Return the entries that have changed."""
        for key, value in self._items.changes().items():
            yield (self._text(key),), value


class Recent(Generic[V]):
    """A part that holds only what came after the last whole save, the newest of each key: the whole has it too."""

    def __init__(self) -> None:
        self._items: Tracked[str, V] = Tracked()

    def add(self, key: str, value: V) -> None:
        """Note something that came."""
        self._items[key] = value

    def saved(self) -> object:
        """Begin anew."""
        self._items = Tracked()
        return {}

    def changes(self) -> Iterator[Change]:
        """Return what came since the last call."""
        for key, value in self._items.changes().items():
            yield (key,), value


class Small(Generic[V]):
    """A small state as a part: saved whole when it has changed."""

    def __init__(self, snapshot: Callable[[], V]) -> None:
        self._snapshot = snapshot
        self._known = b""

    def saved(self) -> object:
        """Return the state."""
        state = self._snapshot()
        self._known = msgspec.json.encode(state)
        return state

    def changes(self) -> Iterator[Change]:
        """Return the state where it is another one."""
        known = self._known
        state = self.saved()
        if self._known != known:
            yield (), state


class Keeper:
    """Saves the parts. What is saved survives a crash of this process at once, and of the machine a little later.

    Without a file nothing is kept, and everything may leave.
    """

    def __init__(self, file: StateLog | None, parts: Mapping[str, Part], clock: Clock, every_ns: int) -> None:
        self.failures = 0
        self._file = file
        self._parts: Final = parts
        self._clock = clock
        self._every_ns = every_ns
        self._due_ns: int | None = None
        self._safe = True
        self._making: Iterator[tuple[str, bytes]] | None = None
        self._made: list[tuple[str, bytes]] = []

    def save_all_soon(self) -> None:
        """Let the next save be a whole one: more has changed than parts tell."""
        self._due_ns = None

    def tick(self) -> None:
        """Save; where the whole is due, begin to make it."""
        if self._file is None:
            return
        self.save()
        if self._making is None and self._due_ns is not None and self._clock.monotonic_ns() >= self._due_ns:
            self._do(self._begin)

    def save(self) -> None:
        """Save what has changed."""
        if self._file is None:
            return
        if self._due_ns is None:
            self._do(self._replace)
            return
        changes = [((name, *place), value) for name, part in self._parts.items() for place, value in part.changes()]
        if changes:
            self._do(lambda file: file.commit(changes))

    def pieces(self) -> Iterator[None]:
        """Make the whole that was begun, a piece at each step, so that nothing waits for all of it."""
        while self._making is not None:
            self.work()
            yield

    def work(self) -> None:
        """Make the next piece of the whole, where one is being made."""
        if self._making is None:
            return
        # What a piece takes up is told by no part again: it must be in the journal until the whole is in place.
        self.save()
        piece = next(self._making, None) if self._making is not None else None
        if piece is not None:
            self._made.append(piece)
        elif self._making is not None:
            made, self._making, self._made = _by_part(self._made), None, []
            self._do(lambda file: file.finish(made))

    def _begin(self, file: StateLog) -> None:
        if file.begin():
            self._making, self._made = self._parts_made(), []
            self._due_ns = self._clock.monotonic_ns() + self._every_ns

    def _replace(self, file: StateLog) -> None:
        self._making = None
        file.replace(lambda: _by_part(self._parts_made()))
        self._due_ns = self._clock.monotonic_ns() + self._every_ns

    def _parts_made(self) -> Iterator[tuple[str, bytes]]:
        """Yield the parts as JSON; of a large one, piece by piece."""
        for name, part in self._parts.items():
            if isinstance(part, Large):
                yield from ((name, fragment) for fragment in part.fragments())
            else:
                yield name, msgspec.json.encode(part.saved())

    def mark(self) -> int:
        """Return a number for all that was saved so far, for `reached`."""
        return self._file.written if self._file is not None else 0

    def reached(self, mark: int) -> bool:
        """Tell whether all that was saved by then is on disk for certain, so that what follows from it may leave."""
        return self._file is None or (self._safe and self._file.synced >= mark)

    def settle(self) -> None:
        """Finish what is being made, and wait for the disk."""
        while self._making is not None:
            self.work()
        if self._file is not None and not self.reached(self.mark()):
            self._file.settle()

    def _do(self, act: Callable[[StateLog], None]) -> None:
        if self._file is None:
            return
        try:
            act(self._file)
            self._safe = True
        except StateError as error:
            # What the parts gave is not on disk and will not be given again: only the whole can mend that.
            self._due_ns, self._safe, self._making = None, False, None
            self.failures += 1
            log.error("state not saved", error=str(error))

    def close(self) -> None:
        """Save the whole and let go."""
        self._due_ns = None
        self.save()
        if self._file is not None:
            self._file.close()


def _by_part(texts: Iterable[tuple[str, bytes]]) -> dict[str, list[bytes]]:
    found: dict[str, list[bytes]] = {}
    for name, text in texts:
        found.setdefault(name, []).append(text)
    return found
