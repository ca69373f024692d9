"""Why a rule fired on a host or guest, why not, and which guard stopped it: from the trail that the controller keeps.

What the trail does not have (a subject that was never near) is evaluated anew from recorded history, if there is one.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from virtpilot.errors import InputError, Problem
from virtpilot.events import Event
from virtpilot.model import Command, Decision, Mode, Outcome, Signal, SignalState, Subject
from virtpilot.pipeline import evaluations, records, settings
from virtpilot.pipeline.controller_config import ControllerConfig
from virtpilot.pipeline.evaluations import Evaluation, Held
from virtpilot.pipeline.history import Span, wanted_by
from virtpilot.pipeline.history import read as read_history
from virtpilot.pipeline.records import Entry
from virtpilot.pipeline.rehearsal import Rehearsal
from virtpilot.pipeline.rulebook import Rulebook, RuleOptions
from virtpilot.pipeline.standin import Reply
from virtpilot.pipeline.trail import number
from virtpilot.rules.language import Rule, RuleSet
from virtpilot.rules.testing.coverage import Coverage

_BEGINS: Final = frozenset({SignalState.PENDING, SignalState.FIRING})
_ON: Final = frozenset({SignalState.FIRING, SignalState.CLEARING})
_SHOWN: Final = 4
_UNKNOWN: Final = "is not known, an input is missing"
# What keeps a rule from firing: its key, how it is told, and the truth of a comparison that does.
_REASONS: Final = (
    ("where", "it does not apply: ", False, "is false"),
    ("where", "it does not apply: ", None, _UNKNOWN),
    ("when", "", False, "is false"),
    ("when", "", None, _UNKNOWN),
    ("unless", "it is held back: ", True, "is true"),
)


class Trail(msgspec.Struct):
    """What is kept of what happened: records and evaluations, oldest first."""

    entries: list[Entry]
    evaluations: list[Evaluation]


class RuleAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """One rule on the subject: its signal's state at the time and since when, why, what it saw, what came of it."""

    rule: str
    state: SignalState
    since_ns: int | None
    why: str
    guard: str
    seen: Evaluation | None
    happened: list[Entry]


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """All rules on one subject at one time, those that fire first."""

    subject: Subject
    at_ns: int
    rules: list[RuleAnswer]
    kept_ns: tuple[int, int] | None = None
    """When what is kept, of whomever, begins and ends; None for nothing."""


def ask(
    name: str, at_ns: int, *, config: Path, trail: Path | None, rules: list[Path], history: str, lookback_ns: int
) -> Answer:
    """Explain from a controller's config, or from its state folder and rule files; raises InputError."""
    cluster = ""
    options = RuleOptions(paths=list(map(str, rules)))
    if trail is None:
        loaded = settings.load(config, ControllerConfig)
        trail, cluster = Path(loaded.state_folder), loaded.cluster
        options = options if rules else loaded.rules
    # Without rules to name, those are told of that left a trace.
    ruleset = RuleSet(()) if not (rules or cluster or history) else Rulebook(options).ruleset
    kept = read_trail(trail)
    again = look_again(history, ruleset, name, at_ns, lookback_ns, cluster) if history else None
    subject = find_subject(name, at_ns, [kept] if again is None else [again, kept])
    return explain(subject, at_ns, kept, again, ruleset.rules)


def read_trail(folder: Path) -> Trail:
    """Return the trail in a controller's state folder; raises InputError where there is none."""
    path = folder / records.RECORDS
    try:
        files = [file for file in (evaluations.older(path), path) if file.exists()]
        kept = folder / evaluations.EVALUATIONS
        if not files and not kept.exists():
            raise InputError(
                [Problem(str(path), 0, 0, "there is no trail here: is this the controller's state folder?")]
            )
        return Trail([entry for file in files for entry in records.read(file)], list(evaluations.read(kept)))
    except OSError as error:
        raise InputError([Problem(str(error.filename or path), 0, 0, f"cannot be read: {error.strerror}")]) from error


