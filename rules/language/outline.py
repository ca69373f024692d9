"""What a rule file is made of: rules, groups with what their rules have in common, templates, other files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Final

import msgspec
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from virtpilot.errors import Problem
from virtpilot.rules.language.nearest import hint
from virtpilot.rules.language.nodes import MAX_PROBLEMS, Mistake, NodeReader

FILE_KEYS: Final = ("virtpilot", "include", "templates", "groups", "rules")
MAX_RULES: Final = 1_000
MAX_TEMPLATES: Final = 200
MAX_GROUPS: Final = 200
MAX_INCLUDES: Final = 50
MAX_PARAMETERS: Final = 30
MAX_TEMPLATE_PARTS: Final = 300
MAX_FILLED: Final = 4_000
_MARK: Final = re.compile(r"\{\{\s*([A-Za-z_][A-Za-z0-9_]{0,63})\s*\}\}")
PARAMETER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
# What tells rules apart and what a template is made of cannot be in common.
OWN: Final = ("name", "template", "with")


class Template(msgspec.Struct, frozen=True):
    """A rule with gaps: its keys, and each gap's name with what fills it where a rule does not (None: it must)."""

    parameters: Mapping[str, str | None]
    rule: MappingNode


Templates = Mapping[str, Template]


class Entry(msgspec.Struct, frozen=True):
    """One rule as written, with the keys that it has in common with its group."""

    node: Node
    group: str
    common: tuple[tuple[Node, Node], ...]


