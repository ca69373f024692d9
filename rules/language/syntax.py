"""What is wrong with a text that is no expression, told so that the author knows what to write."""

from __future__ import annotations

import re
from typing import Final

import lark

_WORD_BEFORE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\s*\Z")
_NUMBER: Final = re.compile(r"[0-9][A-Za-z0-9_.%/]*")
_NUMBER_BEFORE: Final = re.compile(r"[0-9.]+\s+\Z")
_LATER: Final = frozenset({"cluster", "vms"})
_INSTEAD: Final = {
    "=": "texts and numbers are compared with ==",
    "&": "write `and`",
    "|": "write `or`",
    "!": "write `not`",
    "'": "texts stand in double quotes",
    '"': "the text is not closed",
    "%": "a quantity is written without a blank, such as 10%",
}
_SHOWN: Final = 40


def explain(error: lark.UnexpectedInput, text: str) -> tuple[int, str]:
    """Return where the mistake is, counted from 0, and what it is."""
    if isinstance(error, lark.UnexpectedCharacters):
        return _character(error.pos_in_stream or 0, text)
    token = getattr(error, "token", None)
    if token is None or token.type == "$END":
        return len(text.rstrip()), "the expression ends too early"
    return _token(token, text)


def _character(at: int, text: str) -> tuple[int, str]:
    number = _NUMBER.match(text, at)
    if number is not None:
        return at, f"{number[0][:_SHOWN]!r} is not a number, nor one with a unit such as 30s, 2GiB or 80%"
    if text.startswith("tags", at):
        return at, "a tag is written `tags.<name>`"
    hint = f"; {_INSTEAD[text[at]]}" if text[at] in _INSTEAD else ""
    return at, f"unexpected character {text[at]!r}{hint}"


def _entity(name: str) -> str:
    if name in _LATER:
        return f"`{name}.` is not part of this version of the language"
    return f"`{name[:_SHOWN]}.` is not known: there are `host.<field>` and `tags.<name>`"


def _token(token: lark.Token, text: str) -> tuple[int, str]:
    at = token.start_pos or 0
    shown = str(token)[:_SHOWN]
    word = _WORD_BEFORE.search(text, 0, at)
    if shown == "." and word is not None:
        return word.start(), _entity(word[0].strip())
    if token.type == "LPAR" and word is not None:
        name = word[0].strip()[:_SHOWN]
        return word.start(), f"`{name}(…)`: functions and windows are not part of this version of the language"
    if token.type == "NAME" and shown.lower() in {"and", "or", "not"}:
        return at, f"unexpected {shown!r}; write `{shown.lower()}`"
    if token.type == "NAME" and _NUMBER_BEFORE.search(text, 0, at):
        return at, f"unexpected {shown!r}; a quantity is written without a blank, such as 10s"
    return at, f"unexpected {shown!r}"
