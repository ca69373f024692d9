"""From YAML nodes to typed rules, with every mistake at its place."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import Any, Final, Literal, TypeVar

from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from virtpilot.action import AllocationPolicy, Resource, Verb
from virtpilot.calendar import Calendar
from virtpilot.clock import seconds
from virtpilot.knobs import NO_LIMIT, Knob, list_of, numbers_in
from virtpilot.model import Kind, Mode
from virtpilot.rules.language.attributes import AttributeReader
from virtpilot.rules.language.expression import Condition, ExpressionError, Formula, condition, formula
from virtpilot.rules.language.knob_words import bounds, counted, knob_names, known, unknown_knob
from virtpilot.rules.language.links import Mention
from virtpilot.rules.language.nodes import MAX_NAMES, Getter, Mistake
from virtpilot.rules.language.records import (
    AllocateRemedy,
    Cooldown,
    Expect,
    MigrateRemedy,
    NoData,
    PowerRemedy,
    Remedy,
    Rule,
    RuleBudget,
    RunRemedy,
    SetRemedy,
    Severity,
)
from virtpilot.rules.language.units import duration_ns
from virtpilot.rules.language.wording import Wording

_WITHIN: Final = re.compile(r"\bwithin\b")
MAX_REMEDIES: Final = 8
RULE_KEYS: Final = [
    "name",
    "template",
    "with",
    "about",
    "on",
    "where",
    "unless",
    "when",
    "for",
    "clear",
    "clear_for",
    "no_data",
    "priority",
    "severity",
    "mode",
    "during",
    "not_during",
    "cooldown",
    "budget",
    "remedies",
    "notify",
    "annotations",
]
# What a remedy does; `lease` and `expect` go with it.
REMEDIES: Final = ("set", "allocate", "migrate", "run", *(str(verb) for verb in Verb))
_ON_HOSTS: Final = frozenset({"set", "allocate"})
_ON_GUESTS: Final = frozenset(REMEDIES) - {"allocate"}
# Whatever the guest itself has to do, it is given time for.
PATIENT: Final = frozenset({Verb.SHUTDOWN, Verb.REBOOT})
_WITHIN_NS: Final = seconds(60)
MAX_WITHIN_NS: Final = seconds(3600)

AT_LEAST: Final = re.compile(r"^at least ([1-9][0-9]{0,5}) of (vms|hosts)(?: within (\S{1,20}))?$")
_NO_FIELD: Final = "this reads no field: no measurement could ever change it"
_TOGETHER: Final = "this is a condition, or signals: `all: [a, b]`, `any: [a, b]`, `at least 3 of vms within 2m: a`"
_PERCENT: Final = re.compile(r"([0-9]{1,2}(?:\.[0-9]{1,3})?)\s*%")
_ALLOCATE: Final = "`allocate` is written `allocate: {policy: demand, resource: cpu}`"
_MIGRATE: Final = "`migrate` is written `migrate: {to: best}`"

T = TypeVar("T")


class Reader(AttributeReader):
    """Reads one file's rules; `names` has each rule's, `mentions` the signals that they read."""

    def __init__(self, file: str) -> None:
        super().__init__(file)
        self.names: set[str] = set()
        self.mentions: list[Mention] = []
        self._rule_name = ""

    def rule(self, node: Node) -> tuple[str, Node, Rule | None] | None:
        """Return a rule's name, where it stands, and the rule, None where it has mistakes; None without a name."""
        before = len(self.problems)
        keys = self._mapping(node, RULE_KEYS, "a rule")
        if keys is None:
            return None
        for needed in ("name", "on", "when"):
            if needed not in keys:
                self._note(node, f"`{needed}` is missing")
        get = Getter(self, keys)
        self._rule_name = get("name", self._name, "")
        self.names.add(self._rule_name)
        on = get("on", self._kind, None) or self._likely(keys)
        when = get("when", lambda n: self._when(n, on), None)
        values: dict[str, Any] = {
            "name": self._rule_name,
            "about": get("about", self._text, ""),
            "where": get("where", lambda n: self._condition(n, on), None),
            "for_ns": get("for", self._duration, 0),
            "unless": get("unless", lambda n: self._signals(n, on, "or"), None),
            "clear": get("clear", lambda n: self._when(n, on), None),
            "clear_for_ns": get("clear_for", self._duration, 0),
            "no_data": get("no_data", lambda n: self._choice(n, NoData), NoData.HOLD),
            "priority": get("priority", self._priority, 50),
            "severity": get("severity", lambda n: self._choice(n, Severity), Severity.WARNING),
            "mode": get("mode", lambda n: self._choice(n, Mode), Mode.OBSERVE),
            "during": get("during", self._calendars, tuple[Calendar, ...]()),
            "not_during": get("not_during", self._calendars, tuple[Calendar, ...]()),
            "cooldown": get("cooldown", self._cooldown, Cooldown()),
            "budgets": get("budget", self._budgets, tuple[RuleBudget, ...]()),
            "annotations": get("annotations", lambda n: self._annotations(n, when), dict[str, Wording]()),
            "remedies": get("remedies", lambda n: self._remedies(n, on), tuple[Remedy, ...]()),
            "notify": get("notify", self._names, tuple[str, ...]()),
        }
        if not self._rule_name:
            return None
        right = None
        if len(self.problems) == before and when is not None:
            right = Rule(on=on, when=when, digest=_digest(on, when, values), **values)
        return self._rule_name, keys["name"], right

    def _kind(self, node: Node) -> Kind:
        return self._choice(node, Kind)

    @staticmethod
    def _likely(keys: Mapping[str, Node]) -> Kind:
        """Return what a rule that does not say it is about, so that its other mistakes are told all the same."""
        node = keys.get("when")
        try:
            condition(str(node.value) if isinstance(node, ScalarNode) else "", Kind.HOST)
        except ExpressionError:
            return Kind.VM
        return Kind.HOST if "remedies" not in keys else Kind.VM

    def _remedies(self, node: Node, on: Kind) -> tuple[Remedy, ...]:
        if not isinstance(node, SequenceNode):
            raise self._mistake(node, "`remedies` is a list")
        if on not in {Kind.VM, Kind.HOST}:
            raise self._mistake(node, "remedies are for rules on a vm or a host")
        if len(node.value) > MAX_REMEDIES:
            raise self._mistake(node, f"more than {MAX_REMEDIES} remedies")
        found = [self._remedy(item, on) for item in node.value]
        return tuple(remedy for remedy in found if remedy is not None)

    def _remedy(self, node: Node, on: Kind) -> Remedy | None:
        keys = self._mapping(node, (*REMEDIES, "lease", "expect"), "a remedy")
        does = self._does(node, keys, on) if keys is not None else ""
        if keys is None or not does:
            return None
        get = Getter(self, keys)
        expect = get("expect", lambda n: self._expect(n, on), None)
        leased = does in {"set", "allocate"}
        if "lease" in keys and not leased:
            self._note(keys["lease"], "`lease` goes with `set` and `allocate`")
        if leased and "lease" not in keys:
            self._note(node, "`lease` is missing: how long the knob stays changed")
        lease_ns = get("lease", self._lease, 0) if leased else 0
        match does:
            case ("set" | "allocate") as word:
                return get(word, lambda n: self._leased(word, n, on, lease_ns, expect), None)
            case "migrate":
                get("migrate", self._migrate, None)
                return MigrateRemedy(expect)
            case "run":
                return RunRemedy(get("run", self._name, ""), expect)
            case word:
                verb = Verb(word)
                return PowerRemedy(verb, get(word, lambda n: self._within(n, verb), _WITHIN_NS), expect)

    def _does(self, node: Node, keys: Mapping[str, Node], on: Kind) -> str:
        """Return the word that says what a remedy does, "" where that is a mistake."""
        does = [word for word in REMEDIES if word in keys]
        if len(does) != 1:
            self._note(node, f"a remedy has one of {', '.join(f'`{word}`' for word in REMEDIES)}")
            return ""
        if does[0] not in (_ON_HOSTS if on is Kind.HOST else _ON_GUESTS):
            self._note(keys[does[0]], "a rule on a host has `allocate`, and `set` of its knobs, one on a vm the rest")
            return ""
        return does[0]

    def _within(self, node: Node, verb: Verb) -> int:
        """Read how long a guest may take, `{within: 90s}`; most verbs have nothing to say: `{}`."""
        keys = self._mapping(node, ("within",) if verb in PATIENT else (), f"`{verb}`")
        within_ns = self._duration(keys["within"]) if keys and "within" in keys else _WITHIN_NS
        if keys and not 0 < within_ns <= MAX_WITHIN_NS:
            raise self._mistake(keys["within"], "a guest is given more than 0s and at most 1h")
        return within_ns

    def _stranger(self, name: str, known: Sequence[str], what: str) -> str:
        if what.startswith("`set`"):
            return unknown_knob(name, Kind.HOST if what.endswith("host") else Kind.VM)
        return super()._stranger(name, known, what)

    def _set(self, node: Node, on: Kind, lease_ns: int, expect: Expect | None) -> SetRemedy:
        before = len(self.problems)
        knobs = self._mapping(node, knob_names(node, on), "`set` of a host" if on is Kind.HOST else "`set`")
        if knobs is None or len(knobs) != 1:
            message = "`set` has one knob, such as `cpu_shares: current * 2`"
            raise Mistake(message) if len(self.problems) > before else self._mistake(node, message)
        ((name, value),) = knobs.items()
        knob = known(name)
        if knob.is_set:
            return SetRemedy(name, self._numbers(value, knob, on), lease_ns, expect)
        found, scale = self._target(value, knob, on)
        lifts = knob.limit and found.value({}, math.nan) == NO_LIMIT
        return SetRemedy(name, found, lease_ns, expect, scale, lifts)

    def _target(self, node: Node, knob: Knob, on: Kind) -> tuple[Formula, int]:
        """Return a knob's formula, and how many of the knob's own units its unit has."""
        found = self._compiled(node, lambda text: formula(text, on, knob.own_unit))
        if found.unit not in {None, knob.own_unit, knob.unit}:
            raise self._mistake(node, f"`{knob.name}` is {counted(knob)}, these are {found.unit}")
        scale = knob.per_unit if found.unit is knob.unit else 1
        constant = found.value({}, math.nan)
        fits = constant is None or knob.low <= constant * scale <= knob.high
        if not fits and not (knob.limit and constant == NO_LIMIT):
            raise self._mistake(node, f"`{knob.name}` is {bounds(knob)}, not {constant:g}")
        return found, scale

    def _numbers(self, node: Node, knob: Knob, on: Kind) -> Formula:
        """Read a list of CPUs or nodes such as `0-3,6`."""
        try:
            numbers = numbers_in(self._scalar(node).replace(" ", ""))
        except ValueError as error:
            raise self._mistake(node, f"`{knob.name}`: {error}") from None
        found = formula(str(numbers), on, knob.own_unit)
        found.text = list_of(numbers)
        return found

    def _leased(self, word: str, node: Node, on: Kind, lease_ns: int, expect: Expect | None) -> Remedy:
        if word == "set":
            return self._set(node, on, lease_ns, expect)
        return self._allocate(node, lease_ns, expect)

    def _allocate(self, node: Node, lease_ns: int, expect: Expect | None) -> AllocateRemedy:
        """Read `{policy: demand, resource: cpu}`; also `by: quota` in place of shares, and a `reserve` of the host."""
        known = ("policy", "resource", "by", "reserve")
        keys = self._mapping(node, known, "`allocate`") if isinstance(node, MappingNode) else None
        if keys is None or not {"policy", "resource"} <= keys.keys():
            raise self._mistake(node, _ALLOCATE)
        policy = self._choice(keys["policy"], AllocationPolicy)
        resource = self._choice(keys["resource"], Resource)
        by: Literal["shares", "quota"] = "shares"
        if "by" in keys:
            if resource is not Resource.CPU or self._scalar(keys["by"]) not in {"shares", "quota"}:
                raise self._mistake(keys["by"], "`by` is `shares` or `quota`, and goes with the resource cpu")
            by = "quota" if self._scalar(keys["by"]) == "quota" else "shares"
        reserve = self._share(keys["reserve"]) if "reserve" in keys else 0.0
        return AllocateRemedy(policy, resource, lease_ns, expect, reserve, by)

    def _share(self, node: Node) -> float:
        found = _PERCENT.fullmatch(self._scalar(node))
        if found is None or not 0 <= float(found[1]) < 100:
            raise self._mistake(node, "a reserve is a share of the host such as 10%, less than all of it")
        return float(found[1]) / 100

    def _migrate(self, node: Node) -> None:
        keys = self._mapping(node, ("to",), "`migrate`") if isinstance(node, MappingNode) else None
        if keys is None or "to" not in keys:
            raise self._mistake(node, _MIGRATE)
        if self._scalar(keys["to"]) != "best":
            raise self._mistake(keys["to"], _MIGRATE)

    def _expect(self, node: Node, on: Kind) -> Expect:
        text = self._scalar(node)
        cut = list(_WITHIN.finditer(text))[-1:]
        if not cut or not text[: cut[0].start()].strip() or not text[cut[0].end() :].strip():
            raise self._mistake(node, "`expect` is written `<condition> within <duration>`")
        start, rest = cut[0].start(), text[cut[0].end() :]
        at = cut[0].end() + len(rest) - len(rest.lstrip())
        try:
            within_ns = duration_ns(rest.strip())
        except ValueError as error:
            raise self._mistake(node, str(error), at) from None
        if within_ns == 0:
            raise self._mistake(node, "an effect needs more than 0s", at)
        expected = self._measured(node, on, text[:start].rstrip())
        if not (expected.reads.fields or expected.reads.windows or expected.reads.aggregates):
            raise self._mistake(node, _NO_FIELD)
        return Expect(expected, within_ns)

    def _condition(self, node: Node, on: Kind, part: str | None = None) -> Condition:
        return self._compiled(node, lambda text: condition(text if part is None else part, on))

    def _when(self, node: Node, on: Kind) -> Condition:
        """Read a condition, or signals that must come together: `all: [a, b]`, `at least 3 of vms within 2m: a`."""
        if not isinstance(node, MappingNode):
            return self._measured(node, on)
        if len(node.value) != 1 or not isinstance(node.value[0][0], ScalarNode):
            raise self._mistake(node, _TOGETHER)
        key, value = node.value[0]
        if key.value in {"all", "any"}:
            return self._signals(value, on, "and" if key.value == "all" else "or")
        found = AT_LEAST.fullmatch(" ".join(key.value.split()))
        if found is None:
            raise self._mistake(key, _TOGETHER)
        least, members, span = found.groups()
        kind = Kind.VM if members == "vms" else Kind.HOST
        asked = self._signals(value, kind, "or", span or "").text
        return condition(f"count({members} where {asked}) >= {least}", on)

    def _signals(self, node: Node, on: Kind, sign: str, span: str = "") -> Condition:
        """Read the names of rules whose signals are meant, one or a list of them."""
        nodes = node.value if isinstance(node, SequenceNode) else [node]
        names = [self._name(item) for item in nodes[:MAX_NAMES]]
        if not names or len(nodes) > MAX_NAMES:
            raise self._mistake(node, f"the names of 1 to {MAX_NAMES} rules are needed")
        asked = [f"recent(signals.{name}, {span})" if span else f"signals.{name}" for name in names]
        try:
            found = condition(f" {sign} ".join(asked), on)
        except ExpressionError as error:
            raise self._mistake(node, error.message) from None
        for name, item in zip(names, nodes, strict=True):
            self.mentions.append(Mention(self._rule_name, name, on, self._file, *self._place(item)))
        return found

    def _measured(self, node: Node, on: Kind, part: str | None = None) -> Condition:
        found = self._condition(node, on, part)
        if not (found.reads.signals or found.reads.tags or found.fields):
            raise self._mistake(node, _NO_FIELD)
        return found

    def _compiled(self, node: Node, compile_text: Callable[[str], T]) -> T:
        try:
            found = compile_text(self._scalar(node))
        except ExpressionError as error:
            raise self._mistake(node, error.message, error.column) from None
        for name, on, offset in found.reads.refers if isinstance(found, Condition) else ():
            self.mentions.append(Mention(self._rule_name, name, on, self._file, *self._place(node, offset)))
        return found


def _digest(on: Kind, when: Condition, values: Mapping[str, Any]) -> str:
    """Return what changes whenever the rule's signal does: its state is kept over a reload while this stays."""
    parts = [on, when.text, *(getattr(values[key], "text", values[key]) for key in ("where", "clear", "unless"))]
    parts += [values[key] for key in ("for_ns", "clear_for_ns", "no_data", "during", "not_during")]
    return blake2b(repr(parts).encode(), digest_size=8).hexdigest()