class Outline(NodeReader):
    """Reads a file's root node: `includes`, `templates` and `entries`; `expanded` gives whole rules."""

    def __init__(self, file: str, rule_keys: tuple[str, ...]) -> None:
        super().__init__(file)
        self.includes: list[tuple[str, Node]] = []
        self.templates: dict[str, Template] = {}
        self.entries: list[Entry] = []
        self._rule_keys = rule_keys

    def read(self, root: Node | None) -> None:
        """Take a file's root node."""
        if root is None:
            self.problems.append(Problem(self._file, 1, 1, "the file is empty: `virtpilot: 1` and `rules:` are needed"))
            return
        top = self._mapping(root, FILE_KEYS, "the file")
        if top is None:
            return
        self._version(root, top)
        if top.keys().isdisjoint(FILE_KEYS[1:]):
            self._note(root, "`rules` is missing")
        for node in self._list(top, "include", MAX_INCLUDES):
            self._include(node)
        if "templates" in top:
            self._templates(top["templates"])
        self.entries += [Entry(node, "", ()) for node in self._list(top, "rules", MAX_RULES)]
        for node in self._list(top, "groups", MAX_GROUPS):
            self._group(node)

    def _list(self, keys: Mapping[str, Node], key: str, most: int) -> list[Node]:
        node = keys.get(key)
        if node is None:
            return []
        if not isinstance(node, SequenceNode):
            self._note(node, f"`{key}` is a list")
            return []
        if len(node.value) > most:
            self._note(node, f"more than {most} {key} in one file")
            return []
        return list(node.value)

    def _version(self, root: Node, top: Mapping[str, Node]) -> None:
        node = top.get("virtpilot")
        if node is None:
            self._note(root, "`virtpilot: 1` is missing: the version of the format")
        elif not (isinstance(node, ScalarNode) and node.value == "1"):
            self._note(node, "this version of the format is not known; write `virtpilot: 1`")

    def _include(self, node: Node) -> None:
        text = node.value if isinstance(node, ScalarNode) else ""
        path = PurePosixPath(text)
        if not text or path.is_absolute() or len(text) > 200 or path.suffix != ".yaml":
            self._note(node, "an include is the path of a *.yaml file, from this file's folder on")
        elif any(part.startswith(".") for part in path.parts):
            self._note(node, "an include stays below this file's folder, and out of hidden ones")
        else:
            self.includes.append((text, node))

    def _templates(self, node: Node) -> None:
        if not isinstance(node, MappingNode) or len(node.value) > MAX_TEMPLATES:
            self._note(node, f"`templates` is a mapping of names to templates, {MAX_TEMPLATES} at most")
            return
        for key, value in node.value:
            try:
                name = self._name(key)
                if name in self.templates:
                    raise self._mistake(key, f"`{name}` stands here twice")
                self.templates[name] = self._template(value)
            except Mistake:
                continue

    def _template(self, node: Node) -> Template:
        keys = self._mapping(node, ("parameters", "rule"), "a template") or {}
        rule = keys.get("rule")
        if not isinstance(rule, MappingNode):
            raise self._mistake(node, "a template has a `rule`, a mapping of a rule's keys")
        if sum(1 for _ in _nodes(rule)) > MAX_TEMPLATE_PARTS:
            raise self._mistake(rule, f"a template's rule has {MAX_TEMPLATE_PARTS} parts at most")
        for key, _value in rule.value:
            if isinstance(key, ScalarNode) and key.value in OWN:
                raise self._mistake(key, f"`{key.value}` is each rule's own, not its template's")
        parameters = self._parameters(keys["parameters"]) if "parameters" in keys else {}
        for part in _nodes(rule):
            for mark in _MARK.finditer(part.value) if isinstance(part, ScalarNode) else ():
                if mark[1] not in parameters and hint(mark[1], list(parameters)):
                    raise self._mistake(part, f"`{mark[1]}` is no parameter{hint(mark[1], list(parameters))}")
        return Template(parameters, rule)

    def _parameters(self, node: Node) -> dict[str, str | None]:
        if not isinstance(node, MappingNode) or len(node.value) > MAX_PARAMETERS:
            raise self._mistake(node, f"`parameters` is a mapping of names to values, {MAX_PARAMETERS} at most")
        found: dict[str, str | None] = {}
        for key, value in node.value:
            name = key.value if isinstance(key, ScalarNode) else ""
            if not PARAMETER.fullmatch(name) or name in found:
                raise self._mistake(key, "a parameter has a name of its own: letters, digits and `_`")
            found[name] = self._scalar(value) or None
        return found

    def _group(self, node: Node) -> None:
        keys = self._mapping(node, ("name", "about", "defaults", "rules"), "a group")
        if keys is None:
            return
        for needed in ("name", "rules"):
            if needed not in keys:
                self._note(node, f"`{needed}` is missing in the group")
        try:
            name = self._name(keys["name"]) if "name" in keys else ""
            common = self._common(keys["defaults"]) if "defaults" in keys else ()
        except Mistake:
            return
        self.entries += [Entry(rule, name, common) for rule in self._list(keys, "rules", MAX_RULES)]

    def _common(self, node: Node) -> tuple[tuple[Node, Node], ...]:
        allowed = [key for key in self._rule_keys if key not in OWN]
        self._mapping(node, allowed, "`defaults`")
        if not isinstance(node, MappingNode):
            raise Mistake
        return tuple(pair for pair in node.value if getattr(pair[0], "value", None) in allowed)

    def expanded(self, templates: Templates) -> Iterator[tuple[Node, str]]:
        """Yield each rule with all its keys, those of its group and template too, and its group's name."""
        for entry in self.entries:
            if len(self.problems) >= MAX_PROBLEMS:
                return
            try:
                yield self._whole(entry, templates), entry.group
            except Mistake:
                continue

    def _whole(self, entry: Entry, templates: Templates) -> Node:
        node = entry.node
        if not isinstance(node, MappingNode):
            return node
        keys = {key.value: value for key, value in node.value if isinstance(key, ScalarNode)}
        base = list(entry.common)
        if "template" in keys:
            base = _over(base, self._filled(keys, templates))
        elif "with" in keys:
            raise self._mistake(keys["with"], "`with` goes with `template`")
        if not base:
            return node
        own = [pair for pair in node.value if getattr(pair[0], "value", "") not in {"template", "with"}]
        return MappingNode(node.tag, _over(base, own), node.start_mark, node.end_mark)

    def _filled(self, keys: Mapping[str, Node], templates: Templates) -> list[tuple[Node, Node]]:
        place = keys["template"]
        name = self._name(place)
        template = templates.get(name)
        if template is None:
            raise self._mistake(place, f"there is no template `{name}`{hint(name, list(templates))}")
        given = self._given(keys["with"], template) if "with" in keys else {}
        values = {name: given.get(name, value) for name, value in template.parameters.items()}
        missing = [f"`{name}`" for name, value in values.items() if value is None]
        if missing:
            raise self._mistake(place, f"the template `{name}` needs {', '.join(missing)} in `with`")
        filled = {name: value for name, value in values.items() if value is not None}
        return [(_copied(key, filled, place), _copied(value, filled, place)) for key, value in template.rule.value]

    def _given(self, node: Node, template: Template) -> dict[str, str]:
        keys = self._mapping(node, tuple(template.parameters), "`with`") or {}
        return {name: self._scalar(value) for name, value in keys.items()}


def _over(below: list[tuple[Node, Node]], above: list[tuple[Node, Node]]) -> list[tuple[Node, Node]]:
    """Return keys and values, those of `above` in place of equal ones below."""
    names = {key.value for key, _value in above if isinstance(key, ScalarNode)}
    return [pair for pair in below if getattr(pair[0], "value", None) not in names] + above


def _nodes(node: Node) -> Iterator[Node]:
    yield node
    for part in node.value if isinstance(node, MappingNode | SequenceNode) else ():
        for inner in part if isinstance(part, tuple) else (part,):
            yield from _nodes(inner)


class Filled(ScalarNode):
    """A value from a template; mistakes in it stand where the template is used."""


def _copied(node: Node, values: Mapping[str, str], place: Node) -> Node:
    """Return a node with its gaps filled; marks of other names stay, for texts that have some."""
    marks = (place.start_mark, place.end_mark)
    if isinstance(node, ScalarNode):
        text = _MARK.sub(lambda mark: values.get(mark[1], mark[0]), node.value)
        return Filled(node.tag, text[: MAX_FILLED + 1], *marks)
    if isinstance(node, SequenceNode):
        return SequenceNode(node.tag, [_copied(item, values, place) for item in node.value], *marks)
    pairs = [(_copied(key, values, place), _copied(value, values, place)) for key, value in node.value]
    return MappingNode(node.tag, pairs, *marks)
