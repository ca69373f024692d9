"""The matcher on durable-rules 2.0.28, kept to the subset of it that was found to be safe (design note 0002)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from virtpilot.rules.decisions.matcher import Consequence, Fact, Production, Schema, conclude
from virtpilot.rules.decisions.pending import Pending
from virtpilot.rules.decisions.shard import STATE_ID, Engine, Match, Shard, load_engine, pack

REFRESH_AFTER_MATCHES: Final = 256

_FNV_BASIS: Final = 0x811C9DC5
_FNV_PRIME: Final = 16777619


class _Live(msgspec.Struct):
    """A fact that holds: its number, the shards that keep it, the matches it took part in since it was asserted."""

    number: int
    shards: list[Shard]
    matches: int = 0


class Sequence32:
    """Numbers for facts: always rising, and no two in use have one 32-bit hash.

    The engine finds a fact by the FNV-1a hash of its id alone and takes a second one with that hash for a repetition.
    """

    def __init__(self) -> None:
        self._last = 0
        self._hashes = {fnv1a(STATE_ID)}

    def take(self) -> int:
        """Return the next number whose hash is free."""
        self._last += 1
        while fnv1a(str(self._last)) in self._hashes:
            self._last += 1
        self._hashes.add(fnv1a(str(self._last)))
        return self._last

    def give(self, number: int) -> None:
        """Free a number's hash."""
        self._hashes.discard(fnv1a(str(number)))


class DurableMatcher:
    """Facts go to the rulesets that know their kind; matches come back as numbers of facts.

    Raises ImportError at construction where durable-rules cannot be imported, and MatcherFault when it fails later. A
    ruleset can never be removed from the engine, so those of earlier loads are kept empty and used again when the same
    productions come back.
    """

    def __init__(self, engine: Engine | None = None) -> None:
        self._engine = engine or load_engine()
        self._numbers = Sequence32()
        self._built: dict[tuple[Production, ...], Shard] = {}
        self._shards: list[tuple[int, Shard]] = []
        self._schema = Schema(())
        self._facts: dict[Fact, _Live] = {}
        self._tired: set[Fact] = set()
        self._by_number: dict[int, Fact] = {}
        self._pending = Pending()

    @property
    def name(self) -> str:
        """Which matcher this is."""
        return "durable"

    def load(self, productions: Sequence[Production]) -> None:
        """Replace the productions; all facts and consequences are forgotten."""
        self._schema = Schema(productions)
        for fact in list(self._facts):
            self.retract_fact(fact)
        self._pending.clear()
        self._shards = []
        start = 0
        for part in pack(productions):
            if part not in self._built:
                name = f"decisions-{len(self._built)}"
                self._built[part] = Shard(self._engine, name, part, self._numbers)
            self._shards.append((start, self._built[part]))
            start += len(part)

    def assert_fact(self, fact: Fact) -> None:
        """Say that something holds."""
        if fact not in self._facts:
            self._schema.check(fact)
            for consequence in self._enter(fact):
                self._pending.add(consequence)
            self._refresh()

    def retract_fact(self, fact: Fact) -> None:
        """Say that it holds no longer."""
        if fact in self._facts:
            self._leave(fact)
            self._pending.drop(fact)

    def consequences(self) -> list[Consequence]:
        """Return what has become true since the last call and still is, sorted."""
        return self._pending.drain()

    def _enter(self, fact: Fact) -> list[Consequence]:
        live = _Live(self._numbers.take(), [])
        self._facts[fact] = live
        self._by_number[live.number] = fact
        concluded = []
        for start, shard in self._shards:
            matches = shard.assert_fact(live.number, fact) if fact.kind in shard.kinds else None
            if matches is not None:
                live.shards.append(shard)
                concluded += [self._conclude(start, shard, match) for match in matches]
        return concluded

    def _conclude(self, start: int, shard: Shard, match: Match) -> Consequence:
        facts = tuple(self._by_number[number] for number in match.numbers)
        for known in facts:
            self._facts[known].matches += 1
            if self._facts[known].matches > REFRESH_AFTER_MATCHES:
                self._tired.add(known)
        return conclude(shard.productions[match.place], start + match.place, facts)

    def _leave(self, fact: Fact) -> None:
        live = self._facts.pop(fact)
        self._tired.discard(fact)
        for shard in live.shards:
            shard.retract_fact(live.number)
        del self._by_number[live.number]
        self._numbers.give(live.number)

    def _refresh(self) -> None:
        """Assert those facts anew that took part in many matches: the engine's notes on each are freed only so."""
        while self._tired:
            fact = self._tired.pop()
            self._leave(fact)
            self._enter(fact)  # what follows from it was told already
            # it may have more partners than that, and must not go round for ever
            self._tired.discard(fact)


def fnv1a(text: str) -> int:
    """Return the 32-bit FNV-1a hash by which the engine looks facts up."""
    digest = _FNV_BASIS
    for byte in text.encode():
        digest = ((digest ^ byte) * _FNV_PRIME) & 0xFFFFFFFF
    return digest
