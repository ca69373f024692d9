"""Rule tests that run: what passes, what fails and how it is told, scripted answers, a simulated fleet."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

from virtpilot.clock import SystemClock
from virtpilot.errors import RuleError
from virtpilot.pipeline import rule_tests
from virtpilot.pipeline.rulebook import LIBRARY
from virtpilot.rules.language import load
from virtpilot.rules.testing import report
from virtpilot.rules.testing.report import TestedFile

RULES: Final = """\
virtpilot: 1
rules:
  - name: starved
    on: vm
    when: cpu_steal_ratio > 10%
    for: 20s
    clear: cpu_steal_ratio < 5%
    no_data: clear
    mode: act
    remedies:
      - set: {cpu_shares: current * 2}
        lease: 5m
        expect: cpu_steal_ratio < 8% within 1m
      - migrate: {to: best}
  - name: crowded
    on: vm
    when: host.cpu_usage_ratio > 85%
  - name: idle
    on: host
    when: cpu_usage_ratio < 5%
"""
HEAD: Final = """\
virtpilot: 1
tests:
  - name: it
    hosts:
      h1: {series: {cpu_usage_ratio: 90%}}
      h2: {series: {cpu_usage_ratio: 10%}}
    guests:
      g1: {host: h1, series: {cpu_steal_ratio: SERIES}}
