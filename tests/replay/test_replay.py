"""Replay: the demo's own record gives its own signals again; rules are compared; actions have their effect."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.command_line import said
from tests.replay.recorded import play_demo, starved, told, written
from virtpilot.clock import SECOND
from virtpilot.errors import InputError
from virtpilot.model import Mode, Signal
from virtpilot.pipeline import replay, replay_text
from virtpilot.pipeline.history import Span
from virtpilot.pipeline.replay import Replayed
from virtpilot.pipeline.rulebook import LIBRARY

RULES = """\
virtpilot: 1
rules:
  - name: starved
    on: vm
    when: cpu_steal_ratio > {limit}
    for: 30s
    clear: cpu_steal_ratio < 4%
    remedies:
      - set: {{cpu_shares: current * 2}}
        lease: 15m
        expect: cpu_steal_ratio < 8% within 1m
      - migrate: {{to: best}}
        expect: cpu_steal_ratio < 5% within 2m
"""

Ran = tuple[dict[str, Any], list[Replayed]]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Signal]]:
    folder = tmp_path_factory.mktemp("demo")
    return folder / "store", play_demo(folder, 270)


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    file = tmp_path / "rules.yaml"
    file.write_text(RULES.format(limit="10%"))
    return file


@pytest.fixture(scope="module")
def acted(demo: tuple[Path, list[Signal]]) -> Ran:
    store, _signals = demo
    return replay.run(str(store), [LIBRARY], [], mode=Mode.ACT, span=Span())


@pytest.mark.parametrize("mode", [Mode.OBSERVE, Mode.ACT])
def test_the_demo_again_gives_the_same_signals(demo: tuple[Path, list[Signal]], acted: Ran, mode: Mode) -> None:
    """Acting too: what the record shows of the actions that were taken is believed."""
    store, signals = demo
    played = acted[1][0] if mode is Mode.ACT else replay.run(str(store), [LIBRARY], [], mode=mode, span=Span())[1][0]
    assert len(signals) >= 4
    assert told(played) == [(one.rule, one.subject.name, one.state, one.at_ns) for one in signals]
    assert [one.id for one in played.records if isinstance(one, Signal)] == [one.id for one in signals]


@pytest.fixture(scope="module")
def compared(demo: tuple[Path, list[Signal]]) -> Ran:
    """All the library beside itself."""
    store, _signals = demo
    return replay.run(str(store), [LIBRARY], [LIBRARY], mode=Mode.ACT, span=Span())


def test_two_runs_are_the_same(acted: Ran, compared: Ran) -> None:
    other = compared[0]
    assert acted[0]["history"] == other["history"]
    assert acted[0]["a"] == other["a"] == other["b"]


def test_actions_that_were_not_taken_have_their_effect(tmp_path: Path, rules: Path) -> None:
    history = str(written(tmp_path / "a.lp", starved(600)))
    document, (played,) = replay.run(history, [rules], [], mode=Mode.OBSERVE, span=Span())
    assert document["a"]["commands"] == 0
    # both fire from 0:30 to the record's end at 9:50
    assert document["a"]["minutes_in_violation"] == pytest.approx(2 * 560 / 60, abs=0.01)
    document, (played,) = replay.run(history, [rules], [], mode=Mode.ACT, span=Span())
    # The one that moves makes room for the other, which stays: its host must be measured again first.
    assert document["a"]["migrations"] == 1
    assert document["a"]["outcomes"]["effective"] == 1
    assert document["a"]["minutes_in_violation"] < 6
    assert [state for _rule, _name, state, _at in told(played)][-1] == "inactive"


def test_two_rule_sets_side_by_side(tmp_path: Path, rules: Path) -> None:
    history = str(written(tmp_path / "a.lp", starved(300)))
    other = tmp_path / "other.yaml"
    other.write_text(RULES.format(limit="30%"))
    document, sets = replay.run(history, [rules], [other], mode=None, span=Span())
    assert document["a"]["rules"]["starved"]["fired"] == 2
    assert document["b"]["rules"]["starved"]["fired"] == 0
    assert [(each["rule"], each["subject"]) for each in document["difference"]["only_a"]] == [
        ("starved", "a"),
        ("starved", "b"),
    ]
    assert document["difference"]["only_b"] == []
    assert document["difference"]["fired"] == -2
    assert document["difference"]["minutes_in_violation"] < 0
    text = "\n".join(replay_text.lines(document, sets))
    assert "2 → 0" in text
    assert "2 signals fired in a alone" in text
    same, sets = replay.run(history, [rules], [rules], mode=None, span=Span())
    assert same["difference"]["only_a"] == same["difference"]["only_b"] == []
    assert "both fire on the same subjects at the same times" in "\n".join(replay_text.lines(same, sets))


def test_the_report_fits_on_a_terminal(compared: Ran) -> None:
    document, sets = compared
    assert max(map(len, replay_text.lines(document, sets))) <= 80


def test_what_only_waited_is_not_told_to_end(demo: tuple[Path, list[Signal]], acted: Ran) -> None:
    _store, signals = demo
    document, sets = acted
    assert any(one.state == "inactive" and one.previous == "pending" for one in signals)
    text = list(replay_text.lines(document, sets))
    assert not [line for line in text if line != line.rstrip()]
    ends = [line for line in text if line.endswith(" inactive")]
    assert all(re.sub("inactive$", "firing", line)[19:] in {other[19:] for other in text} for line in ends)


@pytest.mark.parametrize(
    ("span", "told"),
    [
        (Span(2 * SECOND, SECOND), "the time from which it is read is after the one up to which it is"),
        (Span(1_800_000_000 * SECOND), "no sample of a host or guest in it from 2027-01-1"),
        (Span(cluster="other"), "no sample of a host or guest in it of the cluster other"),
    ],
)
def test_a_part_in_which_nothing_is(tmp_path: Path, rules: Path, span: Span, told: str) -> None:
    history = written(tmp_path / "a.lp", starved(30))
    with pytest.raises(InputError, match=told):
        replay.run(str(history), [rules], [], mode=None, span=span)


def command(*words: str | Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "virtpilot.pipeline", "replay", *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, timeout=600, check=False)


def test_the_command_prints_one_document(tmp_path: Path, rules: Path) -> None:
    history = written(tmp_path / "a.lp", starved(300))
    done = command("--history", history, "--rules", rules, "--mode", "act", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["history"]["guests"] == 2
    assert {one["kind"] for one in document["a"]["records"]} == {"signal", "decision", "command", "outcome"}


def test_the_command_tells_what_happened(tmp_path: Path, rules: Path) -> None:
    history = written(tmp_path / "a.lp", starved(300))
    done = said("replay", "--history", history, "--rules", rules)
    assert (done.returncode, done.stderr) == (0, "")
    assert "a: starved firing" in done.stdout
    assert "refused by mode" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--history", "none.lp", "--rules", "RULES"], "none.lp:0:0: cannot be read"),
        (["--history", "HISTORY", "--rules", "none.yaml"], "none.yaml:0:0: cannot be read"),
        (["--history", "HISTORY", "--rules", "RULES", "--from", "noon"], "is no time such as 14:03"),
    ],
)
def test_wrong_input_ends_with_two(words: list[str], message: str, tmp_path: Path, rules: Path) -> None:
    history = written(tmp_path / "a.lp", starved(30))
    done = said("replay", *({"RULES": rules, "HISTORY": history}.get(word, word) for word in words))
    assert done.returncode == 2
    assert message in done.stderr
