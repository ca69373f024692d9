"""Runs rule tests: each plays its series, or a simulated fleet, through the production controller in virtual time."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Final

from virtpilot.clock import SECOND, Clock
from virtpilot.errors import ConfigError, Problem, RuleError
from virtpilot.events import Event
from virtpilot.model import Command, Kind, Outcome, Result, Signal, SignalState
from virtpilot.pipeline.foresight import Foresight
from virtpilot.pipeline.rehearsal import CLUSTER, Rehearsal
from virtpilot.pipeline.rulebook import RuleOptions
from virtpilot.pipeline.stage import Stage
from virtpilot.pipeline.standin import Reply
from virtpilot.rules.language import RuleSet, load
from virtpilot.rules.language.nearest import hint
from virtpilot.rules.testing.coverage import Clause, Coverage, Reading
from virtpilot.rules.testing.document import SUFFIX, load_tests
from virtpilot.rules.testing.records import Answer, Expectation, RuleTest, TestFile
from virtpilot.rules.testing.report import Failure, Tested, TestedFile
from virtpilot.rules.testing.verdict import History, span, words

_KNOBS: Final = {"cpu_shares": 1024}
_TICKS: Final = 10
_BEFORE: Final = 3
_AFTER: Final = 1


def run(paths: Iterable[Path], clock: Clock) -> list[TestedFile]:
    """Run the tests in files and folders; raises RuleError with every mistake in any of them."""
    return play(load_all(paths), clock)


def play(loaded: Iterable[tuple[TestFile, RuleSet]], clock: Clock) -> list[TestedFile]:
    """Run the tests of files that are loaded, each with its rules."""
    return [_run_file(file, rules, clock) for file, rules in loaded]


def load_all(paths: Iterable[Path]) -> list[tuple[TestFile, RuleSet]]:
    """Return the tests of all files, each with its rules; raises RuleError."""
    problems: list[Problem] = []
    found: list[tuple[TestFile, RuleSet]] = []
    for path in _files(paths, problems):
        tests = load_tests(path)
        if isinstance(tests, list):
            problems += tests
            continue
        try:
            ruleset = load(tests.rules)
        except RuleError as error:
            problems += error.problems
            continue
        names = {rule.name for rule in ruleset.rules}
        problems += [
            Problem(
                str(path),
                one.line,
                one.column,
                f"no rule named `{one.rule}` is tested here: {', '.join(sorted(names))}{hint(one.rule, names)}",
            )
            for test in tests.tests
            for one in test.expectations
            if one.rule not in names
        ]
        found.append((tests, ruleset))
    if problems:
        raise RuleError(sorted(set(problems)))
    return found


def _files(paths: Iterable[Path], problems: list[Problem]) -> Iterator[Path]:
    """Yield test files; a rule file stands for the test beside it."""
    seen: set[Path] = set()
    for path in paths:
        if path.is_dir():
            found = sorted(path.rglob(f"*{SUFFIX}"))
            if not found:
                problems.append(Problem(str(path), 0, 0, f"no test file (*{SUFFIX}) in this folder"))
        else:
            found = [path if path.name.endswith(SUFFIX) else path.with_name(path.name.removesuffix(".yaml") + SUFFIX)]
        for file in found:
            if file.resolve() not in seen:
                seen.add(file.resolve())
                yield file


def _run_file(file: TestFile, rules: RuleSet, clock: Clock) -> TestedFile:
    coverage = Coverage(rules.rules)
    tested = []
    for test in file.tests:
        begun_ns = clock.monotonic_ns()
        failures = _run_test(file, test, rules, coverage)
        took_s = (clock.monotonic_ns() - begun_ns) / SECOND
        tested.append(Tested(name=test.name, line=test.line, seconds=took_s, failures=failures))
    return TestedFile(path=file.path, tests=tested, coverage=coverage)


def _run_test(file: TestFile, test: RuleTest, rules: RuleSet, coverage: Coverage) -> list[Failure]:
    played = _play(file, test, rules, coverage)
    coverage.tested |= {one.rule for one in test.expectations}
    coverage.fired |= {
        one.rule for one in played.records if isinstance(one, Signal) and one.state is SignalState.FIRING
    }
    wrong = [(expected, happened) for expected in test.expectations if (happened := played.judge(expected))]
    if not wrong:
        return []
    # Once more, the same to the letter, and looked at closely.
    close = Coverage(rules.rules, closely=True)
    played = _play(file, test, rules, close)
    return [_failure(file, test, expected, happened, played, close) for expected, happened in wrong]


def _play(file: TestFile, test: RuleTest, rules: RuleSet, coverage: Coverage) -> History:
    coverage.begin()
    if test.fleet is None:
        return Scene(test, rules).play(coverage)
    modes = {} if test.mode is None else {"*": test.mode}
    return _play_fleet(test, test.fleet, RuleOptions(paths=[str(path) for path in file.rules], modes=modes), coverage)


class Scene:
    """A test's hosts and guests, measured as its series say."""

    def __init__(self, test: RuleTest, rules: RuleSet) -> None:
        self._test = test
        self._waiting = list(test.answers)
        self._given: dict[str, Answer] = {}
        self._actors = {actor.id: actor for actor in test.actors}
        # Ticks as close as the samples ask for: days are played in no time.
        tick_s = max(1.0, test.every_ns / SECOND / _TICKS)
        self._rehearsal = Rehearsal(rules, test.start_ns, self._reply, mode=test.mode, tick_s=tick_s)
        agents = self._rehearsal.agents
        self.stage = Stage(test, agents)
        agents.on_done = self._done
        agents.places |= {actor.id: actor.host for actor in test.actors if actor.kind is Kind.VM}
        for actor in test.actors:
            if actor.kind is Kind.VM:
                agents.knobs |= {(actor.id, knob): value for knob, value in (_KNOBS | actor.knobs).items()}

    def _reply(self, command: Command) -> Reply:
        guest = self._actors[command.action.guest].name
        for answer in self._waiting:
            if answer.of == guest and answer.to in words(command.action):
                self._waiting.remove(answer)
                self._given[command.id] = answer
                return Reply(answer.after_ns, answer.result, answer.reason)
        return Reply()

    def _done(self, told: Outcome, command: Command) -> None:
        answer = self._given.get(command.id)
        if answer is not None and answer.then and told.result is Result.DONE:
            self.stage.change(told.guest, told.at_ns, answer.then)

    def play(self, coverage: Coverage) -> History:
        """Play the test to its end; what nothing comes of is taken at once."""
        rehearsal, test = self._rehearsal, self._test
        last, tick = test.end_ns // test.every_ns, 0
        more = test.end_ns > last * test.every_ns
        foresight = Foresight(rehearsal, self.stage, last, more=more)
        while tick <= last:
            rehearsal.run_until(test.start_ns + tick * test.every_ns)
            rehearsal.measure_all(self.stage.frame(tick))
            seen = None if coverage.closely else foresight.seen(tick)
            if seen is None:
                film = None if coverage.closely else foresight.begun(tick)
                coverage.observe(rehearsal.controller.rulebook.evaluator, film)
            else:
                coverage.look_ahead(*seen)
            skipped = None if coverage.closely else foresight.skip(tick)
            if skipped is not None:
                coverage.look_ahead(*skipped)
                tick += skipped.last - skipped.first + 1
            tick += 1
        rehearsal.run_until(test.start_ns + test.end_ns)
        records = [record for record in rehearsal.records() if not isinstance(record, Event)]
        names = {actor.id: actor.name for actor in test.actors} | {CLUSTER: Kind.CLUSTER.value}
        return History(records, names, test.start_ns)


