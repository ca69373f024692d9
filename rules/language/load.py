"""Rule files from disk: all of them right, or every mistake in all of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from virtpilot.errors import Problem, RuleError
from virtpilot.rules.language.book import Book
from virtpilot.rules.language.safe_yaml import MAX_BYTES

if TYPE_CHECKING:
    from virtpilot.rules.language.records import RuleSet

MAX_PROBLEMS: Final = 200
MAX_ALL_BYTES: Final = 2 * 1024 * 1024
# Each keeps a past of every guest or host.
MAX_WINDOWS: Final = 200
_SUFFIX: Final = "rule files are named *.yaml: this one would not be read"


def load(paths: Iterable[Path]) -> RuleSet:
    """Return the rules in files and folders (`*.yaml`, in order of name); raises RuleError with every problem.

    A file named twice is read once. Hidden files and folders are passed over, `*.test.yaml` too.
    """
    return load_placed(paths)[0]


def load_placed(paths: Iterable[Path]) -> tuple[RuleSet, dict[str, Problem]]:
    """Return what `load` does, and where each rule's name stands."""
    problems: list[Problem] = []
    named = list(files(paths, problems))
    if sum(map(_size, named)) > MAX_ALL_BYTES:
        raise RuleError([Problem(str(named[0]), 0, 0, f"more than {MAX_ALL_BYTES // 2**20} MiB of rule files in all")])
    book = Book()
    for file in named:
        book.read(file)
    if book.mentions:
        from virtpilot.rules.language.links import broken, built_in

        book.rules += built_in(book.mentions, book.names)
        book.problems += broken(book.rules, book.mentions, book.names | {rule.name for rule in book.rules})
    problems += book.problems + _too_much(book)
    if problems:
        raise RuleError(_bounded(sorted(problems)))
    from virtpilot.rules.language.records import RuleSet

    return RuleSet(tuple(book.rules)), book.places


def _size(file: Path) -> int:
    try:
        # One that is too large itself is told of by name.
        return min(file.stat().st_size, MAX_BYTES)
    except OSError:
        return 0


def _too_much(book: Book) -> list[Problem]:
    """Return the rule whose windows are more than may be kept."""
    windows: set[object] = set()
    for rule in book.rules:
        windows |= {key for condition in rule.conditions() for key in condition.reads.every_window}
        if len(windows) > MAX_WINDOWS and rule.name in book.places:
            place = book.places[rule.name]
            message = f"more than {MAX_WINDOWS} different windows in all rules"
            return [Problem(place.file, place.line, place.column, message)]
    return []


def check(paths: Iterable[Path]) -> list[Problem]:
    """Return every mistake in rule files and folders, none where `load` would take them."""
    try:
        load(paths)
    except RuleError as error:
        return list(error.problems)
    return []


def _bounded(problems: list[Problem]) -> list[Problem]:
    if len(problems) <= MAX_PROBLEMS:
        return problems
    last = problems[MAX_PROBLEMS - 1]
    more = f"{last.message} … and {len(problems) - MAX_PROBLEMS} more mistakes or so"
    return [*problems[: MAX_PROBLEMS - 1], Problem(last.file, last.line, last.column, more)]


def files(paths: Iterable[Path], problems: list[Problem]) -> Iterator[Path]:
    """Yield the rule files that are meant, each once; what cannot be is added to `problems`."""
    seen: set[str] = set()
    for path in paths:
        for file in _inside(path, problems) if path.is_dir() else [path]:
            real = os.path.realpath(file)
            if real not in seen:
                seen.add(real)
                yield file


def _inside(folder: Path, problems: list[Problem]) -> Iterator[Path]:
    found = [file for file in sorted(folder.rglob("*")) if not _hidden(file.relative_to(folder))]
    files = [file for file in found if file.suffix == ".yaml" and not file.name.endswith(".test.yaml")]
    # Left out without a word, such a file would look as if it were in force.
    problems += [
        Problem(str(file), 0, 0, _SUFFIX)
        for file in found
        if file.suffix.lower() in {".yml", ".yaml"} and file.suffix != ".yaml"
    ]
    if not files:
        problems.append(Problem(str(folder), 0, 0, "no rule file (*.yaml) in this folder"))
    yield from files


def _hidden(path: Path) -> bool:
    """Tell what editors and mounted volumes keep beside the real files (`.#rules.yaml`, `..data/`)."""
    return any(part.startswith(".") for part in path.parts)
