"""Replay: what a rule set would have done over recorded history, its actions included; two rule sets side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from virtpilot.action import Migrate
from virtpilot.clock import SECOND, seconds
from virtpilot.events import Event
from virtpilot.model import Command, Decision, Kind, Mode, Outcome, Signal, SignalState
from virtpilot.pipeline.history import Batch, Span, bounds, read, wanted_by
from virtpilot.pipeline.records import Record
from virtpilot.pipeline.rehearsal import Rehearsal
from virtpilot.pipeline.response import Response
from virtpilot.pipeline.rulebook import Rulebook, RuleOptions
from virtpilot.pipeline.standin import Reply
from virtpilot.rules.language import RuleSet, load

# How long a live migration takes, for lack of the link's and the guest's true pace.
MIGRATION_SETUP_S: Final = 1.0
MIGRATION_BYTES_PER_SECOND: Final = 400.0 * 2**20
ON: Final = frozenset({SignalState.FIRING, SignalState.CLEARING})
_MINUTE: Final = 60 * SECOND


class Replayed(msgspec.Struct, frozen=True):
    """What one rule set did: its records in order, the names of the guests, and between which times."""

    rules: RuleSet
    records: list[Record]
    names: dict[str, str]
    start_ns: int
    end_ns: int


def replay(batches: list[Batch], rules: RuleSet, mode: Mode | None = None) -> Replayed:
    """Play a history through the controller; accepted actions change what is measured after them."""
    start_ns, end_ns = bounds(batches)
    names = {
        sample.tags["vm"]: sample.tags.get("name", sample.tags["vm"])
        for batch in batches
        for sample in batch.samples
        if "vm" in sample.tags
    }

    def reply(command: Command) -> Reply:
        if not isinstance(command.action, Migrate):
            return Reply()
        row = rehearsal.controller.rulebook.evaluator.row(Kind.VM, command.action.guest)
        memory = row.values.get("memory_balloon_bytes", 0.0) if row is not None else 0.0
        return Reply(seconds(MIGRATION_SETUP_S + memory / MIGRATION_BYTES_PER_SECOND))

    rehearsal = Rehearsal(rules, start_ns, reply, mode=mode)
    response = Response(rehearsal.agents.places, rehearsal.agents.knobs, rehearsal.agents.states)
    for batch in batches:
        rehearsal.run_until(batch.time_ns)
        for host, samples in response.respond(batch.host, batch.samples).items():
            rehearsal.measure(host, samples)
    rehearsal.run_until(end_ns + SECOND)
    return Replayed(rules, list(rehearsal.records()), names, start_ns, end_ns)


def summary(played: Replayed) -> dict[str, Any]:
    """Return a rule set's figures, JSON-able."""
    records = played.records
    signals = [one for one in records if isinstance(one, Signal)]
    decisions = [one for one in records if isinstance(one, Decision)]
    commands = [one for one in records if isinstance(one, Command)]
    violation = minutes(played)
    return {
        "signals": dict(Counter(str(one.state) for one in signals)),
        "decisions": {
            "accepted": sum(one.accepted for one in decisions),
            "refused": dict(Counter(one.guard for one in decisions if not one.accepted)),
        },
        "commands": len(commands),
        "migrations": sum(isinstance(one.action, Migrate) for one in commands),
        "outcomes": dict(Counter(str(one.result) for one in records if isinstance(one, Outcome))),
        "minutes_in_violation": round(sum(violation.values()), 2),
        "rules": {rule.name: _of_rule(rule.name, records, violation) for rule in played.rules.rules},
    }


def _of_rule(name: str, records: Iterable[Record], violation: dict[str, float]) -> dict[str, Any]:
    own = [one for one in records if not isinstance(one, Event) and one.rule == name]
    commands = [one for one in own if isinstance(one, Command)]
    return {
        "fired": sum(fires(one) for one in own),
        "minutes_in_violation": round(violation.get(name, 0.0), 2),
        "accepted": sum(one.accepted for one in own if isinstance(one, Decision)),
        "refused": sum(not one.accepted for one in own if isinstance(one, Decision)),
        "migrations": sum(isinstance(one.action, Migrate) for one in commands),
        "effective": sum(isinstance(one, Outcome) and one.result == "effective" for one in own),
    }


