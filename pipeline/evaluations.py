"""The evaluations that mattered, kept: what a rule saw of a subject, comparison by comparison, and what it made of it.

Kept are those at which a signal changed its state, and of the others those of subjects for which a comparison of `when`
holds, each time another one begins or ceases to: the near misses that answer why a rule did not fire.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Final, Protocol

import msgspec
import numpy as np
import structlog
from numpy.typing import NDArray

from virtpilot.clock import SECOND
from virtpilot.model import Kind, Signal, SignalState, Subject
from virtpilot.rules.language.clauses import parts
from virtpilot.rules.language.expression import Condition, Masks
from virtpilot.rules.language.records import Rule, RuleSet
from virtpilot.rules.signals.columns import RowColumns, masks
from virtpilot.rules.signals.evaluator import Evaluator
from virtpilot.rules.signals.reading import inputs
from virtpilot.rules.signals.scout import Scout, scout_of

log = structlog.get_logger(__name__)

EVALUATIONS: Final = "evaluations.jsonl"
MAX_FILE_BYTES: Final = 32 * 1024 * 1024
MAX_A_LOOK: Final = 200
MAX_VALUES: Final = 32
MAX_CLOSELY: Final = 64
# All rules are looked at once in so long, some of them at each tick.
ROUND_S: Final = 30.0
_AT_ONCE: Final = 500
_TRUE, _FALSE = 1, 2
_TRUTH: Final = (None, True, False)


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

    @property
    def keeps(self) -> bool:
        """Tell whether what is added is kept."""
        return self._path is not None

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
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
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
        self._scouts: dict[str, list[Scout]] = {}
        self._near: dict[str, dict[str, bytes]] = {}
        self._next = 0
        self._looked_ns = 0
        self._room = 0
        self.left_out = 0

    def signals(self, signals: Iterable[Signal]) -> None:
        """Keep what changed the state of signals just now."""
        if not self._log.keeps:
            return
        self._take_rules()
        by_rule: dict[str, list[Signal]] = {}
        for signal in signals:
            by_rule.setdefault(signal.rule, []).append(signal)
        self._log.add(
            change for rule, own in by_rule.items() if rule in self._parts for change in self._changes(rule, own)
        )

    def _changes(self, rule: str, signals: list[Signal]) -> Iterator[Evaluation]:
        kind = signals[0].subject.kind
        # Of those that have gone there is nothing left to see.
        own = [signal for signal in signals if self._rules.evaluator.knows(kind, signal.subject.id)]
        ids = [one.subject.id for one in own]
        # In a storm of signals, what the condition read must do.
        read = self._values(rule, kind, ids) if len(own) <= MAX_CLOSELY else [one.inputs for one in own]
        for signal, held, values in zip(own, self._held(rule, kind, ids), read, strict=True):
            yield Evaluation(
                rule=rule,
                subject=signal.subject,
                at_ns=signal.at_ns,
                state=signal.state,
                signal=signal.id,
                values=values,
                clauses=held,
            )

    def look(self, now_ns: int) -> Iterator[None]:
        """Look at some rules for near misses, so that each has its turn; at some of their subjects at each step."""
        rules = self._rules.ruleset.rules
        if not rules or not self._log.keeps:
            return
        self._take_rules()
        share = (now_ns - self._looked_ns) / SECOND / ROUND_S if self._looked_ns else 1.0
        self._looked_ns = now_ns
        turns = min(int(len(rules) * max(share, 0.0)) + 1, len(rules))
        turn = [rules[(self._next + step) % len(rules)] for step in range(turns)]
        self._next = (self._next + turns) % len(rules)
        self._room = MAX_A_LOOK
        world = self._rules.evaluator.world
        for kind in Kind:
            own = [rule for rule in turn if rule.on is kind]
            every = world.tables[kind].taken() if own else np.zeros(0, np.int64)
            for first in range(0, len(every), _AT_ONCE):
                self._look_at(kind, own, every[first : first + _AT_ONCE], now_ns)
                yield
            self._forget(own, self._rules.evaluator)

    def _look_at(self, kind: Kind, rules: list[Rule], rows: NDArray[np.int64], now_ns: int) -> None:
        """Look at some subjects; those that have gone since the look began are nobody's any more."""
        world = self._rules.evaluator.world
        table = world.tables[kind]
        rows = rows[table.used[rows]]
        ids = [subject.id for row in rows.tolist() if (subject := table.subjects[row]) is not None]
        columns = world.columns(kind, rows)
        for rule in rules:
            with np.errstate(all="ignore"):
                near = self._near_by(rule, columns, ids)
            self._compare(rule, ids, near, now_ns)

    def _near_by(self, rule: Rule, columns: RowColumns, ids: list[str]) -> dict[str, bytes]:
        """Return the subjects for which a comparison of `when` holds, each with what is said of all comparisons.

        What is dear is worked out only where one may hold.
        """
        may = np.zeros(1, np.bool_)
        for scout in self._scouts[rule.name]:
            may = may | scout(columns)
        places = np.flatnonzero(np.broadcast_to(may, len(ids)))
        if not len(places):
            return {}  # as it is nearly everywhere
        some = columns if len(places) == len(ids) else columns.only(places)
        own = self._parts[rule.name]
        found = [masks(condition, some, len(places)) for _key, condition in own]
        holds = np.logical_or.reduce([true for (key, _), (true, _) in zip(own, found, strict=True) if key == "when"])
        codes = np.array([_coded(both) for both in found]).T
        return {ids[places[at]]: codes[at].tobytes() for at in np.flatnonzero(holds).tolist()}

    def _forget(self, rules: list[Rule], evaluator: Evaluator) -> None:
        """Forget the near misses of subjects that have gone."""
        for rule in rules:
            near = self._near.get(rule.name, {})
            self._near[rule.name] = {one: codes for one, codes in near.items() if evaluator.knows(rule.on, one)}

    def _take_rules(self) -> None:
        if self._ruleset is not self._rules.ruleset:
            self._ruleset = self._rules.ruleset
            self._parts = {rule.name: list(parts(rule)) for rule in self._ruleset.rules}
            self._scouts = {
                name: [scout_of(condition.part) for key, condition in own if key == "when"]
                for name, own in self._parts.items()
            }
            self._near = {name: near for name, near in self._near.items() if name in self._parts}

    def _compare(self, rule: Rule, ids: list[str], near: dict[str, bytes], now_ns: int) -> None:
        """Keep the subjects for which a comparison has begun or ceased to hold, while there is room."""
        known = self._near.setdefault(rule.name, {})
        changed = [one for one, codes in near.items() if known.get(one) != codes]
        if known:
            changed += [one for one in ids if one in known and one not in near]
        self.left_out += max(len(changed) - self._room, 0)
        self._log.add(self._near_misses(rule, changed[: self._room], now_ns))
        self._room = max(self._room - len(changed), 0)
        for one in changed:
            if one in near:
                known[one] = near[one]
            else:
                del known[one]

    def _near_misses(self, rule: Rule, ids: list[str], now_ns: int) -> Iterator[Evaluation]:
        rows = {one: row for one in ids if (row := self._rules.evaluator.row(rule.on, one)) is not None}
        held, read = self._held(rule.name, rule.on, list(rows)), self._values(rule.name, rule.on, list(rows))
        for row, own, values in zip(rows.values(), held, read, strict=True):
            yield Evaluation(
                rule=rule.name, subject=row.subject, at_ns=min(row.time_ns, now_ns), values=values, clauses=own
            )

    def _held(self, rule: str, kind: Kind, ids: list[str]) -> list[list[Held]]:
        """Return for each subject which comparisons hold."""
        own = self._parts[rule]
        found = self._rules.evaluator.truths(kind, [condition for _key, condition in own], ids)
        truths = [[_TRUTH[code] for code in _coded(masks).tolist()] for masks in found]
        return [
            [Held(key, condition.text, truths[place][at]) for place, (key, condition) in enumerate(own)]
            for at in range(len(ids))
        ]

    def _values(self, rule: str, kind: Kind, ids: list[str]) -> list[dict[str, float]]:
        """Return for each subject what the conditions read."""
        world = self._rules.evaluator.world
        rows = np.array([world.tables[kind].row_of[one] for one in ids], np.int64)
        found = inputs(world, [condition for _key, condition in self._parts[rule]], rows)
        return [dict(islice(own.items(), MAX_VALUES)) for own in found]


def _coded(masks: Masks) -> np.ndarray:
    true, false = masks
    return np.where(true, _TRUE, np.where(false, _FALSE, 0)).astype(np.uint8)
