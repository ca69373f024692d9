"""The evaluations that mattered, kept: what a rule saw of a subject, comparison by comparison, and what it made of it.

Kept are those at which a signal changed its state, and of the others those of subjects for which a comparison of `when`
holds, each time another one begins or ceases to: the near misses that answer why a rule did not fire.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from itertools import islice, zip_longest
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
from virtpilot.rules.signals.sure import told
from virtpilot.rules.signals.table import Table

log = structlog.get_logger(__name__)

EVALUATIONS: Final = "evaluations.jsonl"
MAX_FILE_BYTES: Final = 32 * 1024 * 1024
MAX_A_LOOK: Final = 200
MAX_VALUES: Final = 32
MAX_CLOSELY: Final = 64
# All rules are looked at once in so long, some of them at each tick.
ROUND_S: Final = 30.0
_AT_ONCE: Final = 2500
_RULES_AT_ONCE: Final = 3
_TRUE, _FALSE = 1, 2
_TRUTH: Final = (None, True, False)
_NOBODY: Final = np.zeros(0, np.int64)
_NOTHING: Final = np.zeros(0, np.uint64)


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
        self._near = {kind: _Near() for kind in Kind}
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
        world, own = self._rules.evaluator.world, self._parts[rule]
        # Of those that have gone there is nothing left to see.
        row_of = world.tables[kind].row_of
        there = [(signal, row) for signal in signals if (row := row_of.get(signal.subject.id)) is not None]
        rows = np.array([row for _signal, row in there], np.int64)
        columns = world.columns(kind, rows)
        with np.errstate(all="ignore"):
            truths = _truths([masks(condition, columns, len(rows)) for _key, condition in own])
        # In a storm of signals, what the condition read must do.
        read = self._values(rule, columns, len(rows)) if len(rows) <= MAX_CLOSELY else [one.inputs for one, _ in there]
        for (signal, _row), codes, values in zip(there, truths.T.tolist(), read, strict=True):
            yield Evaluation(
                rule=rule,
                subject=signal.subject,
                at_ns=signal.at_ns,
                state=signal.state,
                signal=signal.id,
                values=values,
                clauses=_held(own, codes),
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
            about = [rule for rule in turn if rule.on is kind]
            every = world.tables[kind].taken() if about else _NOBODY
            for place in range(0, len(about), _RULES_AT_ONCE):
                for first in range(0, len(every), _AT_ONCE):
                    rows = every[first : first + _AT_ONCE]
                    self._look_at(kind, about[place : place + _RULES_AT_ONCE], rows, now_ns)
                    yield

    def _look_at(self, kind: Kind, rules: list[Rule], rows: NDArray[np.int64], now_ns: int) -> None:
        """Look at some subjects; those that have gone since the look began are nobody's any more."""
        world = self._rules.evaluator.world
        rows = rows[world.tables[kind].used[rows]]
        self._near[kind].follow(world.tables[kind])
        columns = world.columns(kind, rows)
        self._log.add(one for rule in rules for one in self._near_misses(rule, columns, rows, now_ns))

    def _near_misses(
        self, rule: Rule, columns: RowColumns, rows: NDArray[np.int64], now_ns: int
    ) -> Iterator[Evaluation]:
        """Yield the subjects for which a comparison of `when` has begun or ceased to hold, while there is room.

        What is dear is worked out only where one may hold, or did.
        """
        known = self._near[rule.on].codes(rule.name)
        with np.errstate(all="ignore"):
            may = known[columns.where] != 0
            for scout in self._scouts[rule.name]:
                may = may | scout(columns)
            places = np.flatnonzero(may)
            if not len(places):
                return  # as it is nearly everywhere
            own, some = self._parts[rule.name], columns if len(places) == len(rows) else columns.only(places)
            world = self._rules.evaluator.world
            found = [told(world, condition, some, len(places)) for _key, condition in own]
        holds = np.logical_or.reduce([true for (key, _), (true, _) in zip(own, found, strict=True) if key == "when"])
        truths, those = _truths(found), rows[places]
        codes = np.where(holds, _in_one(truths), 0)
        changed = np.flatnonzero(codes != known[those])
        known[those] = codes
        # Who ceased comes behind.
        changed = np.concatenate([changed[holds[changed]], changed[~holds[changed]]])
        self.left_out += max(len(changed) - self._room, 0)
        changed, self._room = changed[: self._room], max(self._room - len(changed), 0)
        if len(changed):
            yield from self._told(rule, those[changed], truths[:, changed], now_ns)

    def _told(
        self, rule: Rule, rows: NDArray[np.int64], truths: NDArray[np.uint8], now_ns: int
    ) -> Iterator[Evaluation]:
        table, own = self._rules.evaluator.world.tables[rule.on], self._parts[rule.name]
        read = self._values(rule.name, self._rules.evaluator.world.columns(rule.on, rows), len(rows))
        times = np.minimum(table.time[rows], now_ns)
        for row, at_ns, codes, values in zip(rows.tolist(), times.tolist(), truths.T.tolist(), read, strict=True):
            if (subject := table.subjects[row]) is not None:
                yield Evaluation(rule=rule.name, subject=subject, at_ns=at_ns, values=values, clauses=_held(own, codes))

    def _take_rules(self) -> None:
        if self._ruleset is not self._rules.ruleset:
            self._ruleset = self._rules.ruleset
            self._parts = {rule.name: list(parts(rule)) for rule in self._ruleset.rules}
            self._scouts = {
                name: [scout_of(condition.part) for key, condition in own if key == "when"]
                for name, own in self._parts.items()
            }
            for near in self._near.values():
                near.keep(self._parts)

    def _values(self, rule: str, columns: RowColumns, count: int) -> list[dict[str, float]]:
        """Return for each subject what the conditions read."""
        world = self._rules.evaluator.world
        found = inputs(world, columns, [condition for _key, condition in self._parts[rule]], count)
        return [dict(islice(own.items(), MAX_VALUES)) for own in found]


