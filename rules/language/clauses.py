"""The comparisons that a condition is made of: what explanations, coverage and lints speak about."""

from __future__ import annotations

from collections.abc import Iterator

import lark

from virtpilot.rules.language.expression import Condition, condition, tree_of
from virtpilot.rules.language.records import Rule

_LOGIC = frozenset({"either", "both", "negation"})


def clauses(whole: Condition) -> tuple[Condition, ...]:
    """Return each comparison of a condition as a condition of its own, in order; one that stands twice comes once."""
    texts = dict.fromkeys(_texts(tree_of(whole.text), whole.text))
    return tuple(condition(text, whole.on) for text in texts)


def parts(rule: Rule) -> Iterator[tuple[str, Condition]]:
    """Yield the comparisons of a rule's conditions, each with its key."""
    own = (("where", rule.where), ("unless", rule.unless), ("when", rule.when), ("clear", rule.clear))
    for key, whole in own:
        if whole is not None:
            yield from ((key, clause) for clause in clauses(whole))


def _texts(tree: lark.Tree[lark.Token], text: str) -> Iterator[str]:
    if tree.data in _LOGIC:
        for child in tree.children:
            if isinstance(child, lark.Tree):
                yield from _texts(child, text)
    else:
        yield text[tree.meta.start_pos : tree.meta.end_pos]
