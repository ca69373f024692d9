"""From YAML nodes to typed rules, with every mistake at its place."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from hashlib import blake2b
from typing import Any, Final, TypeVar

from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from virtpilot.errors import Problem
from virtpilot.model import Kind, Mode
from virtpilot.rules.language.expression import Condition, ExpressionError, condition, formula
from virtpilot.rules.language.records import KNOBS, Expect, MigrateRemedy, NoData, Remedy, Rule, SetRemedy, Severity
from virtpilot.rules.language.units import duration_ns

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_EXPECT: Final = re.compile(r"(?s)(.+?)\s+within\s+(\S+)\s*")
MAX_RULES: Final = 5_000
MAX_REMEDIES: Final = 8
_RULE_KEYS: Final = [
    "name",
    "about",
    "on",
    "where",
    "when",
    "for",
    "clear",
    "clear_for",
    "no_data",
    "priority",
    "severity",
    "mode",
    "cooldown",
    "remedies",
    "notify",
]

T = TypeVar("T")
E = TypeVar("E", bound=StrEnum)


class _Mistake(Exception):
    """Ends the reading of one value; the problem has been noted."""


class Reader:
    """Reads one file's root node; `problems` has what was wrong."""

    def __init__(self, file: str) -> None:
        self.problems: list[Problem] = []
        self._file = file

    def rules(self, root: Node | None) -> list[tuple[Rule, Node]]:
        """Return the rules that are right, each with its name's node."""
        if root is None:
            self.problems.append(Problem(self._file, 1, 1, "the file is empty: `virtpilot: 1` and `rules:` are needed"))
            return []
        top = self._mapping(root, ("virtpilot", "rules"), "the file")
        if top is None:
            return []
        self._version(root, top)
        listed = top.get("rules")
        if listed is None:
            self._note(root, "`rules` is missing")
            return []
        if not isinstance(listed, SequenceNode):
            self._note(listed, "`rules` is a list")
            return []
        if len(listed.value) > MAX_RULES:
            self._note(listed, f"more than {MAX_RULES} rules in one file")
            return []
        return [found for node in listed.value if (found := self._rule(node)) is not None]

    def _version(self, root: Node, top: Mapping[str, Node]) -> None:
        node = top.get("virtpilot")
        if node is None:
            self._note(root, "`virtpilot: 1` is missing: the version of the format")
        elif not (isinstance(node, ScalarNode) and node.value == "1"):
            self._note(node, "this version of the format is not known; write `virtpilot: 1`")

    def _rule(self, node: Node) -> tuple[Rule, Node] | None:
        before = len(self.problems)
        keys = self._mapping(node, _RULE_KEYS, "a rule")
        if keys is None:
            return None
        for needed in ("name", "on", "when"):
            if needed not in keys:
                self._note(node, f"`{needed}` is missing")
        get = _Getter(self, keys)
        on = get("on", lambda n: self._choice(n, Kind, ("vm", "host")), Kind.VM)
        when = get("when", lambda n: self._condition(n, on), None)
        values: dict[str, Any] = {
            "name": get("name", self._name, ""),
            "about": get("about", self._text, ""),
            "where": get("where", lambda n: self._condition(n, on), None),
            "for_ns": get("for", self._duration, 0),
            "clear": get("clear", lambda n: self._condition(n, on), None),
            "clear_for_ns": get("clear_for", self._duration, 0),
            "no_data": get("no_data", lambda n: self._choice(n, NoData), NoData.HOLD),
            "priority": get("priority", self._priority, 50),
            "severity": get("severity", lambda n: self._choice(n, Severity), Severity.WARNING),
            "mode": get("mode", lambda n: self._choice(n, Mode), Mode.OBSERVE),
            "cooldown_ns": get("cooldown", self._duration, 0),
            "remedies": get("remedies", lambda n: self._remedies(n, on), tuple[Remedy, ...]()),
            "notify": get("notify", self._names, tuple[str, ...]()),
        }
        if len(self.problems) > before or when is None:
            return None
        return Rule(on=on, when=when, digest=_digest(on, when, values), **values), keys["name"]

    def _remedies(self, node: Node, on: Kind) -> tuple[Remedy, ...]:
        if not isinstance(node, SequenceNode):
            raise self._mistake(node, "`remedies` is a list")
        if on is not Kind.VM:
            raise self._mistake(node, "remedies are for rules on a vm")
        if len(node.value) > MAX_REMEDIES:
            raise self._mistake(node, f"more than {MAX_REMEDIES} remedies")
        found = [self._remedy(item, on) for item in node.value]
        return tuple(remedy for remedy in found if remedy is not None)

    def _remedy(self, node: Node, on: Kind) -> Remedy | None:
        keys = self._mapping(node, ("set", "migrate", "lease", "expect"), "a remedy")
        if keys is None:
            return None
        if ("set" in keys) == ("migrate" in keys):
            self._note(node, "a remedy has either `set` or `migrate`")
            return None
        get = _Getter(self, keys)
        expect = get("expect", lambda n: self._expect(n, on), None)
        if "migrate" in keys:
            if "lease" in keys:
                self._note(keys["lease"], "`lease` goes with `set`")
            self._migrate(keys["migrate"])
            return MigrateRemedy(expect)
        if "lease" not in keys:
            self._note(node, "`lease` is missing: how long the knob stays changed")
        lease_ns = get("lease", self._duration, 0)
        if "lease" in keys and lease_ns == 0:
            self._note(keys["lease"], "a lease is longer than 0s")
        return get("set", lambda n: self._set(n, on, lease_ns, expect), None)

    def _set(self, node: Node, on: Kind, lease_ns: int, expect: Expect | None) -> SetRemedy:
        knobs = self._mapping(node, tuple(KNOBS), "`set`")
        if knobs is None or len(knobs) != 1:
            raise self._mistake(node, f"`set` has one knob: {', '.join(KNOBS)}")
        ((knob, value),) = knobs.items()
        return SetRemedy(knob, self._compiled(value, lambda text: formula(text, on)), lease_ns, expect)

    def _migrate(self, node: Node) -> None:
        keys = self._mapping(node, ("to",), "`migrate`")
        if keys is not None and not ("to" in keys and self._scalar(keys["to"]) == "best"):
            self._note(node, "`migrate` is written `migrate: {to: best}`")

    def _expect(self, node: Node, on: Kind) -> Expect:
        text = self._scalar(node)
        match = _EXPECT.fullmatch(text)
        if match is None:
            raise self._mistake(node, "`expect` is written `<condition> within <duration>`")
        try:
            within_ns = duration_ns(match[2])
        except ValueError as error:
            raise self._mistake(node, str(error), match.start(2)) from None
        return Expect(self._compiled(node, lambda _text: condition(match[1], on)), within_ns)

    def _condition(self, node: Node, on: Kind) -> Condition:
        return self._compiled(node, lambda text: condition(text, on))

    def _compiled(self, node: Node, compile_text: Callable[[str], T]) -> T:
        try:
            return compile_text(self._scalar(node))
        except ExpressionError as error:
            raise self._mistake(node, error.message, error.column) from None

    def _duration(self, node: Node) -> int:
        text = self._scalar(node)
        try:
            return duration_ns(text)
        except ValueError as error:
            raise self._mistake(node, str(error)) from None

    def _priority(self, node: Node) -> int:
        text = self._scalar(node)
        if not re.fullmatch(r"[0-9]{1,3}", text) or int(text) > 100:
            raise self._mistake(node, f"a priority is a whole number from 0 to 100, not {text!r}")
        return int(text)

    def _name(self, node: Node) -> str:
        text = self._scalar(node)
        if not _NAME.fullmatch(text):
            raise self._mistake(node, f"{text[:80]!r} is not a name: letters, digits, '.', '_' and '-', 64 at most")
        return text

    def _names(self, node: Node) -> tuple[str, ...]:
        if not isinstance(node, SequenceNode):
            raise self._mistake(node, "a list of names is needed, such as [oncall]")
        return tuple(self._name(item) for item in node.value)

    def _text(self, node: Node) -> str:
        return self._scalar(node)[:500]

    def _choice(self, node: Node, kind: type[E], allowed: tuple[str, ...] = ()) -> E:
        text = self._scalar(node)
        values = allowed or tuple(member.value for member in kind)
        if text not in values:
            raise self._mistake(node, f"{text[:80]!r} is not one of {', '.join(values)}{_near(text, values)}")
        return kind(text)

    def _scalar(self, node: Node) -> str:
        if not isinstance(node, ScalarNode):
            raise self._mistake(node, "a single value is needed here")
        return str(node.value)

    def _mapping(
        self, node: Node, allowed: Iterator[str] | tuple[str, ...] | list[str], what: str
    ) -> dict[str, Node] | None:
        if not isinstance(node, MappingNode):
            self._note(node, f"{what} is a mapping of keys to values")
            return None
        found: dict[str, Node] = {}
        known = tuple(allowed)
        for key, value in node.value:
            name = str(key.value) if isinstance(key, ScalarNode) else "?"
            if name in found:
                self._note(key, f"`{name}` stands here twice")
            elif name not in known:
                self._note(key, f"`{name[:80]}` is not known in {what}{_near(name, known)}")
            else:
                found[name] = value
        return found

    def _mistake(self, node: Node, message: str, offset: int = 0) -> _Mistake:
        self._note(node, message, offset)
        return _Mistake(message)

    def _note(self, node: Node, message: str, offset: int = 0) -> None:
        mark = node.start_mark
        line, column = mark.line + 1, mark.column + 1
        # Within a value on one line the mistake's own column is known; in a folded one only where it begins.
        if isinstance(node, ScalarNode) and node.end_mark.line == mark.line:
            column += offset + (1 if node.style in {'"', "'"} else 0)
        self.problems.append(Problem(self._file, line, column, message))


class _Getter:
    """Reads a key with a function; a mistake has been noted and gives the default."""

    def __init__(self, reader: Reader, keys: Mapping[str, Node]) -> None:
        self._reader = reader
        self._keys = keys

    def __call__(self, key: str, read: Callable[[Node], T], default: T) -> T:
        node = self._keys.get(key)
        if node is None:
            return default
        try:
            return read(node)
        except _Mistake:
            return default


def _near(name: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"; did you mean `{near[0]}`?" if near else ""


def _digest(on: Kind, when: Condition, values: Mapping[str, Any]) -> str:
    """Return what changes whenever the rule's signal does: its state is kept over a reload while this stays."""
    parts = [on, when.text, *(getattr(values[key], "text", values[key]) for key in ("where", "clear"))]
    parts += [values[key] for key in ("for_ns", "clear_for_ns", "no_data")]
    return blake2b(repr(parts).encode(), digest_size=8).hexdigest()
