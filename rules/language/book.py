"""All rule files that are read together: each once, those that they include first."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
from ruamel.yaml.nodes import Node

from virtpilot.errors import Problem
from virtpilot.rules.language.safe_yaml import compose, read

if TYPE_CHECKING:
    from virtpilot.rules.language.links import Mention
    from virtpilot.rules.language.outline import Outline, Template
    from virtpilot.rules.language.records import Rule

MAX_FILES: Final = 500
MAX_DEPTH: Final = 8


class Book:
    """Reads files; `rules` are those that are right, `problems` what was wrong anywhere."""

    def __init__(self) -> None:
        self.rules: list[Rule] = []
        self.problems: list[Problem] = []
        self.mentions: list[Mention] = []
        self.names: set[str] = set()
        self.places: dict[str, Problem] = {}
        """Where each rule stands."""
        self._templates: dict[str, dict[str, Template]] = {}
        self._open: list[str] = []

    def read(self, file: Path) -> dict[str, Template]:
        """Read a file and return its templates, with those of the files that it includes."""
        real = os.path.realpath(file)
        if real in self._templates:
            return self._templates[real]
        self._templates[real] = {}
        text = read(file)
        root = text if isinstance(text, Problem) else compose(text, str(file))
        if isinstance(root, Problem):
            self.problems.append(root)
            return {}
        # Not before now: what these need takes as long to load as a hostile file to refuse.
        from virtpilot.rules.language.document import RULE_KEYS
        from virtpilot.rules.language.outline import Outline

        outline = Outline(str(file), tuple(RULE_KEYS))
        outline.read(root)
        self._open.append(real)
        found: dict[str, Template] = {}
        for path, node in outline.includes:
            found |= self._included(file, path, node)
        self._open.pop()
        found |= outline.templates
        self._templates[real] = found
        self._take(file, outline, found)
        return found

    def _included(self, file: Path, path: str, node: Node) -> dict[str, Template]:
        target, mark = file.parent / path, node.start_mark
        real, below = os.path.realpath(target), os.path.realpath(file.parent)
        if not real.startswith(below + os.sep):
            message = "an include stays below this file's folder: this is a link out of it"
        elif real in self._open:
            message = "this file is being read: files cannot include each other in a ring"
        elif len(self._open) > MAX_DEPTH or len(self._templates) >= MAX_FILES:
            message = f"includes are {MAX_DEPTH} deep and {MAX_FILES} files at most"
        elif not target.is_file():
            message = f"there is no file {path} beside this one"
        else:
            return self.read(target)
        self.problems.append(Problem(str(file), mark.line + 1, mark.column + 1, message))
        return {}

    def _take(self, file: Path, outline: Outline, templates: dict[str, Template]) -> None:
        from virtpilot.rules.language.document import Reader

        reader = Reader(str(file))
        for node, group in outline.expanded(templates):
            found = reader.rule(node)
            if found is not None and self._is_first(str(file), *found[:2]) and found[2] is not None:
                self.rules.append(msgspec.structs.replace(found[2], group=group))
        self.problems += outline.problems + reader.problems
        self.mentions += reader.mentions
        self.names |= reader.names

    def _is_first(self, file: str, name: str, node: Node) -> bool:
        """Note where a rule stands, and a second one of its name, also of one that has mistakes."""
        place = Problem(file, node.start_mark.line + 1, node.start_mark.column + 1, "")
        known = self.places.setdefault(name, place)
        if known is place:
            return True
        message = f"a rule named `{name}` stands already at {known.file}:{known.line}"
        self.problems.append(Problem(file, place.line, place.column, message))
        return False
