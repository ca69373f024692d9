"""Test files from disk: `NAME.test.yaml` beside `NAME.yaml`, every mistake at its place."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from uuid import NAMESPACE_URL, uuid5

from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from virtpilot.clock import SECOND, seconds
from virtpilot.errors import Problem
from virtpilot.fields import FIELDS, names
from virtpilot.model import Kind, Mode, Result, SignalState
from virtpilot.refusals import BY_AGENT, BY_CONTROLLER
from virtpilot.rules.language.devices import DECLARED, Declared
from virtpilot.rules.language.knob_words import knob_names
from virtpilot.rules.language.nearest import hint
from virtpilot.rules.language.nodes import Getter, Mistake, NodeReader
from virtpilot.rules.language.safe_yaml import compose, read
from virtpilot.rules.testing.actions import wrong_action
from virtpilot.rules.testing.records import (
    NONE,
    WHATS,
    Actor,
    Answer,
    Device,
    Expectation,
    Measured,
    RuleTest,
    TestFile,
)
from virtpilot.rules.testing.series import Series, SeriesError, series

SUFFIX: Final = ".test.yaml"
START_NS: Final = 1_767_225_600 * SECOND  # Thursday 2026-01-01 00:00 UTC
MAX_TESTS: Final = 500
MAX_ACTORS: Final = 200
MAX_SPAN_NS: Final = seconds(7 * 86_400)
_ANSWERS: Final = (*(result.value for result in (Result.DONE, Result.REFUSED, Result.FAILED)), NONE)
_STATES: Final[Mapping[str, tuple[str, ...]]] = {
    "signal": tuple(SignalState),
    "decision": ("accepted", "refused", NONE),
    "command": ("given", NONE),
    "outcome": (*Result, NONE),
}
_GUARDS: Final = {"decision": BY_CONTROLLER, "outcome": BY_AGENT}
_NOT_WITH: Final = {"signal": ("guard", "action", "reason"), "command": ("guard", "reason")}
_TEST_KEYS: Final = ("name", "about", "every", "start", "mode", "fleet", "hosts", "guests", "answers", "expect")
_DEVICES: Final = {kind: [one for one in DECLARED.values() if one.owner is kind] for kind in (Kind.HOST, Kind.VM)}
_ACTOR_KEYS: Final = {
    Kind.HOST: ("tags", "series", *(one.word for one in _DEVICES[Kind.HOST])),
    Kind.VM: ("host", "uuid", "tags", "knobs", "series", *(one.word for one in _DEVICES[Kind.VM])),
}
_EXPECT_KEYS: Final = (*WHATS, "of", "at", "from", "by", "is", "guard", "action", "reason")


def load_tests(file: Path) -> TestFile | list[Problem]:
    """Return a file's tests, or every mistake in it."""
    text = read(file)
    if isinstance(text, Problem):
        return [text]
    root = compose(text, str(file))
    if isinstance(root, Problem):
        return [root]
    reader = TestReader(file)
    found = reader.tests(root)
    return found if found is not None and not reader.problems else sorted(reader.problems)