class _Near:
    """What was last seen of the near misses of one kind: of each rule a number a row, 0 where there was none."""

    def __init__(self) -> None:
        self._codes: dict[str, NDArray[np.uint64]] = {}
        self._table: Table | None = None
        self._changes = 0
        self._owners: list[str] = []

    def codes(self, rule: str) -> NDArray[np.uint64]:
        """Return what was last seen of a rule, to be changed; `follow` comes before."""
        codes = self._codes.get(rule, _NOTHING)
        room = self._table.capacity if self._table is not None else 0
        if len(codes) < room:
            codes = self._codes[rule] = np.concatenate([codes, np.zeros(room - len(codes), np.uint64)])
        return codes

    def follow(self, table: Table) -> None:
        """Forget what was seen of rows that are another's by now, or nobody's."""
        if table is self._table and table.changes == self._changes:
            return
        owners = ["" if subject is None else subject.id for subject in table.subjects]
        pairs = zip_longest(self._owners, owners)
        other = np.array([row for row, (old, new) in enumerate(pairs) if old != new], np.int64)
        for codes in self._codes.values():
            codes[other[other < len(codes)]] = 0
        self._table, self._changes, self._owners = table, table.changes, owners

    def keep(self, rules: Container[str]) -> None:
        """Forget the rules that are no more."""
        self._codes = {rule: codes for rule, codes in self._codes.items() if rule in rules}


def _held(own: list[tuple[str, Condition]], codes: list[int]) -> list[Held]:
    return [Held(key, condition.text, _TRUTH[code]) for (key, condition), code in zip(own, codes, strict=True)]


def _truths(found: list[Masks]) -> NDArray[np.uint8]:
    """Return what is told of each comparison (a row) and subject."""
    return np.array([np.where(true, _TRUE, np.where(false, _FALSE, 0)) for true, false in found], np.uint8)


def _in_one(truths: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Return a number for all that is told of each subject: of up to 39 comparisons its own."""
    number = np.ones(truths.shape[1], np.uint64)
    for codes in truths:
        number = number * len(_TRUTH) + codes
    return number
