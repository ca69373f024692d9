"""YAML nodes to plain values, with every mistake at its place: what the readers of files by people have in common."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Final, TypeVar

from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from virtpilot.errors import Problem
from virtpilot.rules.language.nearest import hint
from virtpilot.rules.language.units import duration_ns

MAX_NAMES: Final = 50
MAX_ABOUT: Final = 500
MAX_PROBLEMS: Final = 400
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

_TORN: Final = frozenset("()")
T = TypeVar("T")
E = TypeVar("E", bound=StrEnum)


class Mistake(Exception):
    """Ends the reading of one value; the problem has been noted."""


class NodeReader:
    """Reads one file's nodes; `problems` has what was wrong."""

    def __init__(self, file: str) -> None:
        self.problems: list[Problem] = []
        self._file = file

    def _duration(self, node: Node) -> int:
        text = self._scalar(node)
        try:
            return duration_ns(text)
        except ValueError as error:
            raise self._mistake(node, str(error)) from None

    def _name(self, node: Node) -> str:
        text = self._scalar(node)
        if not NAME.fullmatch(text):
            raise self._mistake(node, f"{text[:80]!r} is not a name: letters, digits, '.', '_' and '-', 64 at most")
        return text

    def _names(self, node: Node) -> tuple[str, ...]:
        if not isinstance(node, SequenceNode):
            raise self._mistake(node, "a list of names is needed, such as [oncall]")
        found = tuple(self._name(item) for item in node.value[:MAX_NAMES])
        if len(node.value) > MAX_NAMES or len(set(found)) < len(found):
            raise self._mistake(node, f"a list of different names is needed, {MAX_NAMES} at most")
        return found

    def _text(self, node: Node) -> str:
        text = self._scalar(node)
        if len(text) > MAX_ABOUT:
            raise self._mistake(node, f"longer than {MAX_ABOUT} characters")
        return text

    def _choice(self, node: Node, kind: type[E], allowed: tuple[str, ...] = ()) -> E:
        text = self._scalar(node)
        values = allowed or tuple(member.value for member in kind)
        if text not in values:
            raise self._mistake(node, f"{text[:80]!r} is not one of {', '.join(values)}{hint(text, values)}")
        return kind(text)

    def _scalar(self, node: Node) -> str:
        if not isinstance(node, ScalarNode):
            raise self._mistake(node, "a single value is needed here")
        return str(node.value)

    def _mapping(self, node: Node, known: Sequence[str], what: str) -> dict[str, Node] | None:
        if not isinstance(node, MappingNode):
            self._note(node, f"{what} is a mapping of keys to values")
            return None
        found: dict[str, Node] = {}
        for key, value in node.value:
            if len(self.problems) >= MAX_PROBLEMS:
                break
            name = str(key.value) if isinstance(key, ScalarNode) else "?"
            if name in found:
                self._note(key, f"`{name[:80]}` stands here twice")
            elif name in known:
                found[name] = _placed(value, key)
            else:
                self._note(key, self._stranger(name, known, what))
        return found

    def _stranger(self, name: str, known: Sequence[str], what: str) -> str:
        """Return what to say of a key that is not known."""
        if not _TORN.isdisjoint(name):
            return f"`{name[:80]}` is no key: between `{{` and `}}` a text with a comma stands in quotes"
        return f"`{name[:80]}` is not known in {what}{hint(name, known)}"

    def _mistake(self, node: Node, message: str, offset: int = 0) -> Mistake:
        self._note(node, message, offset)
        return Mistake(message)

    def _note(self, node: Node, message: str, offset: int = 0) -> None:
        self.problems.append(Problem(self._file, *self._place(node, offset), message))

    @staticmethod
    def _place(node: Node, offset: int = 0) -> tuple[int, int]:
        """Return the line and column of a place in a node."""
        mark = node.start_mark
        line, column = mark.line + 1, mark.column + 1
        # Within a value on one line the mistake's own column is known; in a folded one only where it begins.
        if type(node) is ScalarNode and node.end_mark.line == mark.line:
            quotes = 1 if node.style in {'"', "'"} else 0
            # An escape in a quoted value makes it longer in the file than it is: then only its start is known.
            if not quotes or node.end_mark.column - mark.column == len(node.value) + 2:
                column += offset + quotes
        return line, column


class Getter:
    """Reads a key with a function; a mistake has been noted and gives the default."""

    def __init__(self, reader: NodeReader, keys: Mapping[str, Node]) -> None:
        self._reader = reader
        self._keys = keys

    def __call__(self, key: str, read: Callable[[Node], T], default: T) -> T:
        """Return what `read` makes of a key's value; the default where it is not there or wrong."""
        node = self._keys.get(key)
        if node is None:
            return default
        try:
            return read(node)
        except Mistake:
            return default


def _placed(value: Node, key: Node) -> Node:
    """Return a value; one that was left out stands where its key does."""
    if isinstance(value, ScalarNode) and value.value == "" and value.style is None:
        return ScalarNode(value.tag, "", key.start_mark, key.end_mark)
    return value
