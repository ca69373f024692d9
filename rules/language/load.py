"""Rule files from disk: all of them right, or every mistake in all of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import ruamel.yaml
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, DocumentStartEvent, NodeEvent
from ruamel.yaml.nodes import Node
from ruamel.yaml.reader import ReaderError

from virtpilot.errors import Problem, RuleError
from virtpilot.rules.language.document import Reader
from virtpilot.rules.language.links import Mention, broken
from virtpilot.rules.language.records import Rule, RuleSet

MAX_BYTES: Final = 1024 * 1024
MAX_DEPTH: Final = 12
MAX_PARTS: Final = 200_000
MAX_PROBLEMS: Final = 200
_SUFFIX: Final = "rule files are named *.yaml: this one would not be read"


def load(paths: Iterable[Path]) -> RuleSet:
    """Return the rules in files and folders (`*.yaml`, in order of name); raises RuleError with every problem.

    A file named twice is read once. Hidden files and folders are passed over, `*.test.yaml` too.
    """
    rules: list[Rule] = []
    problems: list[Problem] = []
    mentions: list[Mention] = []
    names: set[str] = set()
    seen: dict[str, str] = {}
    for file in files(paths, problems):
        text = read(file)
        root = text if isinstance(text, Problem) else compose(text, str(file))
        if isinstance(root, Problem):
            problems.append(root)
            continue
        reader = Reader(str(file))
        for rule, node in reader.rules(root):
            mark = node.start_mark
            if rule.name in seen:
                message = f"a rule named `{rule.name}` stands already at {seen[rule.name]}"
                problems.append(Problem(str(file), mark.line + 1, mark.column + 1, message))
            else:
                seen[rule.name] = f"{file}:{mark.line + 1}"
                rules.append(rule)
        problems += reader.problems
        mentions += reader.mentions
        names |= reader.names
    problems += broken(rules, mentions, names)
    if problems:
        raise RuleError(_bounded(sorted(problems)))
    return RuleSet(tuple(rules))


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


def read(file: Path) -> str | Problem:
    """Return a file's text, bounded in size, or why it is not read."""
    try:
        with file.open("rb") as handle:
            raw = handle.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            return Problem(str(file), 0, 0, f"larger than {MAX_BYTES // 1024} KiB")
        return raw.decode()
    except OSError as error:
        return Problem(str(file), 0, 0, f"cannot be read: {error.strerror}")
    except UnicodeDecodeError as error:
        return _placed(str(file), raw[: error.start].decode(), "not UTF-8")


def _placed(file: str, before: str, message: str) -> Problem:
    """Return a problem at the end of the text `before`."""
    return Problem(file, before.count("\n") + 1, len(before) - before.rfind("\n"), message)


def compose(text: str, file: str) -> Node | Problem | None:
    """Return the root node of YAML text that may be hostile, None where it is empty, or why it is not read."""
    try:
        return _unsafe(text, file) or _yaml().compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
        return Problem(file, line, column, f"not YAML: {error.problem or error.context}")
    except ReaderError as error:
        return _placed(file, text[: error.position], "not YAML: this character is not allowed in a file of text")
    except (YAMLError, ValueError) as error:
        return Problem(file, 0, 0, f"not YAML: {str(error).splitlines()[0]}")


def _yaml() -> ruamel.yaml.YAML:
    return ruamel.yaml.YAML(typ="safe", pure=True)


def _unsafe(text: str, file: str) -> Problem | None:
    """Look at the stream of events before any tree is built: no aliases, tags, second document or deep nesting."""
    depth = documents = 0
    for count, event in enumerate(_yaml().parse(text)):
        message = f"more than {MAX_PARTS} parts" if count > MAX_PARTS else ""
        if isinstance(event, AliasEvent) or (isinstance(event, NodeEvent) and event.anchor):
            message = "anchors and aliases are not used in rule files"
        elif getattr(event, "tag", None):
            message = "tags (!…) are not used in rule files"
        elif isinstance(event, CollectionStartEvent):
            depth += 1
            message = f"nested more than {MAX_DEPTH} deep" if depth > MAX_DEPTH else ""
        elif isinstance(event, CollectionEndEvent):
            depth -= 1
        elif isinstance(event, DocumentStartEvent):
            documents += 1
            message = "more than one document in the file" if documents > 1 else ""
        if message:
            return Problem(file, event.start_mark.line + 1, event.start_mark.column + 1, message)
    return None
