"""What is wrong with a text that is no expression, told so that the author knows what to write."""

from __future__ import annotations

import re
from typing import Final

import lark

from virtpilot.rules.language.devices import SINGLE, WORDS
from virtpilot.rules.language.nearest import nearest

_WORD_BEFORE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\s*\Z")
_NUMBER: Final = re.compile(r"[0-9][A-Za-z0-9_.%/]*")
_NUMBER_BEFORE: Final = re.compile(r"[0-9.]+\s+\Z")
_INSTEAD: Final = {
    "=": "texts and numbers are compared with ==",
    "&": "write `and`",
    "|": "write `or`",
    "!": "write `not`",
    "'": "texts stand in double quotes",
    '"': "the text is not closed",
    "%": "a quantity is written without a blank, such as 10%",
}
# A comparison that no `and` or `or` ends before here.
_COMPARED_BEFORE: Final = re.compile(r"[<>=](?:(?!\b(?:and|or)\b)[^<>=])*\Z")
_SHOWN: Final = 40


class ExpressionError(Exception):
    """A mistake in an expression; `column` counts from 0 within its text."""

    def __init__(self, column: int, message: str) -> None:
        self.column = column
        self.message = message
        super().__init__(message)


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
    if text.startswith("signals", at):
        return at, "another rule's signal is written `signals.<rule>`"
    if text.startswith("tags", at):
        return at, "a tag is written `tags.<name>`"
    hint = f"; {_INSTEAD[text[at]]}" if text[at] in _INSTEAD else ""
    return at, f"unexpected character {text[at]!r}{hint}"


def _entity(name: str) -> str:
    if name == "cluster":
        return "`cluster.` is written as an aggregate over its hosts or guests, such as `avg(hosts.cpu_usage_ratio)`"
    if name == "vm":
        return (
            "a guest's own fields are written without `vm.`; all guests of a host are `vms.`, as in `max(vms.<field>)`"
        )
    close = nearest(name[:_SHOWN], WORDS)
    if close:
        return f"`{name[:_SHOWN]}.` is not known; did you mean `max({close}.<field>)`?"
    singles = ", ".join(f"`{word}.<field>`" for word in ("host", *SINGLE))
    others = ", ".join(f"`{word}.`" for word in ("vms", "hosts", *WORDS))
    return f"`{name[:_SHOWN]}.` is not known: there are `tags.<name>`, {singles}, in aggregates {others}"


def _token(token: lark.Token, text: str) -> tuple[int, str]:
    at = token.start_pos or 0
    shown = str(token)[:_SHOWN]
    word = _WORD_BEFORE.search(text, 0, at)
    before = "" if word is None else word[0].strip()
    if word is not None and (shown == "." or before in {"host", *SINGLE}):
        alone = f"of `{before}` a field is meant: write `{before}.<field>`"
        return word.start(), _entity(before) if shown == "." else alone
    if token.type == "MEMBERS":
        return at, f"`{shown}` stands in an aggregate, such as `sum({shown}.<field>)` or `count({shown} where …)`"
    if token.type == "COMMA" or (token.type == "QUANTITY" and text[:at].rstrip().endswith(",")):
        return at, "only functions have commas, such as `avg(<field>, 5m)`"
    if token.type == "NAME" and shown.lower() in {"and", "or", "not"}:
        return at, f"unexpected {shown!r}; write `{shown.lower()}`"
    if token.type == "NAME" and _NUMBER_BEFORE.search(text, 0, at):
        return at, f"unexpected {shown!r}; a quantity is written without a blank, such as 10s"
    chained = token.type == "COMPARE" and _COMPARED_BEFORE.search(text, 0, at) is not None
    return at, f"unexpected {shown!r}{'; write `10% < x and x < 20%`' if chained else ''}"
