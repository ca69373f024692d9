"""The rules in force: reloaded when their files change, never replaced by a bad file."""

from pathlib import Path

import pytest

from virtpilot.clock import seconds
from virtpilot.errors import RuleError
from virtpilot.model import Kind, Mode, Sample, SignalState
from virtpilot.pipeline.rulebook import Rulebook, RuleOptions

GOOD = "virtpilot: 1\nrules:\n  - {name: busy, on: host, when: cpu_usage_ratio > 90%}\n"
OTHER = GOOD + "  - {name: idle, on: host, when: cpu_usage_ratio < 5%}\n"


def host(time_s: int, usage: float) -> Sample:
    return Sample("host", {"host": "h1"}, {"cpu_usage_ratio": usage}, seconds(time_s))


def test_a_changed_file_is_taken_and_unchanged_rules_keep_their_state(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(GOOD)
    book = Rulebook(RuleOptions(paths=[str(tmp_path)]))
    told: list[int] = []
    book.on_reload = lambda ruleset, _evaluator: told.append(len(ruleset.rules))
    assert [signal.rule for signal in book.evaluator.feed([host(1, 0.99)], "c")] == ["busy"]
    file.write_text(OTHER)
    book.watch(seconds(100))
    assert told == [2]
    assert [rule.name for rule, _subject in book.evaluator.firing()] == ["busy"]
    assert book.evaluator.row(Kind.HOST, "h1") is not None


def test_a_bad_file_is_refused_whole_with_all_its_errors_and_the_last_good_one_stays(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(OTHER)
    book = Rulebook(RuleOptions(paths=[str(file)]))
    file.write_text(OTHER.replace("90%", "90").replace("< 5%", "< 5s"))
    book.watch(seconds(100))
    assert len(book.ruleset.rules) == 2
    assert (book.refusals, len(book.problems)) == (1, 2)
    (alarm,) = book.news(seconds(100), "c")
    assert (alarm.rule, alarm.subject.kind, alarm.state, alarm.severity) == (
        "virtpilot-rules-refused",
        Kind.CLUSTER,
        SignalState.FIRING,
        "critical",
    )
    assert alarm.annotations["problems"].splitlines() == list(book.problems)
    assert book.news(seconds(101), "c") == []
    file.write_text(GOOD)
    book.watch(seconds(200))
    assert (len(book.ruleset.rules), book.problems) == (1, ())
    assert [signal.state for signal in book.news(seconds(200), "c")] == [SignalState.INACTIVE]
    assert book.news(seconds(201), "c") == []


def test_a_mode_in_the_options_stands_in_for_the_rules_own(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(OTHER)
    book = Rulebook(RuleOptions(paths=[str(file)], modes={"idle": Mode.ACT, "*": Mode.APPROVE}))
    assert [rule.mode for rule in book.ruleset.rules] == [Mode.APPROVE, Mode.ACT]


def test_mistakes_at_the_start_end_it(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text("virtpilot: 1\nrules: [{name: x}]\n")
    with pytest.raises(RuleError):
        Rulebook(RuleOptions(paths=[str(tmp_path)]))
