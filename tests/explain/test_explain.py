"""`virtpilot explain`: why it fired, why not, and which guard stopped it, on the trail of a played demo."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import msgspec
import pytest

from tests.command_line import said
from virtpilot.clock import SECOND
from virtpilot.errors import InputError
from virtpilot.model import Mode, SignalState
from virtpilot.pipeline.demo import Demo
from virtpilot.pipeline.evaluations import Evaluation, Held
from virtpilot.pipeline.explain import Answer, RuleAnswer, Trail, ask, explain, find_subject
from virtpilot.pipeline.explain_text import lines
from virtpilot.pipeline.moment import zoned
from virtpilot.pipeline.rulebook import LIBRARY, RuleOptions

START_S: Final = 1_700_000_000


def play(folder: Path, mode: Mode, seconds: int) -> Path:
    demo = Demo(folder, rules=RuleOptions(paths=[str(LIBRARY / "cpu.yaml")], modes={"*": mode}))
    for _ in range(seconds):
        demo.step()
    demo.close()
    return folder


@pytest.fixture(scope="module")
def acted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return play(tmp_path_factory.mktemp("acted"), Mode.ACT, 310)


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return play(tmp_path_factory.mktemp("observed"), Mode.OBSERVE, 150)


def about(folder: Path, name: str, at_s: float, *, history: bool = False) -> Answer:
    return ask(
        name,
        round((START_S + at_s) * SECOND),
        config=Path("none.toml"),
        trail=folder / "controller",
        rules=[LIBRARY / "cpu.yaml"],
        history=str(folder / "store") if history else "",
        lookback_ns=600 * SECOND,
    )


def rule(answer: Answer, name: str = "vm-cpu-starved") -> RuleAnswer:
    (found,) = (one for one in answer.rules if one.rule == name)
    return found


def test_why_it_fired(acted: Path) -> None:
    found = rule(about(acted, "web-1", 60))
    assert found.state is SignalState.FIRING
    assert found.why == "its condition held long enough; a remedy was accepted: the rule asks for current * 2"
    assert found.seen is not None
    assert [clause.held for clause in found.seen.clauses if clause.key == "when"] == [True, True]
    assert found.seen.values["cpu_steal_ratio"] > 0.1
    assert [entry.kind for entry in found.happened] == ["signal", "signal", "decision", "command", "outcome"]


def test_what_came_of_it_and_that_it_is_over(acted: Path) -> None:
    found = rule(about(acted, "web-1", 300))
    assert found.state is SignalState.INACTIVE
    assert "`cpu_steal_ratio > 10%` (cpu_steal_ratio 0%) is false" in found.why
    assert [entry.kind for entry in found.happened].count("outcome") == 5


def test_why_it_does_not_fire_yet(acted: Path) -> None:
    found = rule(about(acted, "web-1", 25))
    assert found.state is SignalState.PENDING
    assert found.why == "its condition holds, not yet long enough, 30 s are needed"


def test_why_not_from_the_trail_of_near_misses(acted: Path) -> None:
    found = rule(about(acted, "db-1", 60))
    assert found.state is SignalState.INACTIVE
    assert found.why.startswith("`cpu_steal_ratio > 10%` (cpu_steal_ratio ")
    assert found.why.endswith(" is false")
    batch = rule(about(acted, "batch-1", 60))
    assert batch.why == 'it does not apply: `tags.tier != "batch"` is false'


def test_which_guard_stopped_it(observed: Path) -> None:
    found = rule(about(observed, "web-1", 120))
    assert found.state is SignalState.FIRING
    assert found.guard == "mode"
    assert found.why == ("its condition held long enough; stopped by the guard mode: rule vm-cpu-starved only observes")


def test_what_was_never_near_is_told_from_history(acted: Path) -> None:
    with pytest.raises(InputError, match="nothing is kept of it"):
        about(acted, "cache-1", 300)
    answer = about(acted, "cache-1", 300, history=True)
    found = rule(answer)
    assert found.state is SignalState.INACTIVE
    assert "is false" in found.why
    assert found.seen is not None
    assert found.seen.at_ns == (START_S + 300) * SECOND
    assert answer.subject.host == "host-2"


def test_a_rule_that_rests_by_its_calendar_is_told_so(acted: Path, tmp_path: Path) -> None:
    by_night = (
        (LIBRARY / "cpu.yaml")
        .read_text()
        .replace("    unless: [vm-noisy-neighbour]\n", "    during: 00:00-06:00\n    unless: [vm-noisy-neighbour]\n")
    )
    (tmp_path / "cpu.yaml").write_text(by_night)
    answer = ask(
        "cache-1",
        (START_S + 60) * SECOND,
        config=Path("none.toml"),
        trail=acted / "controller",
        rules=[tmp_path / "cpu.yaml"],
        history=str(acted / "store"),
        lookback_ns=600 * SECOND,
    )
    assert rule(answer).why == "it rests at this time: during 00:00-06:00"


def test_history_says_what_the_trail_says(acted: Path) -> None:
    told, replayed = rule(about(acted, "web-1", 60)), rule(about(acted, "web-1", 60, history=True))
    assert (replayed.state, replayed.since_ns) == (told.state, told.since_ns)


def test_hosts_are_explained_too_and_where_a_guest_was_then(acted: Path) -> None:
    assert rule(about(acted, "host-1", 100), "host-cpu-saturated").state is SignalState.PENDING
    assert about(acted, "web-1", 60).subject.host == "host-1"
    assert about(acted, "web-1", 300).subject.host == "host-3"


def test_the_text_has_it_all(observed: Path) -> None:
    text = "\n".join(lines(about(observed, "web-1", 120)))
    assert "vm-cpu-starved: firing since" in text
    assert re.search(r"when +cpu_steal_ratio > 10% +true\n", text)
    assert "refused by the guard mode: rule vm-cpu-starved only observes" in text


@pytest.mark.parametrize(
    ("at_s", "told"),
    [
        (-86_400, "what is kept begins after this time, at 2023-"),
        (86_400, "what is kept ends before this time, at 2023-"),
    ],
)
def test_a_time_of_which_nothing_is_kept_is_told(acted: Path, at_s: float, told: str) -> None:
    assert told in "\n".join(lines(about(acted, "web-1", at_s)))
    assert "what is kept" not in "\n".join(lines(about(acted, "web-1", 60)))


def test_the_time_has_its_zone(acted: Path) -> None:
    heading = next(lines(about(acted, "web-1", 60)))
    assert heading.endswith(zoned((START_S + 60) * SECOND))


def test_a_hosts_field_is_not_told_with_the_guests_own_of_that_name(acted: Path) -> None:
    found = rule(about(acted, "web-1", 200), "vm-noisy-neighbour")
    assert re.search(r"`host.cpu_usage_ratio > 90%` \(host.cpu_usage_ratio [0-9]+%\) is false", found.why)


def test_a_negated_comparison_that_holds_is_not_said_to_fire(acted: Path) -> None:
    subject = about(acted, "web-1", 60).subject
    held = [Held("when", "cpu_steal_ratio > 10%", True)]
    seen = Evaluation(rule="r", subject=subject, at_ns=START_S * SECOND, values={}, clauses=held)
    found = rule(explain(subject, START_S * SECOND, Trail([], [seen]), None, []), "r")
    assert found.why == "its comparisons hold or not as told below"


def test_a_name_that_two_guests_bear_needs_the_uuid(acted: Path) -> None:
    subject = about(acted, "web-1", 60).subject
    two = [
        Evaluation(rule="r", subject=msgspec.structs.replace(subject, id=id_), at_ns=1, values={}, clauses=[])
        for id_ in ("u1", "u2")
    ]
    with pytest.raises(InputError, match="2 guests bear this name, say which UUID: u1 on host-1, u2 on host-1"):
        find_subject("web-1", 1, [Trail([], two)])
    assert find_subject("u2", 1, [Trail([], two)]).id == "u2"


@pytest.mark.parametrize(("name", "message"), [("web-11", "did you mean web-1?"), ("", "nothing is kept of it")])
def test_who_is_not_known_is_told(name: str, message: str, acted: Path) -> None:
    with pytest.raises(InputError, match=message):
        about(acted, name, 60)


def command(*words: str | Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "virtpilot.pipeline", "explain", *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, timeout=600, check=False)


def test_the_command_prints_one_document(acted: Path) -> None:
    at = "2023-11-14T22:14:20+00:00"
    done = command("web-1", "--at", at, "--trail", acted / "controller", "--rules", LIBRARY, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["subject"]["name"] == "web-1"
    assert document["rules"][0]["rule"] == "vm-cpu-starved"
    assert {one["rule"] for one in document["rules"]} >= {"vm-memory-low"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["web-1", "--trail", "TRAIL", "--at", "noon"], "is no time such as 14:03"),
        (["nobody", "--trail", "TRAIL"], "nothing is kept of it"),
        (["web-1", "--trail", "."], "there is no trail here"),
        (["web-1", "--config", "none.toml"], "none.toml:0:0: cannot read"),
    ],
)
def test_wrong_input_ends_with_two(words: list[str], message: str, acted: Path, tmp_path: Path) -> None:
    places = {"TRAIL": str(acted / "controller"), ".": str(tmp_path)}
    done = said("explain", *(places.get(word, word) for word in words))
    assert done.returncode == 2
    assert message in done.stderr