def _play_fleet(test: RuleTest, path: Path, rules: RuleOptions, coverage: Coverage) -> History:
    """Play a test on a simulated fleet, with its own agents and actuators."""
    # Not before now: most tests need no fleet.
    from virtpilot.pipeline.demo import Demo
    from virtpilot.simulator import scenario

    try:
        with tempfile.TemporaryDirectory(prefix="virtpilot-rules.") as folder:
            demo = Demo(Path(folder), scenario.demo_path() if str(path) == "demo" else path, rules)
            start_ns = demo.clock.now_ns()
            while demo.clock.now_ns() - start_ns < test.end_ns:
                demo.step()
                coverage.observe(demo.controller.rulebook.evaluator)
            kept = (entry.record for entry in demo.controller.entries())
            records = [record for record in kept if not isinstance(record, Event)]
            names = {guest.uuid: guest.name for guest in demo.fleet.view().guests}
            demo.close()
    except ConfigError as error:
        raise RuleError(error.problems) from error
    return History(records, names, start_ns)


def _failure(
    file: TestFile, test: RuleTest, expected: Expectation, happened: str, played: History, coverage: Coverage
) -> Failure:
    return Failure(
        file=str(file.path),
        line=expected.line,
        column=expected.column,
        expected=expected.text,
        happened=happened,
        trace=list(_trace(test, expected, played, coverage)),
    )


def _trace(test: RuleTest, expected: Expectation, played: History, coverage: Coverage) -> Iterator[str]:
    """Yield the values that the rule saw around the time, and what came of them."""
    known = {Kind.CLUSTER.value: CLUSTER} | {actor.name: actor.id for actor in test.actors}
    unique = known.get(expected.of, expected.of)
    start_ns = test.start_ns if test.fleet is None else 0
    readings = coverage.readings.get((expected.rule, unique), [])
    clauses = coverage.clauses[expected.rule]
    # What was seen again and again is told once, with its times.
    alike = [list(same) for _seen, same in groupby(readings, key=lambda one: (one.values, one.held))]
    at = sum(1 for same in alike if same[0].time_ns - start_ns <= expected.until_ns)
    for same in alike[max(at - _BEFORE, 0) : at + _AFTER]:
        first, last = (span(one.time_ns - start_ns) for one in (same[0], same[-1]))
        values = ", ".join(f"{name} {value:g}" for name, value in sorted(same[0].values.items())) or "nothing known"
        yield f"{first if first == last else f'{first} to {last}'} {values}"
        yield f"  {_held(clauses, same[0])}"
    yield from (played.told(record) for record in played.about(expected.rule, expected.of))


def _held(clauses: Sequence[Clause], reading: Reading) -> str:
    """Return whether each comparison held, after the key that they stand in: `when a: true; b: false; clear c: …`."""
    words_of = {True: "true", False: "false", None: "unknown"}
    keys = ["", *(clause.key for clause in clauses)]
    return "; ".join(
        f"{'' if clause.key == former else f'{clause.key} '}{clause.condition.text}: {words_of[held]}"
        for former, clause, held in zip(keys, clauses, reading.held, strict=False)
    )