class TestReader(NodeReader):
    """Reads one test file's root node."""

    __test__ = False

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._path = path
        self._guests: frozenset[str] = frozenset()
        self._hosts: frozenset[str] = frozenset()

    def tests(self, root: Node | None) -> TestFile | None:
        """Return the tests that are right; `problems` has what was wrong."""
        if root is None:
            self.problems.append(Problem(self._file, 1, 1, "the file is empty: `virtpilot: 1` and `tests:` are needed"))
            return None
        top = self._mapping(root, ("virtpilot", "rules", "tests"), "the file")
        if top is None:
            return None
        version = top.get("virtpilot")
        if not isinstance(version, ScalarNode) or version.value != "1":
            self._note(version or root, "`virtpilot: 1` is needed: the version of the format")
        get = Getter(self, top)
        found = get("tests", self._tests, tuple[RuleTest, ...]())
        if "tests" not in top or (not found and not self.problems):
            self._note(top.get("tests", root), "`tests` is missing: nothing is tested")
        return TestFile(self._path, get("rules", self._rules, (self._beside(root),)), found)

    def _beside(self, root: Node) -> Path:
        """Return the rule file that a test file stands beside."""
        path = self._path.with_name(self._path.name.removesuffix(SUFFIX) + ".yaml")
        if not self._path.name.endswith(SUFFIX):
            self._note(root, f"a test file is named NAME{SUFFIX}, beside NAME.yaml")
        return path

    def _rules(self, node: Node) -> tuple[Path, ...]:
        return tuple(self._path.parent / self._scalar(item) for item in self._items(node, "rules", "rule files"))

    def _items(self, node: Node, key: str, of: str, most: int = MAX_TESTS) -> Sequence[Node]:
        if not isinstance(node, SequenceNode):
            raise self._mistake(node, f"`{key}` is a list of {of}")
        if len(node.value) > most:
            raise self._mistake(node, f"more than {most} {of}")
        items: Sequence[Node] = node.value
        return items

    def _tests(self, node: Node) -> tuple[RuleTest, ...]:
        found: list[RuleTest] = []
        for item in self._items(node, "tests", "tests"):
            test = self._test(item)
            if test is not None:
                if any(test.name == other.name for other in found):
                    self._note(item, f"a test named {test.name!r} stands here twice")
                found.append(test)
        return tuple(found)

    def _test(self, node: Node) -> RuleTest | None:
        keys = self._mapping(node, _TEST_KEYS, "a test")
        if keys is None:
            return None
        for needed in ("name", "expect"):
            if needed not in keys:
                self._note(node, f"`{needed}` is missing")
        get = Getter(self, keys)
        get("about", self._text, "")
        fleet = get("fleet", self._fleet, None)
        actors = self._cast(get)
        if not actors and fleet is None:
            self._note(node, "nothing is measured: `hosts` and `guests`, or a simulated `fleet`, are needed")
        self._check_cast(keys, actors)
        answers = get("answers", self._answers, tuple[Answer, ...]())
        expectations = get(
            "expect", lambda item: self._expectations(item, anyone=fleet is not None), tuple[Expectation, ...]()
        )
        test = RuleTest(
            name=get("name", self._text, ""),
            line=node.start_mark.line + 1,
            every_ns=get("every", self._every, seconds(10)),
            start_ns=get("start", self._start, START_NS),
            mode=get("mode", lambda item: self._choice(item, Mode), None),
            fleet=fleet,
            actors=actors,
            answers=answers,
            expectations=expectations,
        )
        return test if expectations else None

    def _fleet(self, node: Node) -> Path:
        name = self._scalar(node)
        return Path(name) if name == "demo" else self._path.parent / name

    def _check_cast(self, keys: Mapping[str, Node], actors: Sequence[Actor]) -> None:
        self._hosts = frozenset(actor.name for actor in actors if actor.kind is Kind.HOST)
        self._guests = frozenset(actor.name for actor in actors if actor.kind is Kind.VM)
        for key in ("answers", "hosts", "guests", "every", "start"):
            if "fleet" in keys and key in keys:
                self._note(keys[key], f"`{key}` does not go with `fleet`: the simulated fleet has its own")
        for actor in actors:
            if actor.kind is Kind.VM and actor.host and actor.host not in self._hosts:
                instead = hint(actor.host, sorted(self._hosts))
                self._note(keys["guests"], f"{actor.name}'s host {actor.host!r} is not among `hosts`{instead}")

    def _every(self, node: Node) -> int:
        found = self._duration(node)
        if found < SECOND or found % SECOND:
            raise self._mistake(node, "samples come every whole second at most")
        return found

    def _start(self, node: Node) -> int:
        text = self._scalar(node)
        try:
            found = datetime.fromisoformat(text)
        except ValueError:
            found = None
        if found is None or found.tzinfo is None or not 2000 <= found.year <= 2100:
            raise self._mistake(node, f"{text[:40]!r} is no time such as 2026-01-05T14:00:00+01:00")
        return int(found.timestamp()) * SECOND

    def _cast(self, get: Getter) -> tuple[Actor, ...]:
        """Return the hosts and the guests of a test."""
        hosts = get("hosts", lambda node: tuple(self._actors(node, Kind.HOST, "hosts")), tuple[Actor, ...]())
        return hosts + get("guests", lambda node: tuple(self._actors(node, Kind.VM, "guests")), tuple[Actor, ...]())

    def _actors(self, node: Node, kind: Kind, what: str) -> Iterator[Actor]:
        found = self._named(node, what)
        if len(found) > MAX_ACTORS:
            raise self._mistake(node, f"more than {MAX_ACTORS} {what}")
        for name, value in found.items():
            keys = self._mapping(value, _ACTOR_KEYS[kind], f"a {kind}")
            if keys is None:
                continue
            if kind is Kind.VM and "host" not in keys:
                self._note(value, f"`host` is missing: where {name} runs")
            get = Getter(self, keys)
            own: dict[str, Any] = {
                "tags": get("tags", self._tags, dict[str, str]()),
                "knobs": get("knobs", self._knobs, dict[str, int]()),
                "series": get("series", lambda item: self._measured(item, kind.value), Measured()),
                "devices": tuple(self._devices(keys, kind)),
            }
            host = name if kind is Kind.HOST else get("host", self._scalar, "")
            unique = name if kind is Kind.HOST else get("uuid", self._scalar, str(uuid5(NAMESPACE_URL, name)))
            yield Actor(kind=kind, name=name, id=unique, host=host, **own)

    def _named(self, node: Node, what: str) -> dict[str, Node]:
        """Return a mapping whose keys are names of the author's choice."""
        if not isinstance(node, MappingNode):
            raise self._mistake(node, f"`{what}` is a mapping of names")
        return self._mapping(node, [self._name(key) for key, _value in node.value], what) or {}

    def _tags(self, node: Node) -> dict[str, str]:
        return {name: self._scalar(value) for name, value in self._named(node, "tags").items()}

    def _knobs(self, node: Node) -> dict[str, int]:
        found = self._mapping(node, knob_names(node), "`knobs`") or {}
        return {name: self._whole(value) for name, value in found.items()}

    def _whole(self, node: Node) -> int:
        text = self._scalar(node)
        if not text.isascii() or not text.isdigit() or len(text) > 18:
            raise self._mistake(node, f"{text[:40]!r} is not a whole number")
        return int(text)

    def _devices(self, keys: Mapping[str, Node], kind: Kind) -> Iterator[Device]:
        """Yield what an actor has of its own: `disks: {vda: {…}}`, or `job: {…}` of which there is one."""
        for declared in _DEVICES[kind]:
            if declared.word in keys:
                with contextlib.suppress(Mistake):
                    yield from self._of_one_kind(keys[declared.word], declared)

    def _of_one_kind(self, node: Node, declared: Declared) -> Iterator[Device]:
        measurement = declared.device.value
        if declared.tag:
            if not isinstance(node, MappingNode):
                raise self._mistake(node, f"`{declared.word}` is a mapping of names to series")
            texts = [str(key.value) if isinstance(key, ScalarNode) else "?" for key, _value in node.value]
            for name, value in (self._mapping(node, texts, f"`{declared.word}`") or {}).items():
                yield Device(measurement, {declared.tag: name}, self._measured(value, measurement))
            return
        known = [*names(measurement), *filter(None, [declared.text])]
        found = self._mapping(node, known, f"`{declared.word}`") or {}
        tags = {declared.text: self._scalar(found.pop(declared.text))} if declared.text in found else {}
        yield Device(measurement, tags, {name: self._series(value, measurement, name) for name, value in found.items()})

    def _measured(self, node: Node, measurement: str) -> Measured:
        found = self._mapping(node, names(measurement), f"the series of a {measurement}") or {}
        return {name: self._series(value, measurement, name) for name, value in found.items()}

    def _series(self, node: Node, measurement: str, field: str) -> Series:
        try:
            return series(self._scalar(node), FIELDS[measurement, field].unit)
        except SeriesError as error:
            raise self._mistake(node, error.message, error.column) from None

    def _answers(self, node: Node) -> tuple[Answer, ...]:
        found = [self._answer(item) for item in self._items(node, "answers", "answers")]
        return tuple(answer for answer in found if answer is not None)

    def _answer(self, node: Node) -> Answer | None:
        keys = self._mapping(node, ("to", "of", "after", "result", "reason", "then"), "an answer")
        if keys is None:
            return None
        get = Getter(self, keys)
        if "of" not in keys:
            self._note(node, "`of` is missing: the guest whose command is answered")
        result = get("result", lambda item: self._one_of(item, _ANSWERS), Result.DONE.value)
        return Answer(
            to=get("to", lambda item: self._action(item, anyone=False), ""),
            of=get("of", lambda item: self._one_of(item, sorted(self._guests)), ""),
            after_ns=get("after", self._duration, SECOND),
            result=None if result == NONE else Result(result),
            reason=get("reason", self._text, ""),
            then=get("then", lambda item: self._measured(item, Kind.VM.value), Measured()),
        )

    def _action(self, node: Node, *, anyone: bool) -> str:
        """Return part of an action's name; of a simulated fleet's hosts nothing is known."""
        text = self._text(node)
        wrong = wrong_action(text, None if anyone else sorted(self._hosts))
        if wrong:
            raise self._mistake(node, wrong)
        return text

    def _one_of(self, node: Node, known: Sequence[str]) -> str:
        text = self._scalar(node)
        if text not in known:
            told = ", ".join(known) or "nothing"
            raise self._mistake(node, f"{text[:80]!r} is not one of {told}{hint(text, known)}")
        return text

    def _expectations(self, node: Node, *, anyone: bool) -> tuple[Expectation, ...]:
        items = self._items(node, "expect", "expectations")
        if not items:
            self._note(node, "nothing is expected")
        found = [self._expectation(item, anyone=anyone) for item in items]
        return tuple(one for one in found if one is not None)

    def _expectation(self, node: Node, *, anyone: bool) -> Expectation | None:
        before = len(self.problems)
        keys = self._mapping(node, _EXPECT_KEYS, "an expectation")
        if keys is None:
            return None
        whats = [what for what in WHATS if what in keys]
        if len(whats) != 1:
            self._note(node, f"an expectation is about one of {', '.join(WHATS)}, each with the name of its rule")
            return None
        (what,) = whats
        for needed in ("of", "is"):
            if needed not in keys:
                self._note(node, f"`{needed}` is missing")
        get = Getter(self, keys)
        known = [*sorted(self._guests | self._hosts), Kind.CLUSTER.value]
        from_ns, until_ns = self._span(node, what, keys)
        found = Expectation(
            what=what,
            rule=get(what, self._name, ""),
            of=get("of", self._scalar if anyone else lambda item: self._one_of(item, known), ""),
            from_ns=from_ns,
            until_ns=until_ns,
            state=get("is", lambda item: self._one_of(item, _STATES[what]), ""),
            guard=get("guard", lambda item: self._one_of(item, _GUARDS.get(what, [item.value])), ""),
            action=get("action", lambda item: self._action(item, anyone=anyone), ""),
            reason=get("reason", self._text, ""),
            text=_told(keys),
            line=node.start_mark.line + 1,
            column=node.start_mark.column + 1,
        )
        return found if len(self.problems) == before else None

    def _span(self, node: Node, what: str, keys: Mapping[str, Node]) -> tuple[int, int]:
        """Return the time of a signal's state, or between which times a record comes to be."""
        needed, out = ("at", ("by", "from")) if what == "signal" else ("by", ("at",))
        if needed not in keys:
            self._note(node, f"`{needed}` is missing: the time from the test's start")
        for key in out:
            if key in keys:
                self._note(keys[key], f"`{key}` does not go with `{what}`: write `{needed}`")
        for key in _NOT_WITH.get(what, ()):
            if key in keys:
                self._note(keys[key], f"`{key}` does not go with `{what}`")
        get = Getter(self, keys)
        until_ns = get(needed, self._time, 0)
        return (until_ns if what == "signal" else get("from", self._time, 0)), until_ns

    def _time(self, node: Node) -> int:
        found = self._duration(node)
        if found > MAX_SPAN_NS:
            raise self._mistake(node, "a test is 7 days long at most")
        return found


def _told(keys: Mapping[str, Node]) -> str:
    """Return an expectation as one line."""
    return ", ".join(f"{key}: {value.value}" for key, value in keys.items())
