"""What the audit log says: of one guest, host or rule, or along the causes of one record, both ways."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from virtpilot.errors import InputError, Problem
from virtpilot.pipeline.audit.chain import Line, files, opened, raw_lines
from virtpilot.pipeline.kept import moment_text


class Asked(msgspec.Struct, frozen=True):
    """Which lines: all that is given must fit; `record` is an id whose causes and consequences are walked."""

    guest: str = ""
    host: str = ""
    rule: str = ""
    kind: str = ""
    record: str = ""


def lines(path: Path) -> Iterator[Line]:
    """Yield the lines that can be read, oldest first; raises InputError where there is no audit log."""
    chain = [path] if path.is_file() else files(path)
    if not chain:
        raise InputError([Problem(str(path), 0, 0, "there is no audit log")])
    for file in chain:
        try:
            for _number, raw in raw_lines(file):
                try:
                    yield opened(raw)[0]
                except ValueError:
                    continue  # `verify` tells of it
        except OSError as error:
            raise InputError([Problem(str(file), 0, 0, f"cannot be read: {error.strerror}")]) from error


def chosen(found: Iterable[Line], asked: Asked) -> list[Line]:
    """Return the lines that fit."""
    kept = list(found)
    guests = _uuids(kept, asked.guest)
    related = _related(kept, asked.record) if asked.record else None
    return [
        line
        for line in kept
        if (not asked.guest or _guest(line.entry) in guests)
        and (not asked.host or asked.host in _hosts(line.entry))
        and (not asked.rule or line.entry.get("rule") == asked.rule)
        and (not asked.kind or line.kind == asked.kind)
        and (related is None or line.entry.get("id") in related)
    ]


def _uuids(found: Iterable[Line], name: str) -> set[str]:
    """Return a guest's UUID, and those of all that bore its name."""
    subjects = (line.entry.get("subject") for line in found)
    return {name} | {
        str(subject.get("id")) for subject in subjects if isinstance(subject, dict) and subject.get("name") == name
    }


def _guest(entry: dict[str, Any]) -> str:
    subject, action = entry.get("subject"), entry.get("action")
    told = entry.get("guest") or (action.get("guest") if isinstance(action, dict) else "")
    return str(told or (subject.get("id") if isinstance(subject, dict) else ""))


def _hosts(entry: dict[str, Any]) -> set[str]:
    subject, action = entry.get("subject"), entry.get("action")
    told = [entry.get("host")]
    told += [subject.get("host")] if isinstance(subject, dict) else []
    told += [action.get("target")] if isinstance(action, dict) else []
    return {str(host) for host in told if host}


def _related(found: Iterable[Line], record: str) -> set[str]:
    """Return the ids of a record, of what led to it and of what followed from it."""
    causes = {str(line.entry["id"]): str(line.entry.get("cause", "")) for line in found if "id" in line.entry}
    related = {record}
    cause = causes.get(record, "")
    while cause and cause not in related:
        related.add(cause)
        cause = causes.get(cause, "")
    followed = {record}
    for id_, cause in causes.items():
        if cause in followed:
            followed.add(id_)
    return related | followed


def text(line: Line) -> str:
    """Return a line for people: when, what, and the parts of it that are no ids of machines."""
    entry = line.entry
    action = entry.get("action")
    what = action.get("type", "") if isinstance(action, dict) else action or ""
    verdict = {True: "accepted", False: "refused"}.get(entry.get("accepted", ""), entry.get("result", ""))
    subject = entry.get("subject")
    who = subject.get("name") if isinstance(subject, dict) else entry.get("guest") or _guest(entry)
    parts = [verdict, entry.get("rule", ""), what, who, entry.get("host", ""), entry.get("guard", "")]
    reason = entry.get("reason") or ""
    head = f"{line.n:>8}  {moment_text(line.at_ns)}  {line.kind:<9}"
    return "  ".join([head, *(str(part) for part in parts if part)]) + (f": {reason}" if reason else "")