def fires(record: Record) -> bool:
    """Tell whether a record is the beginning of a violation."""
    return isinstance(record, Signal) and record.state is SignalState.FIRING and record.previous not in ON


def minutes(played: Replayed) -> dict[str, float]:
    """Return for each rule how long its signals fired, over all subjects, up to their end or the history's."""
    found: dict[str, float] = {}
    since: dict[tuple[str, str], int] = {}
    for one in played.records:
        if not isinstance(one, Signal):
            continue
        key = (one.rule, one.subject.id)
        if one.state in ON:
            since.setdefault(key, one.at_ns)
        elif key in since:
            found[one.rule] = found.get(one.rule, 0.0) + (one.at_ns - since.pop(key)) / _MINUTE
    for (rule, _subject), start_ns in since.items():
        found[rule] = found.get(rule, 0.0) + max(played.end_ns - start_ns, 0) / _MINUTE
    return found


def violations(played: Replayed) -> dict[tuple[str, str], list[int]]:
    """Return when each rule began to fire on each subject, by name."""
    found: dict[tuple[str, str], list[int]] = {}
    for one in played.records:
        if fires(one) and isinstance(one, Signal):
            found.setdefault((one.rule, one.subject.name or one.subject.id), []).append(one.at_ns)
    return found


def difference(one: Replayed, other: Replayed) -> dict[str, Any]:
    """Return what the second rule set did otherwise than the first, JSON-able."""
    first, second = violations(one), violations(other)
    a, b = summary(one), summary(other)
    figures = ("commands", "migrations", "minutes_in_violation")
    return {
        "only_a": _left(first, second),
        "only_b": _left(second, first),
        "fired": sum(map(len, second.values())) - sum(map(len, first.values())),
        **{name: round(b[name] - a[name], 2) for name in figures},
    }


def _left(own: dict[tuple[str, str], list[int]], others: dict[tuple[str, str], list[int]]) -> list[dict[str, Any]]:
    """Return what fired here at a time at which it did not there."""
    found = [
        {"rule": rule, "subject": subject, "at": time_ns / SECOND}
        for (rule, subject), times in own.items()
        for time_ns in times
        if time_ns not in others.get((rule, subject), ())
    ]
    return sorted(found, key=lambda each: (each["at"], each["rule"], each["subject"]))


def run(
    source: str, rules: list[Path], against: list[Path], *, mode: Mode | None, span: Span
) -> tuple[dict[str, Any], list[Replayed]]:
    """Replay one rule set or two over a history; raises InputError and StoreUnavailable."""
    loaded = [(paths, load(paths)) for paths in (rules, against) if paths]
    wanted = wanted_by(*(Rulebook(RuleOptions(), ruleset).wanted for _paths, ruleset in loaded))
    batches = read(source, wanted, span)
    sets = [(paths, replay(batches, ruleset, mode)) for paths, ruleset in loaded]
    return document(source, batches, sets), [played for _paths, played in sets]


def document(source: str, batches: list[Batch], sets: Sequence[tuple[list[Path], Replayed]]) -> dict[str, Any]:
    """Return the whole replay as one JSON-able document."""
    start_ns, end_ns = bounds(batches)
    found: dict[str, Any] = {
        "history": {
            "source": source,
            "from": start_ns / SECOND,
            "to": end_ns / SECOND,
            "samples": sum(len(batch.samples) for batch in batches),
            "hosts": len({batch.host for batch in batches}),
            "guests": len(sets[0][1].names),
        }
    }
    for letter, (paths, played) in zip("ab", sets, strict=False):
        records = [{"kind": type(one).__name__.lower(), **msgspec.to_builtins(one)} for one in played.records]
        found[letter] = {"paths": list(map(str, paths)), **summary(played), "records": records}
    if len(sets) > 1:
        found["difference"] = difference(sets[0][1], sets[1][1])
    return found
