"""Where the ladders are kept: found by phase, by subject and by command, so that nobody has to look at all of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from virtpilot.rules.decisions.agenda import Key
from virtpilot.rules.decisions.ladder import Ladder, Phase
from virtpilot.tracked import Tracked


class Shelf:
    """A ladder for each rule and subject that has one."""

    def __init__(self) -> None:
        self._ladders: Tracked[Key, Ladder] = Tracked()
        self._phases: dict[Phase, dict[Key, None]] = {phase: {} for phase in Phase}
        self._subjects: dict[str, dict[Key, None]] = {}
        self._commands: dict[str, Key] = {}

    def __getitem__(self, key: Key) -> Ladder:
        return self._ladders[key]

    def get(self, key: Key) -> Ladder | None:
        """Return a ladder, None where there is none."""
        return self._ladders.get(key)

    def put(self, key: Key, ladder: Ladder) -> None:
        """Keep a ladder in place of the one before it."""
        known = self._ladders.get(key)
        if known is not None and known is not ladder:
            self._unlink(key, known)
        self._phases[ladder.phase][key] = None
        self._subjects.setdefault(key[1], {})[key] = None
        if ladder.command:
            self._commands[ladder.command] = key
        self._ladders[key] = ladder

    def drop(self, key: Key) -> None:
        """Forget a ladder."""
        self._unlink(key, self._ladders.pop(key))
        siblings = self._subjects[key[1]]
        del siblings[key]
        if not siblings:
            del self._subjects[key[1]]

    def _unlink(self, key: Key, ladder: Ladder) -> None:
        del self._phases[ladder.phase][key]
        if ladder.command:
            self._commands.pop(ladder.command, None)

    def commanded(self, command: str) -> Key | None:
        """Return whose command this is."""
        return self._commands.get(command)

    def in_phase(self, phase: Phase, about: Collection[str] | None = None) -> list[tuple[Key, Ladder]]:
        """Return the ladders in a phase, all or those of some subjects, in order."""
        keys = self._phases[phase]
        if about is not None:
            keys = {key: None for subject in about for key in self._subjects.get(subject, ()) if key in keys}
        return [(key, self._ladders[key]) for key in keys]

    def items(self) -> list[tuple[Key, Ladder]]:
        """Return all ladders."""
        return list(self._ladders.items())

    def changes(self) -> Iterator[tuple[Key, Ladder | None]]:
        """Return what has changed since the last call."""
        yield from self._ladders.changes().items()
