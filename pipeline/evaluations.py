"""The evaluations that mattered, kept: what a rule saw of a subject, comparison by comparison, and what it made of it.

Kept are those at which a signal changed its state, and of the others those of subjects for which a comparison of `when`
holds, each time another one begins or ceases to: the near misses that answer why a rule did not fire.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, Protocol

import msgspec
import numpy as np
import structlog

from virtpilot.clock import SECOND
from virtpilot.model import Signal, SignalState, Subject
from virtpilot.rules.language.clauses import parts
from virtpilot.rules.language.expression import Condition, Masks
from virtpilot.rules.language.records import Rule, RuleSet
from virtpilot.rules.signals.evaluator import Evaluator

log = structlog.get_logger(__name__)

EVALUATIONS: Final = "evaluations.jsonl"
MAX_FILE_BYTES: Final = 32 * 1024 * 1024
MAX_A_LOOK: Final = 200
MAX_VALUES: Final = 32
# All rules are looked at once in so long, some of them at each tick.
ROUND_S: Final = 30.0
_TRUE, _FALSE = 1, 2


class Held(msgspec.Struct, frozen=True):
    """A comparison of a rule's key (`where`, `when`, `clear`), and whether it held; None: an input was missing."""

    key: str
    text: str
    held: bool | None


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """What a rule saw of a subject at a time; where this changed its signal, the new state and the signal's id."""

    rule: str
    subject: Subject
    at_ns: int
    state: SignalState | None = None
    signal: str = ""
    values: dict[str, float] = {}
    clauses: list[Held] = []


class EvaluationLog:
    """Appends to a file, which is begun anew when it is full; the one before is kept beside it. None keeps nothing."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def add(self, evaluations: Iterable[Evaluation]) -> None:
        """Append; a full disk loses lines of this log, and says so, nothing else."""
        lines = b"".join(msgspec.json.encode(each) + b"\n" for each in evaluations)
        if self._path is None or not lines:
            return
        try:
            if self._path.exists() and self._path.stat().st_size > MAX_FILE_BYTES:
                self._path.replace(older(self._path))
            with self._path.open("ab") as file:
                file.write(lines)
        except OSError as error:
            log.error("evaluation log cannot be written", path=str(self._path), error=str(error))


def older(path: Path) -> Path:
    """Return where the lines before those of a log file are."""
    return path.with_suffix(path.suffix + ".1")


def read(path: Path) -> Iterator[Evaluation]:
    """Yield the evaluations of a log, oldest first; a torn or foreign line is left out and said."""
    for file in (older(path), path):
        if not file.exists():
            continue
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    yield msgspec.json.decode(line, type=Evaluation)
                except (msgspec.DecodeError, UnicodeDecodeError) as error:
                    log.warning("evaluation log: line left out", path=str(file), line=number, error=str(error))


class Rules(Protocol):
    """The rules in force with their evaluator: both change when the rules are loaded anew."""

    ruleset: RuleSet
    evaluator: Evaluator


class Tracer:
    """Watches the evaluator; what it remembers is the last answer for each near miss alone."""

    def __init__(self, rules: Rules, evaluations: EvaluationLog) -> None:
        self._rules = rules
        self._log = evaluations
        self._ruleset: RuleSet | None = None
        self._parts: dict[str, list[tuple[str, Condition]]] = {}
        self._near: dict[str, dict[str, bytes]] = {}
        self._next = 0
        self._looked_ns = 0
        self.left_out = 0

    def signals(self, signals: Iterable[Signal]) -> None:
        """Keep what changed the state of signals just now."""
        self._take_rules()
        self._log.add(
            self._evaluation(signal.rule, signal.subject, signal.at_ns, signal)
            for signal in signals
            if signal.rule in self._parts
        )

    def tick(self, now_ns: int) -> None:
        """Look at some rules for near misses, so that each has its turn."""
        self._take_rules()
        rules = self._rules.ruleset.rules
        if not rules:
            return
        share = (now_ns - self._looked_ns) / SECOND / ROUND_S if self._looked_ns else 1.0
        self._looked_ns = now_ns
        turns = min(int(len(rules) * max(share, 0.0)) + 1, len(rules))
        room = MAX_A_LOOK
        for _ in range(turns):
            self._next = (self._next + 1) % len(rules)
            room = self._look(rules[self._next], now_ns, room)

    def _take_rules(self) -> None:
        if self._ruleset is not self._rules.ruleset:
            self._ruleset = self._rules.ruleset
            self._parts = {rule.name: list(parts(rule)) for rule in self._ruleset.rules}
            self._near = {name: near for name, near in self._near.items() if name in self._parts}

    def _look(self, rule: Rule, now_ns: int, room: int) -> int:
        """Keep the subjects for which a comparison has begun or ceased to hold; return what room is left."""
        own = self._parts[rule.name]
        ids, found = self._rules.evaluator.truths(rule.on, [condition for _key, condition in own])
        codes = np.array([_coded(masks) for masks in found]).T if ids else np.zeros((0, len(own)), np.uint8)
        when = [place for place, (key, _condition) in enumerate(own) if key == "when"]
        near = {ids[at]: codes[at].tobytes() for at in np.flatnonzero((codes[:, when] == _TRUE).any(axis=1))}
        known = self._near.get(rule.name, {})
        changed = [one for one in {**known, **near} if known.get(one) != near.get(one)]
        self.left_out += max(len(changed) - room, 0)
        self._log.add(each for one in changed[:room] if (each := self._near_miss(rule, one, now_ns)) is not None)
        self._near[rule.name] = near
        return max(room - len(changed), 0)

    def _near_miss(self, rule: Rule, subject_id: str, now_ns: int) -> Evaluation | None:
        row = self._rules.evaluator.row(rule.on, subject_id)
        if row is None:
            return None
        return self._evaluation(rule.name, row.subject, min(row.time_ns, now_ns))

    def _evaluation(self, rule: str, subject: Subject, at_ns: int, signal: Signal | None = None) -> Evaluation:
        evaluator = self._rules.evaluator
        values: dict[str, float] = {}
        held = []
        for key, condition in self._parts[rule]:
            held.append(Held(key, condition.text, evaluator.holds(condition, subject.id, -1)))
            values |= evaluator.inputs(condition, subject.id)
        return Evaluation(
            rule=rule,
            subject=subject,
            at_ns=at_ns,
            state=None if signal is None else signal.state,
            signal="" if signal is None else signal.id,
            values=dict(list(values.items())[:MAX_VALUES]),
            clauses=held,
        )


def _coded(masks: Masks) -> np.ndarray:
    true, false = masks
    return np.where(true, _TRUE, np.where(false, _FALSE, 0)).astype(np.uint8)
