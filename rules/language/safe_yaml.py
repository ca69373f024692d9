"""YAML from strangers: bounded in size, depth and parts while it is read; no aliases, tags or further documents."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import ruamel.yaml
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    DocumentStartEvent,
    Event,
    NodeEvent,
)
from ruamel.yaml.nodes import Node
from ruamel.yaml.parser import Parser
from ruamel.yaml.reader import ReaderError

from virtpilot.errors import Problem

# YAML is read at some 20,000 parts, or 2 MB of comments, a second: what is more than this is refused in no time.
MAX_BYTES: Final = 256 * 1024
MAX_LINES: Final = 10_000
MAX_DEPTH: Final = 12
MAX_PARTS: Final = 6_000
MAX_ITEMS: Final = 1_000
# The scanner looks far ahead of what is taken from it, the slower the more is open.
MAX_OPENED: Final = 24
_OPENED: Final = re.compile(rf"(?:[\[{{]\s*){{{MAX_OPENED + 1}}}")
_BREAKS: Final = ("\n", "\r", "\x85", "\u2028", "\u2029")


class _Refused(Exception):
    """Ends the reading at an event, with the reason."""

    def __init__(self, event: Event, reason: str) -> None:
        self.event = event
        self.reason = reason
        super().__init__(reason)


class _Guarded(Parser):
    """Looks at each event before any node is made of it."""

    def __init__(self, loader: Any) -> None:
        super().__init__(loader)
        self._parts = self._documents = 0
        self._open: list[int] = []

    def check_event(self, *choices: Any) -> bool:
        """Tell whether there is an event, of one of some kinds where these are given."""
        event = self.peek_event()
        return event is not None and (not choices or isinstance(event, choices))

    def peek_event(self) -> Any:
        """Return the next event, None at the end."""
        if self.current_event is None and self.state:
            event = self.state()
            if reason := self._reason(event):
                raise _Refused(event, reason)
            self.current_event = event
        return self.current_event

    def get_event(self) -> Any:
        """Return the next event and go on."""
        event, self.current_event = self.peek_event(), None
        return event

    def _reason(self, event: Event) -> str:
        """Return why an event is refused, "" where it is not."""
        if isinstance(event, AliasEvent) or (isinstance(event, NodeEvent) and event.anchor):
            return "anchors and aliases are not used in rule files"
        if getattr(event, "tag", None):
            return "tags (!…) are not used in rule files"
        if isinstance(event, DocumentStartEvent):
            self._documents += 1
            return "more than one document in the file" if self._documents > 1 else ""
        if isinstance(event, CollectionEndEvent):
            self._open.pop()
        elif isinstance(event, NodeEvent):
            return self._part(event)
        return ""

    def _part(self, event: NodeEvent) -> str:
        self._parts += 1
        if self._open:
            self._open[-1] += 1
        if self._parts > MAX_PARTS:
            return f"more than {MAX_PARTS} parts"
        # In a mapping keys and values are counted alike.
        if self._open and self._open[-1] > MAX_ITEMS:
            return f"more than {MAX_ITEMS} entries in one list, or half as many keys in one mapping"
        if isinstance(event, CollectionStartEvent):
            self._open.append(0)
            return f"nested more than {MAX_DEPTH} deep" if len(self._open) > MAX_DEPTH else ""
        return ""


def read(file: Path) -> str | Problem:
    """Return a file's text, bounded in size, or why it is not read."""
    try:
        with file.open("rb") as handle:
            raw = handle.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            return Problem(str(file), 0, 0, f"larger than {MAX_BYTES // 1024} KiB")
        text = raw.decode()
    except OSError as error:
        return Problem(str(file), 0, 0, f"cannot be read: {error.strerror}")
    except UnicodeDecodeError as error:
        return _placed(str(file), raw[: error.start].decode(), "not UTF-8")
    if sum(map(text.count, _BREAKS)) > MAX_LINES:
        return Problem(str(file), 0, 0, f"more than {MAX_LINES} lines")
    found = _OPENED.search(text)
    if found is not None:
        return _placed(str(file), text[: found.start()], f"more than {MAX_OPENED} opening brackets in a row")
    return text


def compose(text: str, file: str) -> Node | Problem | None:
    """Return the root node of YAML text that may be hostile, None where it is empty, or why it is not read."""
    yaml = ruamel.yaml.YAML(typ="safe", pure=True)
    yaml.Parser = _Guarded
    try:
        root: Node | None = yaml.compose(text)
        return root
    except _Refused as refused:
        mark = refused.event.start_mark
        return Problem(file, mark.line + 1, mark.column + 1, refused.reason)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
        return Problem(file, line, column, f"not YAML: {error.problem or error.context}")
    except ReaderError as error:
        return _placed(file, text[: error.position], "not YAML: this character is not allowed in a file of text")
    except (YAMLError, ValueError) as error:
        return Problem(file, 0, 0, f"not YAML: {str(error).splitlines()[0]}")


def _placed(file: str, before: str, message: str) -> Problem:
    """Return a problem at the end of the text `before`."""
    return Problem(file, before.count("\n") + 1, len(before) - before.rfind("\n"), message)