"""


def run(folder: Path, expect: str, *, steal: str = "30%", more: str = "") -> TestedFile:
    (folder / "a.yaml").write_text(RULES)
    head = HEAD.replace("SERIES", steal)
    told = "".join(f"      - {line.strip()}\n" for line in expect.strip().splitlines())
    (folder / "a.test.yaml").write_text(f"{head}{more}    expect:\n{told}")
    (tested,) = rule_tests.run([folder / "a.yaml"], SystemClock())
    return tested


def happened(tested: TestedFile) -> list[str]:
    return [failure.happened for test in tested.tests for failure in test.failures]


def test_states_are_those_at_their_time(tmp_path: Path) -> None:
    tested = run(
        tmp_path,
        """
        {signal: starved, of: g1, at: 9s, is: inactive}
        {signal: starved, of: g1, at: 10s, is: pending}
        {signal: starved, of: g1, at: 30s, is: firing}
        {signal: starved, of: g1, at: 60s, is: inactive}
        {signal: idle, of: h2, at: 1m, is: inactive}
        """,
        steal="0 30%x3 4%",
    )
    assert happened(tested) == []
    assert tested.failed == 0


def test_samples_that_come_seldom_are_heard(tmp_path: Path) -> None:
    tested = run(
        tmp_path,
        """
        {signal: starved, of: g1, at: 50m, is: firing}
        {signal: starved, of: g1, at: 20m, is: inactive}
        """,
        steal="0x2 30%",
        more="    every: 10m\n",
    )
    assert happened(tested) == []


def test_what_did_not_come_true_is_told_with_what_did(tmp_path: Path) -> None:
    tested = run(
        tmp_path,
        """
        {signal: starved, of: g1, at: 1m, is: inactive}
        {decision: starved, of: g1, by: 1m, is: refused, guard: mode}
        {command: starved, of: g1, by: 1m, is: none}
        {signal: idle, of: h1, at: 1m, is: firing}
        """,
    )
    told = happened(tested)
    assert told[0] == "it is firing since 20s"
    assert told[1].startswith("no such decision by 1m; there were: 20s decision refused by warm-up")
    assert told[2] == "there was one: 30s command set cpu_shares 2048"
    assert told[3] == "it is inactive, as it was all the time"
    (test,) = tested.tests
    assert (test.failures[0].line, test.failures[0].column) == (10, 9)
    assert "0s to 1m cpu_steal_ratio 0.3" in test.failures[0].trace
    assert "  when cpu_steal_ratio > 10%: true; clear cpu_steal_ratio < 5%: false" in test.failures[0].trace
    assert "20s signal pending → firing" in test.failures[0].trace


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("result: refused, reason: no", "{outcome: starved, of: g1, by: 40s, is: refused, reason: no}"),
        ("result: failed, after: 5s", "{outcome: starved, of: g1, from: 35s, by: 40s, is: failed}"),
        ("result: none", "{outcome: starved, of: g1, from: 1m, by: 3m, is: failed, reason: no outcome from h1}"),
        ("then: {cpu_steal_ratio: 1%}", "{outcome: starved, of: g1, by: 1m, is: effective, action: set cpu_shares}"),
    ],
)
def test_answers_are_as_scripted(answer: str, expected: str, tmp_path: Path) -> None:
    answers = f"    answers:\n      - {{to: set cpu_shares, of: g1, {answer}}}\n"
    tested = run(tmp_path, expected, more=answers)
    assert happened(tested) == []


def test_a_lease_ends_and_the_knob_is_given_back(tmp_path: Path) -> None:
    answers = "    answers:\n      - {to: set, of: g1, then: {cpu_steal_ratio: 1%}}\n"
    tested = run(
        tmp_path,
        """
        {outcome: starved, of: g1, from: 5m, by: 5m40s, is: reverted, action: release cpu_shares}
        {outcome: starved, of: g1, by: 5m, is: none, action: release}
        {signal: starved, of: g1, at: 5m, is: inactive}
        """,
        more=answers,
    )
    assert happened(tested) == []


def test_a_moved_guest_is_measured_on_its_new_host(tmp_path: Path) -> None:
    tested = run(
        tmp_path,
        """
        {command: starved, of: g1, by: 3m, is: given, action: migrate to h2}
        {signal: crowded, of: g1, at: 1m, is: firing}
        {outcome: starved, of: g1, by: 3m, is: done, action: migrate}
        {signal: crowded, of: g1, at: 3m, is: inactive}
        """,
    )
    assert happened(tested) == []


def test_a_guest_that_was_shut_down_is_off_and_can_be_started(tmp_path: Path) -> None:
    """Guards know in which state an action makes sense."""
    (tmp_path / "p.yaml").write_text(
        "virtpilot: 1\nrules:\n"
        "  - name: idle\n    on: vm\n    when: cpu_usage_ratio < 1%\n    mode: act\n    cooldown: 1h\n"
        "    remedies: [{shutdown: {within: 2m}, expect: state_code == 5 within 1m}, {destroy: {}}]\n"
        "  - name: fallen\n    on: vm\n    when: state_code == 5\n    for: 2m\n    mode: act\n"
        "    remedies: [{resume: {}}, {start: {}}]\n"
    )
    (tmp_path / "p.test.yaml").write_text(
        "virtpilot: 1\ntests:\n  - name: it\n    hosts: {h1: {}}\n"
        "    guests: {g1: {host: h1, series: {cpu_usage_ratio: 0%}}}\n"
        "    answers: [{to: resume, of: g1, result: refused}]\n    expect:\n"
        "      - {command: idle, of: g1, by: 1m, is: given, action: shutdown}\n"
        "      - {outcome: idle, of: g1, by: 1m, is: effective, action: shutdown}\n"
        "      - {signal: fallen, of: g1, at: 1m, is: pending}\n"
        "      - {decision: fallen, of: g1, by: 4m, is: refused, guard: state, reason: 'shut off, not paused'}\n"
    )
    (tested,) = rule_tests.run([tmp_path], SystemClock())
    assert happened(tested) == []


def test_what_falls_silent_has_no_data(tmp_path: Path) -> None:
    tested = run(tmp_path, "{signal: starved, of: g1, at: 3m, is: inactive}", steal="30%x5 stale")
    assert happened(tested) == []
    tested = run(tmp_path, "{signal: starved, of: g1, at: 70s, is: firing}", steal="30%x5 stale")
    assert happened(tested) == []


def test_a_test_begins_when_it_says(tmp_path: Path) -> None:
    """A rule that speaks at night only, by day and by night."""
    rule = "{name: nightly, on: host, when: cpu_usage_ratio > 50%, during: 20:00-06:00 Europe/Berlin}"
    (tmp_path / "n.yaml").write_text(f"virtpilot: 1\nrules: [{rule}]\n")
    busy = "hosts: {h: {series: {cpu_usage_ratio: 90%}}}"
    tests = [
        f"  - {{name: {hour}, start: '2026-01-05T{hour}:00:00+01:00', {busy}, "
        f"expect: [{{signal: nightly, of: h, at: 1m, is: {state}}}]}}"
        for hour, state in (("14", "inactive"), ("22", "firing"), ("07", "inactive"))
    ]
    (tmp_path / "n.test.yaml").write_text("\n".join(["virtpilot: 1", "tests:", *tests]))
    (tested,) = rule_tests.run([tmp_path], SystemClock())
    assert happened(tested) == []


def test_the_tags_of_guests_decide_where_one_of_them_goes(tmp_path: Path) -> None:
    rule = "{name: full, on: vm, when: cpu_steal_ratio > 10%, mode: act, remedies: [{migrate: {to: best}}]}"
    (tmp_path / "a.yaml").write_text(f"virtpilot: 1\nrules: [{rule}]\n")
    hosts = ", ".join(
        f"h{n}: {{series: {{cpu_usage_ratio: {used}%, memory_available_bytes: 60GiB}}}}"
        for n, used in ((1, 95), (2, 30), (3, 10))
    )
    tests = []
    for name, tags, goes in (
        ("free", "", "migrate to h3"),
        ("joins", "plb_affinity_web: 'true'", "migrate to h2"),
        ("apart", "plb_anti_affinity_db: 'true'", "migrate to h2"),
        ("pinned", "plb_pin_h2: 'true'", "migrate to h2"),
    ):
        guests = (
            f"g: {{host: h1, tags: {{{tags}}}, series: {{cpu_steal_ratio: 30%}}}}, "
            "web: {host: h2, tags: {plb_affinity_web: 'true'}}, db: {host: h3, tags: {plb_anti_affinity_db: 'true'}}"
        )
        expect = f"[{{command: full, of: g, by: 10m, is: given, action: {goes}}}]"
        tests.append(f"  - {{name: {name}, hosts: {{{hosts}}}, guests: {{{guests}}}, expect: {expect}}}")
    (tmp_path / "a.test.yaml").write_text("\n".join(["virtpilot: 1", "tests:", *tests]))
    (tested,) = rule_tests.run([tmp_path], SystemClock())
    assert happened(tested) == []


def test_coverage_tells_what_no_test_has_shown(tmp_path: Path) -> None:
    tested = run(tmp_path, "{signal: starved, of: g1, at: 10s, is: pending}")
    assert list(tested.coverage.gaps()) == [
        "starved: never fired",
        "starved: `cpu_steal_ratio > 10%` in `when` was never false",
        "starved: `cpu_steal_ratio < 5%` in `clear` was never true",
        "crowded: no test expects anything of it",
        "idle: no test expects anything of it",
    ]
    assert tested.coverage.counts() == (1, 3, 0, 4)


def test_a_simulated_fleet_takes_the_place_of_series(tmp_path: Path) -> None:
    """The shipped rule on the shipped scenario, with the agents and actuators of production."""
    rules = (LIBRARY / "cpu.yaml").read_text()
    (tmp_path / "cpu.yaml").write_text(rules)
    (tmp_path / "cpu.test.yaml").write_text(
        "virtpilot: 1\ntests:\n  - name: the demo's first episode\n    mode: act\n    fleet: demo\n    expect:\n"
        "      - {command: vm-cpu-starved, of: web-1, by: 4m20s, is: given, action: migrate to host-3}\n"
        "      - {outcome: vm-cpu-starved, of: web-1, by: 4m20s, is: effective, action: migrate}\n"
        "      - {signal: vm-cpu-starved, of: db-1, at: 4m20s, is: firing}\n"
    )
    (tested,) = rule_tests.run([tmp_path], SystemClock())
    assert happened(tested) == ["it is inactive, as it was all the time"]


def test_two_runs_tell_the_same(tmp_path: Path) -> None:
    expect = "{command: starved, of: g1, by: 3m, is: none}\n{signal: starved, of: g1, at: 2m, is: inactive}"
    assert [list(one.failures) for one in run(tmp_path, expect).tests] == [
        list(one.failures) for one in run(tmp_path, expect).tests
    ]


def test_mistakes_in_tests_and_rules_are_told_together(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(RULES)
    (tmp_path / "a.test.yaml").write_text(
        HEAD.replace("SERIES", "1%") + "    expect: [{signal: b, of: g1, at: 1s, is: firing}]\n"
    )
    (tmp_path / "b.test.yaml").write_text(
        "virtpilot: 1\nrules: [none.yaml]\n"
        + HEAD.partition("\n")[2].replace("SERIES", "1%")
        + "    expect: [{signal: b, of: g1, at: 1s, is: firing}]\n"
    )
    with pytest.raises(RuleError) as raised:
        rule_tests.run([tmp_path, tmp_path / "empty"], SystemClock())
    told = [str(problem).replace(f"{tmp_path}/", "") for problem in raised.value.problems]
    assert told == [
        "a.test.yaml:9:14: no rule named `b` is tested here: crowded, idle, starved",
        "empty.test.yaml:0:0: cannot be read: No such file or directory",
        "none.yaml:0:0: cannot be read: No such file or directory",
    ]


def test_every_shipped_rule_has_tests_that_pass_and_show_it_from_all_sides() -> None:
    files = rule_tests.run([LIBRARY], SystemClock())
    assert "\n".join(report.lines([file for file in files if file.failed])) == ""
    assert [gap for file in files for gap in file.coverage.gaps()] == []
    shown = {name for file in files for name in file.coverage.fired & file.coverage.tested}
    assert shown == {rule.name for rule in load([LIBRARY]).rules}


def test_the_manual_shows_a_test_that_passes(tmp_path: Path) -> None:
    docs = Path(__file__).parents[2] / "docs"
    for page, name in (("rules.md", "db.yaml"), ("rule-tests.md", "db.test.yaml")):
        found = re.search(r"```yaml\n(virtpilot: 1\n.*?)```", (docs / page).read_text(), re.DOTALL)
        assert found is not None
        (tmp_path / name).write_text(found[1])
    (tested,) = rule_tests.run([tmp_path], SystemClock())
    assert happened(tested) == []
