"""The grammar of expressions, and a text's tree, bounded in size."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import lark

from virtpilot.rules.language.devices import SINGLE, WORDS
from virtpilot.rules.language.syntax import ExpressionError, explain
from virtpilot.rules.language.units import QUANTITY

MAX_LENGTH: Final = 2_000
MAX_NODES: Final = 200
MAX_DEPTH: Final = 50

Tree = lark.Tree[lark.Token]

_MEMBERS: Final = "|".join(("vms", "hosts", *WORDS))
_SINGLE: Final = "|".join(SINGLE)
_GRAMMAR: Final = rf"""
?start: either
?either: both ("or" both)*
?both: negated ("and" negated)*
?negated: "not" negated -> negation
        | comparison
?comparison: sum [COMPARE sum]
?sum: product (ADD product)*
?product: signed (MULTIPLY signed)*
?signed: "-" signed -> minus
       | atom
?atom: QUANTITY -> quantity
     | STRING -> text
     | "current" -> current
     | "host" "." NAME -> host_field
     | SINGLE "." NAME -> single_field
     | MEMBERS "." NAME -> member_field
     | TAG -> tag
     | SIGNAL -> signal
     | NAME "(" MEMBERS [where] ")" -> members
     | NAME "(" either ("," QUANTITY)* [where] ")" -> call
     | NAME -> field
     | "(" either ")"
where: "where" either
COMPARE: "<=" | ">=" | "==" | "!=" | "<" | ">"
ADD: "+" | "-"
MULTIPLY: "*" | "/"
TAG: /tags\.[A-Za-z_][A-Za-z0-9_]*(?:[.-][A-Za-z0-9_]+)*/
SIGNAL: /signals\.[A-Za-z0-9](?:[A-Za-z0-9._-]{{0,62}}[A-Za-z0-9_])?/
MEMBERS: /(?:{_MEMBERS})\b/
SINGLE: /(?:{_SINGLE})\b/
NAME: /(?!(?:and|or|not|current|host|{_MEMBERS}|{_SINGLE}|where|tags|signals)\b)[A-Za-z_][A-Za-z0-9_]*/
STRING: /"[^"\\\n]*"/
QUANTITY: /{QUANTITY}/
WS: /[ \t\f\r\n]+/
%ignore WS
"""


@lru_cache(maxsize=1)
def _parser() -> lark.Lark:
    """Return the parser, made when the first expression comes: a file that is refused before that waits for none."""
    return lark.Lark(_GRAMMAR, parser="lalr", propagate_positions=True, maybe_placeholders=False)


def tree_of(text: str) -> Tree:
    """Return the tree of an expression, bounded in size, its parts with their places; raises ExpressionError."""
    if len(text) > MAX_LENGTH:
        raise ExpressionError(0, f"longer than {MAX_LENGTH} characters")
    # Before the work of reading it: so many signs make more parts than are allowed.
    if sum(map(text.count, "()<>=+-*/,")) > 2 * MAX_NODES or len(text.split()) > 3 * MAX_NODES:
        raise ExpressionError(0, f"more than {MAX_NODES} parts")
    return _tree_of(text)


@lru_cache(maxsize=4_096)
def _tree_of(text: str) -> Tree:
    try:
        tree = _parser().parse(text)
    except lark.UnexpectedInput as error:
        raise ExpressionError(*explain(error, text)) from None
    _check_size(tree)
    return tree


def _check_size(tree: Tree) -> None:
    """Refuse what would exhaust the stack when it is compiled or evaluated."""
    found = 0
    waiting = [(tree, 1)]
    while waiting:
        part, depth = waiting.pop()
        found += 1
        if found > MAX_NODES:
            raise ExpressionError(0, f"more than {MAX_NODES} parts")
        if depth > MAX_DEPTH:
            raise ExpressionError(part.meta.start_pos, f"nested more than {MAX_DEPTH} deep")
        waiting += [(child, depth + 1) for child in part.children if isinstance(child, lark.Tree)]