def look_again(source: str, ruleset: RuleSet, name: str, at_ns: int, lookback_ns: int, cluster: str = "") -> Trail:
    """Return what the rules make of a subject when the history up to a time is played to them; they only observe."""
    wanted = wanted_by(Rulebook(RuleOptions(), ruleset).wanted)
    batches = read_history(source, wanted, Span(at_ns - lookback_ns, at_ns, cluster))
    rehearsal = Rehearsal(ruleset, batches[0].time_ns, lambda _command: Reply(), mode=Mode.OBSERVE)
    coverage = Coverage(ruleset.rules, closely=True)
    for batch in batches:
        rehearsal.run_until(batch.time_ns)
        rehearsal.measure(batch.host, batch.samples)
    rehearsal.run_until(at_ns)
    evaluator = rehearsal.controller.rulebook.evaluator
    coverage.observe(evaluator)
    signals = [entry for entry in rehearsal.controller.entries() if isinstance(entry.record, Signal)]
    found = []
    for (rule, subject_id), (*_rest, reading) in coverage.readings.items():
        row = evaluator.row(coverage.rules[rule].on, subject_id)
        if row is None or name not in {subject_id, row.subject.name}:
            continue
        pairs = zip(coverage.clauses[rule], reading.held, strict=True)
        held = [Held(clause.key, clause.condition.text, truth) for clause, truth in pairs]
        found.append(
            Evaluation(rule=rule, subject=row.subject, at_ns=reading.time_ns, values=reading.values, clauses=held)
        )
    return Trail(signals, found)


