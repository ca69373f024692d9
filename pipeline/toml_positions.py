"""Where the keys and values of a TOML document stand: the standard library's parser keeps no positions.

The document is one that `tomllib` has accepted, so this scanner only walks and never judges. Paths are tuples of keys
and list indices, as in the parsed document.
"""

from __future__ import annotations

import contextlib
import re
import tomllib
from typing import Final

Path = tuple[str | int, ...]
Place = tuple[int, int]

_BARE: Final = re.compile(r"[A-Za-z0-9_-]+")
_BASIC: Final = re.compile(r'"(?:[^"\\\n]|\\.)*"')
_LITERAL: Final = re.compile(r"'[^'\n]*'")
_LONG_BASIC: Final = re.compile(r'"""(?:[^"\\]|\\.|"{1,2}(?!"))*"{3,5}', re.DOTALL)
_LONG_LITERAL: Final = re.compile(r"'''(?:[^']|'{1,2}(?!'))*'{3,5}", re.DOTALL)
_SPACE: Final = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_BLANK: Final = re.compile(r"[ \t]*")
_SCALAR: Final = re.compile(r"[^,\]}#\n\r]+")


class Positions:
    """The line and column, from 1, of each key and value of a document."""

    def __init__(self) -> None:
        self.keys: dict[Path, Place] = {}
        self.values: dict[Path, Place] = {}

    def of_key(self, path: Path) -> Place:
        """Return where the key stands, or the nearest enclosing one that is known; 1:1 for the document."""
        return self._nearest(self.keys, path)

    def of_value(self, path: Path) -> Place:
        """Return where the value stands, or the nearest enclosing one that is known; 1:1 for the document."""
        return self._nearest(self.values, path)

    def _nearest(self, places: dict[Path, Place], path: Path) -> Place:
        while path:
            found = places.get(path) or self.values.get(path) or self.keys.get(path)
            if found:
                return found
            path = path[:-1]
        return (1, 1)


def scan(text: str) -> Positions:
    """Return the positions in a document that `tomllib.loads` accepts; in any other text, those before it breaks."""
    scanner = _Scanner(text)
    with contextlib.suppress(_BrokenOffError, RecursionError):  # what was found until then is what can be told
        scanner.document()
    return scanner.found


class _BrokenOffError(Exception):
    """The text is not TOML from here on."""


class _Scanner:
    def __init__(self, text: str) -> None:
        self.found = Positions()
        self._text = text
        self._at = 0
        self._line = 1
        self._line_start = 0
        self._counted = 0
        self._lengths: dict[Path, int] = {}

    def document(self) -> None:
        table: Path = ()
        while self._skip(_SPACE):
            if self._text[self._at] == "[":
                table = self._header()
            else:
                self._pair(table)

    def _skip(self, pattern: re.Pattern[str]) -> bool:
        """Go past what the pattern matches; False at the end of the text."""
        match = pattern.match(self._text, self._at)
        if match:
            self._at = match.end()
        return self._at < len(self._text)

    def _take(self, token: str) -> bool:
        if self._text.startswith(token, self._at):
            self._at += len(token)
            return True
        return False

    def _need(self, token: str) -> None:
        if not self._take(token):
            raise _BrokenOffError

    def _place(self) -> Place:
        """Return line and column of the present offset; offsets only grow, so lines are counted once."""
        self._line += self._text.count("\n", self._counted, self._at)
        self._line_start = self._text.rfind("\n", 0, self._at) + 1
        self._counted = self._at
        return (self._line, self._at - self._line_start + 1)

    def _header(self) -> Path:
        start = self._place()
        is_list = self._take("[[")
        if not is_list:
            self._need("[")
        parts = self._key()
        self._need("]]" if is_list else "]")
        path: Path = ()
        for key, place in parts:
            path = (*self._inside(path), key)
            self.found.keys.setdefault(path, place)
        self.found.values.setdefault(path, start)
        if is_list:
            self._lengths[path] = self._lengths.get(path, 0) + 1
            path = self._inside(path)
        self.found.values[path] = start
        return path

    def _inside(self, path: Path) -> Path:
        """Return the table meant by a path that may name a list of tables: its last element."""
        return (*path, self._lengths[path] - 1) if path in self._lengths else path

    def _key(self) -> list[tuple[str, Place]]:
        parts = []
        while True:
            self._skip(_BLANK)
            place = self._place()
            parts.append((self._key_part(), place))
            self._skip(_BLANK)
            if not self._take("."):
                return parts

    def _key_part(self) -> str:
        for pattern in (_BARE, _BASIC, _LITERAL):
            match = pattern.match(self._text, self._at)
            if match:
                self._at = match.end()
                return _unquote(match.group())
        raise _BrokenOffError

    def _pair(self, table: Path) -> None:
        path = table
        for key, place in self._key():
            path = (*path, key)
            self.found.keys.setdefault(path, place)
        self._need("=")
        self._value(path)

    def _value(self, path: Path) -> None:
        if not self._skip(_BLANK):
            raise _BrokenOffError
        self.found.values[path] = self._place()
        if self._take("["):
            self._list(path)
        elif self._take("{"):
            self._inline_table(path)
        else:
            self._scalar()

    def _list(self, path: Path) -> None:
        index = 0
        while self._skip(_SPACE) and not self._take("]"):
            self._value((*path, index))
            index += 1
            self._skip(_SPACE)
            self._take(",")

    def _inline_table(self, path: Path) -> None:
        while self._skip(_SPACE) and not self._take("}"):
            self._pair(path)
            self._skip(_SPACE)
            self._take(",")

    def _scalar(self) -> None:
        for pattern in (_LONG_BASIC, _LONG_LITERAL, _BASIC, _LITERAL, _SCALAR):
            match = pattern.match(self._text, self._at)
            if match:
                self._at = match.end()
                return
        raise _BrokenOffError


def _unquote(key: str) -> str:
    if key[0] not in "\"'":
        return key
    try:
        return next(iter(tomllib.loads(f"{key} = 0")))
    except ValueError:
        raise _BrokenOffError from None
