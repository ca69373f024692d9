"""What stands in a rule beside its conditions and remedies: budgets, cooldowns, times, wordings, priority."""

from __future__ import annotations

import re
from typing import Final, Literal

from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from virtpilot.calendar import Calendar
from virtpilot.rules.language.expression import Condition
from virtpilot.rules.language.nodes import NodeReader
from virtpilot.rules.language.records import Cooldown, RuleBudget
from virtpilot.rules.language.units import duration_ns
from virtpilot.rules.language.wording import Wording, wording

MAX_CALENDARS: Final = 20
MAX_ANNOTATIONS: Final = 20
MAX_WORDING: Final = 1_000
BUDGET: Final = re.compile(r"([1-9][0-9]{0,5}) per (\S{1,64})")
_Scope = Literal["rule", "guest", "host"]
BUDGET_SCOPES: Final[tuple[_Scope, ...]] = ("rule", "guest", "host")


class AttributeReader(NodeReader):
    """Reads values that are more than a word."""

    def _budgets(self, node: Node) -> tuple[RuleBudget, ...]:
        """Read `4 per 1h`, for the whole rule, or one for each of rule, guest and host."""
        if not isinstance(node, MappingNode):
            return (self._budget(node, "rule"),)
        keys = self._mapping(node, BUDGET_SCOPES, "`budget`") or {}
        return tuple(self._budget(keys[scope], scope) for scope in BUDGET_SCOPES if scope in keys)

    def _budget(self, node: Node, scope: _Scope) -> RuleBudget:
        text = " ".join(self._scalar(node).split())
        found = BUDGET.fullmatch(text)
        if found is None:
            raise self._mistake(node, f"a budget is written `4 per 1h`, not {text[:40]!r}")
        try:
            span_ns = duration_ns(found[2])
        except ValueError as error:
            raise self._mistake(node, str(error)) from None
        if span_ns == 0:
            raise self._mistake(node, "a budget is for more than 0s")
        return RuleBudget(scope, int(found[1]), span_ns)

    def _cooldown(self, node: Node) -> Cooldown:
        """Read a duration, or one for after the knob went up and one for after it went down."""
        if not isinstance(node, MappingNode):
            both = self._duration(node)
            return Cooldown(both, both)
        keys = self._mapping(node, ("up", "down"), "`cooldown`") or {}
        if set(keys) != {"up", "down"}:
            raise self._mistake(node, "a cooldown is a duration or has both `up` and `down`")
        return Cooldown(self._duration(keys["up"]), self._duration(keys["down"]))

    def _calendars(self, node: Node) -> tuple[Calendar, ...]:
        """Read times of the week, one or a list of them."""
        nodes = node.value if isinstance(node, SequenceNode) else [node]
        if not 0 < len(nodes) <= MAX_CALENDARS:
            raise self._mistake(node, f"1 to {MAX_CALENDARS} times are needed")
        return tuple(self._calendar(item) for item in nodes)

    def _calendar(self, node: Node) -> Calendar:
        try:
            return Calendar(self._scalar(node))
        except ValueError as error:
            raise self._mistake(node, str(error)) from None

    def _annotations(self, node: Node, when: Condition | None) -> dict[str, Wording]:
        """Read texts for people by name; what stands in `{{ }}` must be known."""
        if not isinstance(node, MappingNode):
            raise self._mistake(node, "`annotations` is a mapping of names to texts")
        found: dict[str, Wording] = {}
        for key, value in node.value[:MAX_ANNOTATIONS]:
            name = self._name(key)
            if name in found:
                self._note(key, f"`{name}` stands here twice")
            elif when is not None:
                found[name] = self._wording(value, when)
        if len(node.value) > MAX_ANNOTATIONS:
            raise self._mistake(node, f"more than {MAX_ANNOTATIONS} annotations")
        return found

    def _wording(self, node: Node, when: Condition) -> Wording:
        text = self._scalar(node)
        if len(text) > MAX_WORDING:
            raise self._mistake(node, f"longer than {MAX_WORDING} characters")
        try:
            return wording(text, when)
        except ValueError as error:
            raise self._mistake(node, str(error)) from None

    def _priority(self, node: Node) -> int:
        text = self._scalar(node)
        if not re.fullmatch(r"[0-9]{1,3}", text) or int(text) > 100:
            raise self._mistake(node, f"a priority is a whole number from 0 to 100, not {text!r}")
        return int(text)

    def _lease(self, node: Node) -> int:
        found = self._duration(node)
        if found == 0:
            raise self._mistake(node, "a lease is longer than 0s")
        return found