def find_subject(name: str, at_ns: int, trails: Sequence[Trail]) -> Subject:
    """Return whom a name or UUID means, as seen at a time; raises InputError where that is nobody or more than one."""
    seen: list[tuple[int, Subject]] = []
    for trail in trails:
        seen += [(each.at_ns, each.subject) for each in trail.evaluations]
        for entry in trail.entries:
            if isinstance(entry.record, Signal | Decision):
                seen.append((entry.at_ns, entry.record.subject))
    # Those seen later only tell who there is.
    known = {subject.id: subject for _at, subject in sorted(seen, key=lambda one: (one[0] <= at_ns, one[0]))}
    meant = [subject for subject in known.values() if name in {subject.id, subject.name}]
    if len(meant) == 1:
        return meant[0]
    if meant:
        listed = ", ".join(f"{one.id} on {one.host}" for one in meant)
        raise InputError([Problem(name, 0, 0, f"{len(meant)} guests bear this name, say which UUID: {listed}")])
    near = difflib.get_close_matches(name, [one.name or one.id for one in known.values()], 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise InputError([Problem(name, 0, 0, f"nothing is kept of it: no rule came near, or it is not measured{hint}")])


def explain(subject: Subject, at_ns: int, trail: Trail, again: Trail | None, rules: Sequence[Rule]) -> Answer:
    """Return what each rule made of a subject at a time; `again` is what history says, of the rules given."""
    kept = [one for one in trail.evaluations if one.subject.id == subject.id and one.at_ns <= at_ns]
    names = dict.fromkeys(rule.name for rule in rules if rule.on is subject.kind)
    for entry in trail.entries:
        if isinstance(entry.record, Signal | Decision) and entry.record.subject.id == subject.id:
            names.setdefault(entry.record.rule)
    names |= dict.fromkeys(one.rule for one in kept)
    known = {rule.name: rule for rule in rules}
    answers = [_of_rule(name, known.get(name), subject, at_ns, kept, trail, again) for name in names]
    return Answer(subject=subject, at_ns=at_ns, rules=sorted(answers, key=_rank), kept_ns=_kept([trail, again]))


def _kept(trails: Iterable[Trail | None]) -> tuple[int, int] | None:
    kept = [trail for trail in trails if trail is not None]
    times = [one.at_ns for trail in kept for one in trail.entries] + [
        one.at_ns for trail in kept for one in trail.evaluations
    ]
    return (min(times), max(times)) if times else None


def _rank(answer: RuleAnswer) -> tuple[bool, bool, int, str]:
    """Put what fires first, then what is near, then what happened last."""
    last_ns = max((entry.at_ns for entry in answer.happened), default=0)
    return (answer.state not in _ON, answer.state is SignalState.INACTIVE, -last_ns, answer.rule)


def _of_rule(
    name: str,
    rule: Rule | None,
    subject: Subject,
    at_ns: int,
    kept: Sequence[Evaluation],
    trail: Trail,
    again: Trail | None,
) -> RuleAnswer:
    happened = [entry for entry in _about(name, subject, trail.entries) if entry.at_ns <= at_ns]
    changes = [entry.record for entry in happened if isinstance(entry.record, Signal)]
    if not changes and again is not None:
        replayed = [entry for entry in _about(name, subject, again.entries) if entry.at_ns <= at_ns]
        changes = [entry.record for entry in replayed if isinstance(entry.record, Signal)]
    state = changes[-1].state if changes else SignalState.INACTIVE
    looks = [one for one in kept if one.rule == name]
    if again is not None:
        looks += [one for one in again.evaluations if one.rule == name and one.subject.id == subject.id]
    seen = max(looks, key=lambda one: one.at_ns, default=None)
    episode = _episode(happened, state)
    decisions = [entry.record for entry in episode if isinstance(entry.record, Decision)]
    guard = decisions[-1].guard if decisions and not decisions[-1].accepted else ""
    return RuleAnswer(
        rule=name,
        state=state,
        since_ns=changes[-1].at_ns if changes else None,
        why=_why(state, rule, seen, decisions, at_ns),
        guard=guard,
        seen=seen,
        happened=episode,
    )


def _about(rule: str, subject: Subject, entries: Iterable[Entry]) -> list[Entry]:
    found = []
    for entry in entries:
        match entry.record:
            case Signal() | Decision():
                own = entry.record.subject.id == subject.id
            case Command():
                own = entry.record.action.guest == subject.id
            case Outcome():
                own = entry.record.guest == subject.id
            case Event():
                continue
        if own and entry.record.rule == rule:
            found.append(entry)
    return found


def _episode(happened: Sequence[Entry], state: SignalState) -> list[Entry]:
    """Return what happened since the signal last began to be raised; of one that has ended its last episode."""
    begun = 0
    for place, entry in enumerate(happened):
        record = entry.record
        if isinstance(record, Signal) and record.state in _BEGINS and record.previous is SignalState.INACTIVE:
            begun = place
    return list(happened[begun:]) if happened or state is not SignalState.INACTIVE else []


def _why(
    state: SignalState, rule: Rule | None, seen: Evaluation | None, decisions: Sequence[Decision], at_ns: int
) -> str:
    match state:
        case SignalState.FIRING | SignalState.CLEARING:
            held = (
                "its condition held long enough"
                if state is SignalState.FIRING
                else "what clears it holds, not yet long enough"
            )
            if not decisions:
                return f"{held}; no remedy was wanted"
            last = decisions[-1]
            verdict = "a remedy was accepted" if last.accepted else f"stopped by the guard {last.guard}"
            return f"{held}; {verdict}: {last.reason}"
        case SignalState.PENDING:
            needed = f", {rule.for_ns / 1e9:g} s are needed" if rule is not None else ""
            return f"its condition holds, not yet long enough{needed}"
        case SignalState.INACTIVE:
            return _rests(rule) if rule is not None and not rule.in_time(at_ns) else _why_not(seen)


def _rests(rule: Rule) -> str:
    times = [
        f"{word} {one.text}" for word, own in (("during", rule.during), ("not during", rule.not_during)) for one in own
    ]
    return f"it rests at this time: {'; '.join(times)}"


def _why_not(seen: Evaluation | None) -> str:
    if seen is None:
        return "no comparison of its condition has held: nothing is kept (a history would tell)"
    for key, told, truth, word in _REASONS:
        failed = [_with_values(one, seen) for one in seen.clauses if one.key == key and one.held is truth]
        if failed:
            return told + "; ".join(f"{each} {word}" for each in failed[:_SHOWN])
    return "its comparisons hold or not as told below"


def _with_values(clause: Held, seen: Evaluation) -> str:
    """Return a comparison with what it read."""
    read = [f"{name} {number(name, value)}" for name, value in seen.values.items() if _stands_in(name, clause.text)]
    return f"`{clause.text}`" + (f" ({', '.join(read)})" if read else "")


def _stands_in(name: str, text: str) -> bool:
    """Tell whether a name stands in a comparison: `cpu_usage_ratio` does not where `host.cpu_usage_ratio` does."""
    return re.search(rf"(?<![\w.]){re.escape(name)}(?![\w.])", text) is not None


def document(answer: Answer) -> dict[str, Any]:
    """Return an answer as one JSON-able document."""
    found: dict[str, Any] = msgspec.to_builtins(answer)
    return found
