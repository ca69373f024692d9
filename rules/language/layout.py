"""The one layout of rule and test files: what `virtpilot rules fmt` makes of them, comments kept."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import ruamel.yaml
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from virtpilot.errors import Problem, RuleError
from virtpilot.rules.language.safe_yaml import compose, read

_TRIES: Final = 5
_WIDTH: Final = 1_000_000
_COMMENT: Final = re.compile(r"(?:^|\s)#[^\n]*", re.MULTILINE)
_BLANK_LINES: Final = re.compile(r"\n{3,}")
_BLOCK: Final = re.compile(r"(?:^|[:-])\s+[|>][0-9+-]*(?:\s+#.*)?$")
_TRAILING: Final = re.compile(r"[ \t]+$", re.MULTILINE)


def laid_out(paths: Iterable[Path], problems: list[Problem]) -> Iterator[tuple[Path, str]]:
    """Yield the files whose layout is another, with the text in it; what cannot be laid out is added to `problems`."""
    for path in paths:
        for file in sorted(path.rglob("*.yaml")) if path.is_dir() else [path]:
            text = read(file)
            try:
                new = formatted(text, str(file)) if isinstance(text, str) else text
            except RuleError as error:
                problems += error.problems
                continue
            if isinstance(new, Problem):
                problems.append(new)
            elif new != text:
                yield file, new


def formatted(text: str, file: str) -> str:
    """Return a file's text in the one layout; raises RuleError where it is no YAML or cannot be laid out safely."""
    before = _meaning(text, file)
    for _ in range(_TRIES):
        laid_out = _lay_out(text)
        if laid_out == text:
            break
        text = laid_out
    else:
        raise RuleError([Problem(file, 0, 0, "no layout of this file stays as it is: left alone")])
    return text if _meaning(text, file) == before else _refuse(file)


def _refuse(file: str) -> str:
    raise RuleError([Problem(file, 0, 0, "a layout would change what this file means, or lose a comment: left alone")])


def _meaning(text: str, file: str) -> tuple[Any, Counter[str]]:
    """Return all that must stay: values, keys and their order, and the comments."""
    root = compose(text, file)
    if isinstance(root, Problem):
        raise RuleError([root])
    return _plain(root), Counter(" ".join(found.split()) for found in _COMMENT.findall(text))


def _plain(node: Node | None) -> Any:
    match node:
        case ScalarNode():
            # Styles that are resolved to the same tag and value mean the same.
            return (node.tag, node.value)
        case SequenceNode():
            return [_plain(item) for item in node.value]
        case MappingNode():
            return tuple((_plain(key), _plain(value)) for key, value in node.value)
        case _:
            return None


def _lay_out(text: str) -> str:
    yaml = ruamel.yaml.YAML(typ="rt", pure=True)
    yaml.preserve_quotes = True
    yaml.width = _WIDTH
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.representer.add_representer(type(None), _empty)
    document = yaml.load(text.removeprefix("\ufeff"))
    if document is None:
        return text
    out = io.StringIO()
    yaml.dump(document, out)
    found = _BLANK_LINES.sub("\n\n", _TRAILING.sub("", out.getvalue())).strip("\n")
    return "\n".join(_comments_in_line(found.split("\n"))) + "\n"


def _comments_in_line(lines: Sequence[str]) -> list[str]:
    """Indent comments that stand alone as what they stand above; what only looks so in a block of text stays."""
    found = list(lines)
    block: int | None = None
    comments = []
    for number, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if block is not None and line and indent <= block:
            block = None
        if block is None and line.lstrip().startswith("#"):
            comments.append(number)
        elif block is None and _BLOCK.search(line):
            block = indent
    indent = 0
    for number in range(len(lines) - 1, -1, -1):
        if number in comments:
            found[number] = " " * indent + lines[number].lstrip()
        elif lines[number]:
            indent = len(lines[number]) - len(lines[number].lstrip())
    return found


def _empty(representer: Any, _value: None) -> Any:
    """Keep a value that was left out as it is, in place of `null`."""
    return representer.represent_scalar("tag:yaml.org,2002:null", "")
