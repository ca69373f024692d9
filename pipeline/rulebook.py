"""The rules in force: loaded whole or not at all, reloaded when their files change."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
import structlog

from virtpilot.clock import seconds
from virtpilot.errors import RuleError
from virtpilot.lineblocks import LineReader
from virtpilot.model import Kind, Mode, Signal, SignalState, Subject, record_id
from virtpilot.pipeline.measured_fleet import ALSO
from virtpilot.rules.language import RuleSet, Severity, load
from virtpilot.rules.signals.evaluator import Evaluator
from virtpilot.rules.signals.table import Row

log = structlog.get_logger(__name__)

LIBRARY: Final = Path(__file__).resolve().parent.parent / "rules" / "library"
REFUSED: Final = "virtpilot-rules-refused"
_TOLD: Final = 5
_WATCH_NS: Final = seconds(2)


class RuleOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which rules are in force, and how far they may go."""

    paths: Annotated[
        list[str], msgspec.Meta(description="Rule files and folders; empty for the library that virtpilot ships.")
    ] = []
    modes: Annotated[
        dict[str, Mode],
        msgspec.Meta(description="A rule's mode in place of the one in its file; the name `*` stands for all others."),
    ] = {}
    matcher: Annotated[Literal["auto", "durable", "small"], msgspec.Meta(description="The second stage's matcher.")] = (
        "auto"
    )


class Rulebook:
    """Holds the rule set and its evaluator; a bad file never replaces a good one.

    With rules that are loaded already there are no files to read or watch.
    """

    def __init__(self, options: RuleOptions, loaded: RuleSet | None = None) -> None:
        self._paths = [] if loaded is not None else [Path(path) for path in options.paths] or [LIBRARY]
        self._loaded = loaded
        self._modes = dict(options.modes)
        self.matcher = options.matcher
        self._stamp = self._files()
        self._next_look_ns = 0
        self.refusals = 0
        self.problems: tuple[str, ...] = ()
        self.told_refused = False
        """Whether the signal that tells of refused rules fires."""
        self.ruleset = self._load()
        self.evaluator = Evaluator(self.ruleset, also=ALSO)
        self.wanted = self._wanted()
        self.reader = LineReader(self.wanted)
        self.on_look: Callable[[dict[str, object]], None] = lambda _looked: None
        """Told of each time that the files were looked at: what they are, whether they were taken."""
        self.on_reload: Callable[[RuleSet, Evaluator], None] = lambda _ruleset, _evaluator: None

    def _load(self) -> RuleSet:
        ruleset = self._loaded or load(self._paths)
        if not self._modes:
            return ruleset
        rules = tuple(
            msgspec.structs.replace(rule, mode=self._modes.get(rule.name, self._modes.get("*", rule.mode)))
            for rule in ruleset.rules
        )
        return msgspec.structs.replace(ruleset, rules=rules)

    def _wanted(self) -> Mapping[str, frozenset[str]]:
        wanted = dict(self.ruleset.wanted())
        for measurement, fields in ALSO.items():
            wanted[measurement] = wanted.get(measurement, frozenset()) | fields
        wanted["knob"] = wanted.get("knob", frozenset()) | {"value_count"}
        return wanted

    def row(self, kind: Kind, subject_id: str) -> Row | None:
        """Return a subject as last measured, None where it is not known; by the evaluator of the rules in force."""
        return self.evaluator.row(kind, subject_id)

    def fragments(self) -> Iterator[bytes]:
        """Yield the signals' state but for the windows' as JSON text, piece by piece."""
        return self.evaluator.fragments()

    def _files(self) -> Sequence[tuple[str, int, int]]:
        """Return what tells a change: every rule file with its size and modification time."""
        found = []
        for path in self._paths:
            for file in sorted(path.rglob("*.yaml")) if path.is_dir() else [path]:
                try:
                    status = file.stat()
                except OSError:
                    continue
                found.append((str(file), status.st_size, status.st_mtime_ns))
        return found

    def looked(self) -> dict[str, object]:
        """Return what is in force and what the files are just now: their digests, and the first of their mistakes."""
        files = {}
        for path, _size, _time_ns in self._files():
            with contextlib.suppress(OSError):
                files[path] = sha256(Path(path).read_bytes()).hexdigest()
        rules = {rule.name: f"{rule.mode} {rule.digest}" for rule in self.ruleset.rules}
        digest = sha256(msgspec.json.encode(rules)).hexdigest()
        mistakes = list(self.problems[:_TOLD])
        return {"taken": not mistakes, "count": len(rules), "digest": digest, "files": files, "mistakes": mistakes}

    def watch(self, now_ns: int) -> None:
        """Reload when a file has changed; refused whole, with all its errors, when it has mistakes."""
        if now_ns < self._next_look_ns:
            return
        self._next_look_ns = now_ns + _WATCH_NS
        stamp = self._files()
        if stamp != self._stamp:
            self._stamp = stamp
            self.reload()

    def news(self, now_ns: int, cluster: str) -> list[Signal]:
        """Return the signal that rule files are refused, or that they no longer are, when it changes."""
        refused = bool(self.problems)
        if refused is self.told_refused:
            return []
        self.told_refused = refused
        previous, state = SignalState.INACTIVE, SignalState.FIRING
        return [
            Signal(
                id=record_id("sg", REFUSED, cluster, refused, now_ns),
                cause=f"tick/{now_ns}",
                rule=REFUSED,
                subject=Subject(Kind.CLUSTER, cluster, cluster),
                previous=previous if refused else state,
                state=state if refused else previous,
                at_ns=now_ns,
                severity=Severity.CRITICAL,
                about="The rule files are not taken; the last good rules stay in force.",
                annotations={"problems": "\n".join(self.problems[:_TOLD])} if refused else {},
            )
        ]

    def reload(self) -> None:
        """Load again; the signals of unchanged rules keep their state."""
        try:
            ruleset = self._load()
        except RuleError as error:
            self.refusals += 1
            self.problems = tuple(map(str, error.problems))
            log.error("rules refused, the last good ones stay", problems=self.problems)
            self.on_look(self.looked())
            return
        evaluator = Evaluator(ruleset, also=ALSO)
        evaluator.take_over(self.evaluator)
        self.problems = ()
        self.ruleset, self.evaluator = ruleset, evaluator
        self.wanted = self._wanted()
        self.reader = LineReader(self.wanted)
        self.on_reload(ruleset, evaluator)
        self.on_look(self.looked())
        log.info("rules loaded", rules=len(ruleset.rules))
