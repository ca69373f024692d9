"""`virtpilot rules test` as people and build servers call it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from defusedxml import ElementTree

from tests.command_line import said

RULES = "virtpilot: 1\nrules:\n  - {name: r, on: host, when: cpu_usage_ratio > 50%}\n"
TESTS = """\
virtpilot: 1
tests:
  - name: good
    hosts: {h: {series: {cpu_usage_ratio: 60%}}}
    expect: [{signal: r, of: h, at: 1m, is: firing}]
  - name: '<bad> & "ugly"'
    hosts: {h: {series: {cpu_usage_ratio: 40%}}}
    expect: [{signal: r, of: h, at: 1m, is: firing}]
"""


def rules_test(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "virtpilot.pipeline", "rules", "test", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


def test_failing_tests_end_with_one_and_are_told_in_every_form(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(RULES)
    (tmp_path / "r.test.yaml").write_text(TESTS)
    done = rules_test(tmp_path, "--json", "--junit", tmp_path / "junit.xml")
    assert done.returncode == 1, done.stderr
    document = json.loads(done.stdout)
    assert (document["passed"], document["failed"]) == (1, 1)
    assert document["files"][0]["rules"] == [
        {
            "name": "r",
            "tested": True,
            "fired": True,
            "clauses": [{"key": "when", "text": "cpu_usage_ratio > 50%", "true": 7, "false": 7}],
        }
    ]
    root = ElementTree.fromstring((tmp_path / "junit.xml").read_bytes())
    (suite,) = root
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    assert [case.get("name") for case in suite] == ["good", '<bad> & "ugly"']
    (failure,) = suite[1]
    assert failure.tag == "failure"
    assert failure.get("message") == "signal: r, of: h, at: 1m, is: firing: it is inactive, as it was all the time"
    assert f"{tmp_path}/r.test.yaml:8:14" in str(failure.text)


def test_passing_tests_end_with_nothing(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(RULES)
    (tmp_path / "r.test.yaml").write_text(TESTS.partition("  - name: '")[0])
    done = said("rules", "test", tmp_path / "r.test.yaml")
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 tests passed; 1 of 1 rules fired" in done.stdout
    assert "not shown: r: `cpu_usage_ratio > 50%` in `when` was never false" in done.stdout


def test_wrong_files_end_with_two(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(RULES)
    done = rules_test(tmp_path / "r.yaml")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"{tmp_path}/r.test.yaml:0:0: cannot be read: No such file or directory\n"
    (tmp_path / "r.test.yaml").write_text(TESTS)
    done = rules_test(tmp_path, "--junit", tmp_path / "none" / "junit.xml")
    assert done.returncode == 2
    assert "cannot be written: No such file or directory" in done.stderr
