"""What an agent's spool and a writer's dead letters hold, read without changing a byte, also while they are in use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from virtpilot.clock import SECOND
from virtpilot.errors import InputError, Problem, StateError
from virtpilot.pipeline.dead_letters import DeadLetter, letter_files, read_letters
from virtpilot.pipeline.process import sole_user
from virtpilot.pipeline.segments import Entry, entries, segments
from virtpilot.pipeline.sequences import SequenceSet


def spool_folder(path: Path) -> Path | None:
    """Return the spool that a path is or that an agent's state folder has; None where there is none."""
    if (path / "spool").is_dir():
        return path / "spool"
    return path if path.is_dir() and (segments(path) or path.name == "spool") else None


def letters_of(path: Path) -> list[Path]:
    """Return the files of dead letters that a path is or has."""
    if path.is_file():
        return [path]
    return letter_files(path) or letter_files(path / "dead-letters")


def neither(path: Path) -> InputError:
    """Return what is wrong with a path that holds neither."""
    return InputError([Problem(str(path), 0, 0, "holds neither a spool nor dead letters")])


@contextmanager
def nobody_else(path: Path) -> Iterator[None]:
    """Hold the state folder that a spool or dead letters belong to; raises StateError while a process uses it."""
    with ExitStack() as held:
        for folder in list(path.resolve().parents)[:2]:
            if (folder / "lock").exists():
                held.enter_context(sole_user(folder))
        yield


def messages(folder: Path) -> Iterator[tuple[Entry, bytes]]:
    """Yield a spool's messages with their payloads, oldest first; raises StateError."""
    for number, path in segments(folder).items():
        try:
            with path.open("rb") as file:
                for entry, _ in entries(path, number):
                    file.seek(entry.offset)
                    yield entry, file.read(entry.length)
        except FileNotFoundError:
            continue  # its messages were reported stored meanwhile
        except OSError as error:
            raise StateError(f"cannot read {path}: {error.strerror}") from error


def spool_document(folder: Path) -> dict[str, Any]:
    """Return what a spool holds: its segments, and of each boot the sequences and times."""
    boots: dict[str, list[Entry]] = {}
    files = []
    for number, path in segments(folder).items():
        found, end = [], 0
        try:
            for entry, end in entries(path, number):  # noqa: B007 # the last one's end
                found.append(entry)
            size = path.stat().st_size
        except FileNotFoundError:
            continue
        except OSError as error:
            raise StateError(f"cannot read {path}: {error.strerror}") from error
        files.append({"file": path.name, "bytes": size, "messages": len(found), "torn_bytes": size - end})
        for entry in found:
            boots.setdefault(entry.boot, []).append(entry)
    every = [entry for kept in boots.values() for entry in kept]
    return {
        "kind": "spool",
        "folder": str(folder),
        "messages": len({entry.key for entry in every}),
        "bytes": sum(file["bytes"] for file in files),
        **_span(entry.time_ns for entry in every),
        "boots": [_boot(boot, kept) for boot, kept in boots.items()],
        "segments": files,
    }


def _boot(boot: str, kept: list[Entry]) -> dict[str, Any]:
    sequences = SequenceSet((entry.seq, entry.seq) for entry in kept)
    times = _span(entry.time_ns for entry in kept)
    return {"boot": boot, "messages": sequences.count, "sequences": sequences.ranges(), **times}


def letters_document(files: list[Path]) -> dict[str, Any]:
    """Return what dead letters there are: how many of each reason and topic."""
    letters, rows = [], []
    for path in files:
        found, torn = read_letters(path)
        letters += found
        rows.append({"file": str(path), "bytes": path.stat().st_size, "lines": len(found), "torn_lines": torn})
    return {
        "kind": "dead letters",
        "lines": len(letters),
        "bytes": sum(row["bytes"] for row in rows),
        **_span(letter.at_ns for letter in letters),
        "reasons": dict(Counter(letter.reason for letter in letters).most_common()),
        "topics": dict(Counter(letter.topic for letter in letters).most_common()),
        "files": rows,
    }


def message_document(entry: Entry, payload: bytes) -> dict[str, Any]:
    """Return a spooled message for showing."""
    lines = payload.decode(errors="replace").splitlines()
    return {"boot": entry.boot, "seq": entry.seq, "at": moment_text(entry.time_ns), "lines": lines}


def letter_document(letter: DeadLetter) -> dict[str, Any]:
    """Return a dead letter for showing."""
    return {"at": moment_text(letter.at_ns), "topic": letter.topic, "reason": letter.reason, "line": letter.line}


def moment_text(time_ns: int) -> str:
    """Return a time as ISO 8601 in UTC, its bare number where it is no time of a calendar."""
    try:
        return datetime.fromtimestamp(time_ns // SECOND, UTC).isoformat().replace("+00:00", "Z")
    except (ValueError, OverflowError, OSError):
        return str(time_ns)


def _span(times_ns: Iterator[int]) -> dict[str, str]:
    found = list(times_ns)
    return {"oldest": moment_text(min(found)), "newest": moment_text(max(found))} if found else {}
